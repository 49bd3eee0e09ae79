"""The one kind of error that data and tokenizers raise for what a user can cause."""


class DataError(ValueError):
    """Data, a tokenizer or a folder of others cannot be used; one line says what, why and what to do."""
