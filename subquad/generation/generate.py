"""Text from a model, token by token."""

from collections.abc import Callable
from typing import Any, cast

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from subquad.data import Tokenizer

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# A character that is not complete yet has at most three bytes, and shows as at most so many replacement characters.
LONGEST_PREFIX = 3


class TextStream(BaseStreamer):
    """Decodes the tokens of `generate` as they come and passes on text that later tokens cannot change.

    A character may take several tokens; it is passed on when it is complete. Concatenated, the pieces are the decoded
    text.

    Args:
        decode: From ids to text.
        emit: Called with each piece of text.
    """

    def __init__(self, decode: Callable[[list[int]], str], emit: Callable[[str], object]) -> None:
        self.decode = decode
        self.emit = emit
        self._ids: list[int] = []
        self._emitted = 0
        self._prompt_is_next = True

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt, then one new token at each call, `(1,)` int64."""
        if self._prompt_is_next:
            self._prompt_is_next = False
            return
        self._ids += value.flatten().tolist()
        text = self.decode(self._ids)
        open_end = min(len(text) - len(text.rstrip(REPLACEMENT)), LONGEST_PREFIX)
        self._pass_on(text[: len(text) - open_end])
        if text.endswith("\n"):  # decoding starts afresh, so that its cost does not grow with the text
            self._ids, self._emitted = [], 0

    def end(self) -> None:
        """Pass on what is left, an incomplete character included."""
        self._pass_on(self.decode(self._ids))
        self._ids, self._emitted, self._prompt_is_next = [], 0, True

    def _pass_on(self, text: str) -> None:
        if len(text) > self._emitted:
            self.emit(text[self._emitted :])
            self._emitted = len(text)


def generate_text(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    prompt: str = "",
    *,
    max_new_tokens: int = 200,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    seed: int | None = None,
    stream: Callable[[str], object] | None = None,
) -> str:
    """Continue a text.

    The model sees the end symbol of the text before, then the prompt, as in training. Generation ends at the end of
    the document, or, in a vocabulary whose end symbol ends a line, goes on.

    Args:
        model: A causal language model of transformers.
        tokenizer: Its tokenizer.
        prompt: The beginning; may be empty.
        max_new_tokens: Largest number of tokens to add.
        temperature: Divides the logits; 0 takes the most probable token each time.
        top_k: Draw from so many most probable tokens only.
        top_p: Draw from the most probable tokens that together have this probability.
        seed: Makes the draws repeatable; the global random state is left as it was.
        stream: Called with each piece of new text as soon as it is certain.

    Returns:
        The new text, without the prompt.

    Raises:
        ValueError: An argument is out of range, or the tokenizer is not that of the model.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    if not temperature >= 0:
        raise ValueError(f"temperature must be 0 or more, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be in (0, 1], got {top_p}")
    vocabulary, vocab_size = tokenizer.vocabulary, model.config.vocab_size
    if vocabulary.size > vocab_size:
        raise ValueError(
            f"the tokenizer has {vocabulary.size} symbols ({vocabulary.unit}), the model {vocab_size}: "
            "use the tokenizer of the model"
        )
    end_id = vocabulary.eos_id
    ids = [end_id, *tokenizer.encode(prompt)]
    sampling: dict[str, Any] = {}
    if temperature > 0:
        # 0 turns the library's own default of 50 off.
        sampling = {"temperature": temperature, "top_k": top_k or 0, "top_p": top_p}
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        # None would mean what the model's own configuration says; an id that no token has ends nothing.
        eos_token_id=vocab_size if tokenizer.line_wise else end_id,
        pad_token_id=vocabulary.pad_id,
        **sampling,
    )
    pieces: list[str] = []

    def emit(text: str) -> None:
        pieces.append(text)
        if stream is not None:
            stream(text)

    def decode(new: list[int]) -> str:
        ended = not tokenizer.line_wise and new[-1:] == [end_id]
        return tokenizer.decode(new[:-1] if ended else new)

    inputs = torch.tensor([ids], device=model.device)
    stream_text = TextStream(decode, emit)
    was_training = model.training
    model.eval()
    try:
        with torch.random.fork_rng(enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            # `generate` belongs to a mixin that the annotation does not name.
            generate = cast(Any, model).generate
            generate(inputs, attention_mask=torch.ones_like(inputs), generation_config=config, streamer=stream_text)
    finally:
        model.train(was_training)
    return "".join(pieces)
