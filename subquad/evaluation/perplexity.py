"""Perplexity of causal language models, by the rules of fairseq's `eval-lm`, and of masked ones.

Causal: the stream is cut into blocks anywhere (mode "none"), every token of it is scored exactly once, the short last
block included, and the first token of a block is predicted from the true token before it. Nothing else is carried from
block to block unless a context window asks for it.

Masked: the tokens that are hidden are scored, and no others. Their perplexity is no perplexity of the text: it says
nothing beside that of a causal model.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from subquad.data import Blocks, MaskedBlocks, TokenStream
from subquad.data.blocks import IGNORED

# One batch holds about this many tokens, and no more logits than fit 1 GiB in float32.
BATCH_TOKENS = 1 << 14
BATCH_LOGITS = 1 << 28
# Positions whose logits are widened to float32 at a time.
LOSS_POSITIONS = 1 << 11


@dataclass(frozen=True)
class PerplexityResult:
    """How well a model predicts a text.

    Only figures of the same text may be compared; across vocabularies only bits per byte and perplexity per word.

    Args:
        nll: Negative log-likelihood of the whole text in nats.
        tokens: Number of tokens, all of them scored.
        words: Number of words, and one end for each line; None where the text is not known, or not scored as a whole.
        bytes: Number of bytes of the text in UTF-8; None as for `words`.
        length: Largest number of inputs in a block.
        context_window: How many of them repeat earlier inputs and are not scored.
        vocabulary: What a token is.
        task: "masked-lm" where only masked tokens are scored. Their perplexity depends on the masking as well.
    """

    nll: float
    tokens: int
    words: int | None
    bytes: int | None
    length: int
    context_window: int
    vocabulary: str
    task: str = "causal-lm"

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nll / self.tokens

    @property
    def perplexity(self) -> float:
        """Perplexity per token."""
        return _exp(self.loss)

    @property
    def bits_per_token(self) -> float:
        """Bits per token: the loss as fairseq logs it."""
        return self.loss / math.log(2)

    @property
    def bits_per_byte(self) -> float | None:
        """Bits per byte of the text, which does not depend on the vocabulary."""
        return self.nll / math.log(2) / self.bytes if self.bytes else None

    @property
    def word_perplexity(self) -> float | None:
        """Perplexity per word, ends of lines counted as words."""
        return _exp(self.nll / self.words) if self.words else None

    def to_dict(self) -> dict[str, Any]:
        """All figures, for JSON; None where one is not defined or too large to be written."""
        figures = {
            "loss": self.loss,
            "perplexity": self.perplexity,
            "bits_per_token": self.bits_per_token,
            "bits_per_byte": self.bits_per_byte,
            "word_perplexity": self.word_perplexity,
        }
        counts = {
            "tokens": self.tokens,
            "words": self.words,
            "bytes": self.bytes,
            "length": self.length,
            "context_window": self.context_window,
            "vocabulary": self.vocabulary,
            "task": self.task,
        }
        return {name: None if value == math.inf else value for name, value in figures.items()} | counts

    def table(self) -> list[list[str]]:
        """Rows of what is measured, its value, and what it is taken over, for the terminal."""
        token = "masked token" if self.task == "masked-lm" else "token"
        rows = [
            [f"loss (nats per {token})", f"{self.loss:.4f}", f"{self.tokens:,} {token}s, none skipped"],
            [f"bits per {token}", f"{self.bits_per_token:.4f}", f"a token is: {self.vocabulary}"],
            [f"perplexity per {token}", f"{self.perplexity:,.2f}", f"length {self.length}"],
        ]
        if self.task == "causal-lm":
            words, size = _written(self.words, ","), _written(self.bytes, ",")
            rows += [
                ["perplexity per word", _written(self.word_perplexity, ",.2f"), f"{words} words and line ends"],
                ["bits per byte", _written(self.bits_per_byte, ".4f"), f"{size} bytes"],
            ]
        return rows


def evaluate_perplexity(
    model: PreTrainedModel,
    stream: TokenStream,
    *,
    length: int,
    context_window: int = 0,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> PerplexityResult:
    """Score every token of a stream.

    Args:
        model: A causal language model of transformers; its mode (training or not) is left as it was.
        stream: The tokens.
        length: Largest number of inputs in a block.
        context_window: Up to this many inputs before each block are repeated in front of it and not scored; a block
            then has `length - context_window` new tokens.
        batch_size: Blocks in a batch; default: what fits a fixed number of tokens. The result does not depend on it.
        device: Where to compute; default: where the model is.
        progress: Show a progress bar on a terminal.

    Returns:
        The figures of the whole stream.

    Raises:
        ValueError: The stream is empty, the vocabularies do not fit, the model cannot see `length` positions, or its
            loss is not finite. No result is given for a part of the stream.
    """
    if not stream.num_tokens:
        raise ValueError("the text to evaluate on is empty")
    _check_vocabulary(stream, model)
    blocks = Blocks(stream, length, context_window=context_window)
    rows = (
        (block["input_ids"], block["shift_labels"][-int(size) :])
        for block, size in zip(map(blocks.__getitem__, range(len(blocks))), blocks.lengths, strict=True)
    )
    if device is not None:
        model.to(torch.device(device))  # pyright: ignore[reportArgumentType] - transformers wraps `to`

    def predict(inputs: Tensor, num_targets: int) -> Tensor:
        return model(inputs, use_cache=False, logits_to_keep=num_targets).logits

    batches = _batches(rows, batch_size or _fitting_batch_size(model, length))
    nll, tokens = _total(model, predict, batches, stream.num_tokens, progress, f"length {length}")
    assert tokens == stream.num_tokens
    return PerplexityResult(
        nll=nll,
        tokens=tokens,
        words=stream.num_words_and_line_ends,
        bytes=stream.num_bytes,
        length=length,
        context_window=context_window,
        vocabulary=stream.vocabulary.unit,
    )


def evaluate_masked_perplexity(
    model: PreTrainedModel,
    blocks: MaskedBlocks,
    *,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> PerplexityResult:
    """Score every masked token.

    Args:
        model: A masked language model of transformers; its mode (training or not) is left as it was.
        blocks: The blocks and their masks, those of epoch 0.
        batch_size: Blocks in a batch; default: what fits a fixed number of tokens. The result does not depend on it.
        device: Where to compute; default: where the model is.
        progress: Show a progress bar on a terminal.

    Returns:
        The figures of all masked tokens.

    Raises:
        ValueError: Nothing is masked, the vocabularies do not fit, or the model's loss is not finite.
    """
    stream, lengths = blocks.blocks.stream, blocks.lengths
    _check_vocabulary(stream, model)
    order = np.argsort(lengths, kind="stable").tolist()  # blocks of equal length meet
    rows = ((block["input_ids"], block["labels"]) for block in map(blocks.__getitem__, order))
    if device is not None:
        model.to(torch.device(device))  # pyright: ignore[reportArgumentType] - transformers wraps `to`

    def predict(inputs: Tensor, num_targets: int) -> Tensor:
        return model(inputs).logits

    batches = _batches(rows, batch_size or _fitting_batch_size(model, blocks.block_size))
    nll, tokens = _total(model, predict, batches, int(lengths.sum()), progress, "masked tokens")
    if not tokens:
        raise ValueError("nothing in the text to evaluate on is masked: give more text")
    return PerplexityResult(
        nll=nll,
        tokens=tokens,
        words=None,
        bytes=None,
        length=blocks.block_size,
        context_window=0,
        vocabulary=stream.vocabulary.unit,
        task="masked-lm",
    )


def _check_vocabulary(stream: TokenStream, model: PreTrainedModel) -> None:
    vocab_size = model.config.vocab_size
    if stream.vocabulary.size > vocab_size:
        raise ValueError(
            f"the text has {stream.vocabulary.size} symbols ({stream.vocabulary.unit}), the model {vocab_size}: "
            "encode it with the tokenizer of the model"
        )


def _fitting_batch_size(model: PreTrainedModel, length: int) -> int:
    return max(1, min(BATCH_TOKENS // length, BATCH_LOGITS // (length * model.config.vocab_size)))


def _batches(rows: Iterable[tuple[Tensor, Tensor]], batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs (batch, context + length) and their last targets (batch, length), both int64.

    Only rows of equal shape meet in a batch, so nothing is padded: also models that know no padding get exact results.
    """
    inputs: list[Tensor] = []
    targets: list[Tensor] = []
    for row, labels in rows:
        if inputs and (len(inputs) == batch_size or row.shape != inputs[0].shape or labels.shape != targets[0].shape):
            yield torch.stack(inputs), torch.stack(targets)
            inputs, targets = [], []
        inputs.append(row)
        targets.append(labels)
    if inputs:
        yield torch.stack(inputs), torch.stack(targets)


def _total(
    model: PreTrainedModel,
    predict: Callable[[Tensor, int], Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    num_positions: int,
    progress: bool,
    description: str,
) -> tuple[float, int]:
    """Negative log-likelihood in nats, and number, of all targets but those that are -100.

    Args:
        model: Its mode is left as it was.
        predict: From inputs (batch, context + length) and length to logits (batch, length, vocab_size).
        batches: See `_batches`.
        num_positions: Of all targets, for the progress bar.
        progress: Whether to show one.
        description: What stands before it.
    """
    was_training = model.training
    model.eval()
    hidden = None if progress else True  # None: shown on a terminal only
    nll, tokens, position = 0.0, 0, 0
    try:
        with (
            torch.inference_mode(),
            tqdm(total=num_positions, desc=description, unit="token", unit_scale=True, disable=hidden) as bar,
        ):
            for inputs, targets in batches:
                logits = predict(inputs.to(model.device), targets.shape[1])
                loss = _sum_of_losses(logits.flatten(0, 1), targets.flatten().to(model.device))
                if not math.isfinite(loss):
                    raise ValueError(
                        f"the model's loss is {loss} within tokens {position} … {position + targets.numel() - 1}"
                    )
                nll += loss
                tokens += int((targets != IGNORED).sum())
                position += targets.numel()
                bar.update(targets.numel())
    finally:
        model.train(was_training)
    return nll, tokens


def _sum_of_losses(logits: Tensor, targets: Tensor) -> float:
    """Cross-entropy of `logits` (positions, vocab_size) in at least float32, summed in float64; −100 is no target."""
    total = 0.0
    for part, wanted in zip(logits.split(LOSS_POSITIONS), targets.split(LOSS_POSITIONS), strict=True):
        wide = part if part.dtype == torch.float64 else part.float()
        total += F.cross_entropy(wide, wanted, reduction="none").cpu().double().sum().item()
    return total


def _written(value: float | None, format: str) -> str:
    return "–" if value is None else f"{value:{format}}"


def _exp(x: float) -> float:
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf
