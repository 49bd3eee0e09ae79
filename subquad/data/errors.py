"""The kinds of error that data and tokenizers raise for what a user can cause."""


class DataError(ValueError):
    """Data, a tokenizer or a folder of others cannot be used; one line says what, why and what to do."""


class DataNotFoundError(DataError, FileNotFoundError):
    """Files are not where they are expected; the line says which, and where they were looked for."""
