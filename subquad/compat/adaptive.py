"""Adaptive vocabularies of fairseq: embeddings and output layers whose width falls with the frequency of a token."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from subquad.compat.reference import drop_second_name


class AdaptiveInput(nn.Module):
    """Token embeddings whose width falls with the band of the vocabulary (Baevski & Auli 2018, arXiv 1809.10853).

    Args:
        edges: End of each band; the last is the size of the vocabulary.
        width: Width of the first band.
        dim: Features of every embedding after the band's map.
        factor: Band i has width ⌊width / factorⁱ⌋.
        padding_idx: Padding token, in the first band; it gets no gradient.
    """

    def __init__(self, edges: list[int], width: int, dim: int, factor: float, padding_idx: int):
        super().__init__()
        starts = [0, *edges[:-1]]
        widths = [int(width // factor**i) for i in range(len(edges))]
        self.bands = list(zip(starts, edges, strict=True))
        self.dim = dim
        self.widths = widths
        self.embeddings = nn.ModuleList(
            nn.Embedding(end - start, w, padding_idx=None if start else padding_idx)
            for (start, end), w in zip(self.bands, widths, strict=True)
        )
        self.projections = nn.ModuleList(nn.Linear(w, dim, bias=False) for w in widths)

    def reset_parameters(self) -> None:
        """The published initial values of the maps."""
        for linear in self.projections:
            nn.init.xavier_uniform_(linear.get_parameter("weight"))

    def forward(self, tokens: Tensor) -> Tensor:
        """Embeddings (..., dim) of `tokens` (...)."""
        out = torch.empty(*tokens.shape, self.dim, device=tokens.device, dtype=next(self.parameters()).dtype)
        for (start, end), embed, project in zip(self.bands, self.embeddings, self.projections, strict=True):
            chosen = (tokens >= start) & (tokens < end)
            out[chosen] = project(embed(tokens[chosen] - start)).to(out.dtype)
        return out


class Transposed(nn.Module):
    """A linear map read backwards: x ↦ xW for the map with weight W."""

    def __init__(self, linear: Any):
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` (..., out_features) to (..., in_features)."""
        return x @ self.linear.weight


class EmbeddingWords(nn.Module):
    """Scores of words by their embeddings: x ↦ Ex."""

    def __init__(self, embedding: Any):
        super().__init__()
        self.embedding = embedding

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` (..., width) to (..., num_words)."""
        return x @ self.embedding.weight.mT


class AdaptiveSoftmax(nn.Module):
    """Log-probabilities from a head over frequent words and tail classes (Grave et al. 2017, arXiv 1609.04309).

        log p(w) = log softmax(head)[w] in the first band,  log softmax(head)[class] + log softmax(tail)[w] elsewhere

    Args:
        edges: End of each band; the last is the size of the vocabulary.
        dim: Features in.
        factor: Tail i has width ⌊dim / factor^(i+1)⌋.
        dropout: Probability of dropping entries of a tail's features.
        tied: Embeddings whose words are the output words too, or None.
        tie_maps: Whether the tails' maps are those embeddings' maps, transposed.
    """

    def __init__(
        self,
        edges: list[int],
        dim: int,
        factor: float,
        dropout: float,
        tied: AdaptiveInput | None,
        tie_maps: bool,
    ):
        super().__init__()
        widths = [dim, *(int(dim // factor ** (i + 1)) for i in range(len(edges) - 1))]
        if tied is not None:
            widths = tied.widths
        sizes = [end - start for start, end in zip([0, *edges], edges, strict=False)]
        maps: list[Any] = [nn.Linear(dim, width, bias=False) for width in widths]
        if tied is None:
            words: list[Any] = [nn.Linear(width, size, bias=False) for width, size in zip(widths, sizes, strict=True)]
        else:
            words = [EmbeddingWords(embedding) for embedding in tied.embeddings]
            if tie_maps:
                maps[1:] = [Transposed(linear) for linear in tied.projections[1:]]
        self.head_proj = maps[0] if widths[0] != dim else None
        self.head_words = words[0]
        self.head_classes = nn.Linear(dim, len(edges) - 1, bias=False)
        self.tail_proj = nn.ModuleList(maps[1:])
        self.tail_words = nn.ModuleList(words[1:])
        self.dropout = nn.Dropout(dropout)
        self.edges = edges
        self.num_frequent = sizes[0]

    def reset_parameters(self) -> None:
        """The published initial values of all maps that are its own."""
        for module in [self.head_classes, self.head_proj, self.head_words, *self.tail_proj, *self.tail_words]:
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)

    def head_logits(self, x: Tensor) -> Tensor:
        """Scores of the first band's words and of the tail classes, (..., num_frequent + num_tails)."""
        words = x if self.head_proj is None else self.head_proj(x)
        return torch.cat([self.head_words(words), self.head_classes(x)], dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        """Log-probabilities (..., vocab_size) of `x` (..., dim)."""
        head = self.head_logits(x).log_softmax(-1)
        bands = [head[..., : self.num_frequent]]
        for i, (project, words) in enumerate(zip(self.tail_proj, self.tail_words, strict=True), self.num_frequent):
            bands.append(words(self.dropout(project(x))).log_softmax(-1) + head[..., i, None])
        return torch.cat(bands, dim=-1)

    def total_loss(self, x: Tensor, targets: Tensor) -> Tensor:
        """Sum of −log p(target) in nats; the words of a tail are scored where the target is one of them alone.

        Args:
            x: (num_tokens, dim).
            targets: (num_tokens,) int64, −100 is not scored.
        """
        classes = targets.clone()
        total = x.new_zeros((), dtype=torch.promote_types(x.dtype, torch.float32))
        start = self.num_frequent
        for i, (project, words) in enumerate(zip(self.tail_proj, self.tail_words, strict=True)):
            end = self.edges[i + 1]
            rows = ((targets >= start) & (targets < end)).nonzero().squeeze(1)
            scores = words(self.dropout(project(x[rows]))).to(total.dtype)
            total = total + F.cross_entropy(scores, targets[rows] - start, reduction="sum")
            classes[rows] = self.num_frequent + i
            start = end
        head = self.head_logits(x).to(total.dtype)
        return total + F.cross_entropy(head, classes, ignore_index=-100, reduction="sum")


def vocabulary_edges(args: dict[str, Any], name: str) -> list[int]:
    """Ends of the bands of an adaptive vocabulary; cutoffs are written as a list or as text, "20000,60000"."""
    cutoffs = args.get(name)
    if isinstance(cutoffs, str):
        cutoffs = [int(number) for number in cutoffs.strip("[]() ").split(",")]
    edges = list(cutoffs or [])
    if not edges or edges != sorted(set(edges)) or edges[-1] > args["vocab_size"]:
        raise ValueError(
            f"`{name}` must be increasing numbers up to the {args['vocab_size']} tokens, got {args.get(name)!r}"
        )
    return edges if edges[-1] == args["vocab_size"] else [*edges, args["vocab_size"]]


def name_words_once(tensors: dict[str, Tensor], edges: list[int], tied: bool, tie_maps: bool) -> None:
    """Take the second names of tied tensors out, or cut a head that is not tied into its words and classes."""
    softmax, words = "decoder.adaptive_softmax", "decoder.embed_tokens.embeddings"
    if not tied:
        head = tensors.pop(f"{softmax}.head.weight", None)
        if head is not None:
            tensors[f"{softmax}.head.word_proj.weight"] = head[: edges[0]]
            tensors[f"{softmax}.head.class_proj.weight"] = head[edges[0] :]
        return
    for name in ("word_proj.weight", "word_proj.1.weight"):
        drop_second_name(tensors, f"{softmax}.head.{name}", f"{words}.0.0.weight")
    for i in range(len(edges) - 1):
        drop_second_name(tensors, f"{softmax}.tail.{i}.2.weight", f"{words}.{i + 1}.0.weight")
        if tie_maps:
            drop_second_name(tensors, f"{softmax}.tail.{i}.0.weight", f"{words}.{i + 1}.1.weight")
