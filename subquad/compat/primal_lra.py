"""Primal-Attention on the Long Range Arena, as published: PrimalFormer, Primal.+Trans. and their softmax baseline.

A classifier of byte sequences: embeddings, two pre-norm blocks over all positions, the mean over the padded length, a
network of two layers. Padding has a token and positions like any other and is sampled; the mask only sets what a
Primal-Attention and the last norm return to zero, and hides keys from softmax attention.
"""

from typing import Any

import torch
from torch import Tensor, nn

from subquad.compat.primal import (
    PublishedLayer,
    PublishedPrimalAttention,
    blocks,
    score_names,
    square_of_mean,
    take_objectives,
)
from subquad.compat.reference import UNWRAP, Conversion, Rules, check_options, register_family
from subquad.mixers import Mixer, SoftmaxAttention
from subquad.mixers.base import State
from subquad.mixers.primal import mean_trace
from subquad.registry import unknown_name

NAMES: Rules = [
    (r"\bq_proj\.", "W_q."),
    (r"\bk_proj\.", "W_k."),
    (r"\bv_proj\.", "W_v."),
    (r"\boutput_proj\.", "ff."),
    *score_names("attn."),
]
MODEL_NAMES: Rules = [
    *NAMES,
    (r"\btoken_mixer\.", "mha."),
    (r"\btoken_norm\.", "norm1."),
    (r"\bchannel_norm\.", "norm2."),
    (r"\bchannel_mixer\.up_proj\.", "mlpblock.0."),
    (r"\bchannel_mixer\.down_proj\.", "mlpblock.3."),
    (r"^(word|position)_embeddings\.", r"model.embeddings.\1_embeddings."),
    (r"^norm\.", "model.norm."),
    (r"^head\.", "seq_classifer.mlpblock."),
]


class MaskedPrimalAttention(PublishedPrimalAttention):
    """The published bidirectional layer: what padding gets is set to zero before the output map.

    Args:
        dim: As in `PrimalAttention`.
        data_trace: Whether the trace in the objective is that of the sampled projections, not of the parameters.
        **options: As in `PrimalAttention`.
    """

    def __init__(self, dim: int, *, data_trace: bool = False, **options: Any):
        super().__init__(dim, causal=False, **options)
        self.data_trace = data_trace

    def mix(self, x: Tensor, state: State | None, mask: Tensor | None) -> tuple[Tensor, State | None]:
        """Mix a batch of rows."""
        e, r, _ = self.scores(x, None, None)
        self._objective = self.objective(e, r, None)
        if self.data_trace:
            parameters, sampled = (self.e_weight, self.r_weight), self.sampled_weights(x, None)
            self._objective = self._objective + mean_trace(*parameters) - mean_trace(*sampled)
        heads = self.combine(e, r)
        return self.output_proj(heads if mask is None else heads * mask.unsqueeze(-1)), None


class ByteClassifier(nn.Module):
    """The published classifier of one text, or of a pair.

    Args:
        layers: The blocks.
        dim: Features.
        hidden_size: Width of the last network.
        num_classes: Classes.
        vocab_size: Tokens; the last is the class token.
        num_positions: Learned positions.
        pair: Whether two texts are compared.
        class_token: Whether a class token takes the place of the mean.
        repeats: How often the blocks are run through.
        dropout: Probability of dropping entries of the embeddings.
    """

    def __init__(
        self,
        layers: nn.ModuleList,
        dim: int,
        hidden_size: int,
        *,
        num_classes: int,
        vocab_size: int,
        num_positions: int,
        pair: bool,
        class_token: bool,
        repeats: int,
        dropout: float,
    ):
        super().__init__()
        self.word_embeddings = nn.Embedding(vocab_size, dim)
        self.position_embeddings = nn.Embedding(num_positions, dim)
        self.dropout = nn.Dropout(dropout)
        self.layers = layers
        self.repeats = repeats
        self.norm = nn.LayerNorm(dim)
        width = 4 * dim if pair else dim
        self.head = nn.Sequential(nn.Linear(width, hidden_size), nn.ReLU(), nn.Linear(hidden_size, num_classes))
        self.pair = pair
        self.class_token = class_token

    def forward(
        self,
        input_ids_0: Tensor,
        mask_0: Tensor,
        input_ids_1: Tensor | None = None,
        mask_1: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Classify.

        Args:
            input_ids_0: (batch, length) int64.
            mask_0: (batch, length), 1 for real tokens.
            input_ids_1: The other texts of the pairs.
            mask_1: Their mask.

        Returns:
            `y` (batch, num_classes), the logits, and `ksvd` where a layer is a Primal-Attention.

        Raises:
            ValueError: If there is one text where a pair is wanted, or two where one is.
        """
        if self.pair != (input_ids_1 is not None and mask_1 is not None):
            wanted = "two texts and their masks" if self.pair else "one text and its mask"
            raise ValueError(f"this classifier takes {wanted}")
        features, objectives = self._encode(input_ids_0, mask_0)
        if input_ids_1 is not None and mask_1 is not None:
            other, theirs = self._encode(input_ids_1, mask_1)
            features = torch.cat([features, other, features * other, features - other], dim=-1)
            objectives = [(a.mean() + b.mean()) / 2 for a, b in zip(objectives, theirs, strict=True)]
        outputs = {"y": self.head(features)}
        return outputs | {"ksvd": square_of_mean(objectives)} if objectives else outputs

    def class_logits(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Logits (batch, num_classes) of `tokens` (batch, length), or (batch, 2, length) where pairs are compared."""
        mask = torch.ones_like(tokens) if mask is None else mask
        if self.pair:
            return self(tokens[:, 0], mask[:, 0], tokens[:, 1], mask[:, 1])["y"]
        return self(tokens, mask)["y"]

    @property
    def facts(self) -> dict[str, Any]:
        """What it takes and returns, as fields of a configuration."""
        return {
            "vocab_size": self.word_embeddings.num_embeddings,
            "position_embedding": "learned",
            "max_position_embeddings": self.position_embeddings.num_embeddings,
            "input_features": None,
            "classifier": "pair" if self.pair else "linear",
            "num_labels": self.head[-1].out_features,
        }

    def _encode(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Features of each text (batch, dim), and J of each Primal-Attention."""
        if self.class_token:
            first = torch.full_like(tokens[:, :1], self.word_embeddings.num_embeddings - 1)
            tokens = torch.cat([first, tokens[:, :-1]], dim=1)
            mask = torch.cat([torch.ones_like(mask[:, :1]), mask[:, :-1]], dim=1)
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.dropout(self.word_embeddings(tokens) + self.position_embeddings(positions))
        objectives = []
        for block in [*self.layers] * self.repeats:
            x = block(x, mask=mask.bool())[0]
            objectives += take_objectives(block)
        x = self.norm(x) * mask.unsqueeze(-1)
        return x[:, 0] if self.class_token else x.mean(1), objectives


@register_family("primal.lra")
def lra(
    tensors: dict[str, Tensor],
    *,
    transformer_dim: int,
    num_head: int,
    head_dim: int,
    low_rank: int,
    rank_multi: int = 10,
    trace_no_x: bool = False,
    attn_type: str = "primal_cos",
    max_seq_len: int | None = None,
    attention_grad_checkpointing: bool = False,
) -> Conversion:
    """The bidirectional layer over (batch, length, dim) and a mask."""
    _check_attention(attn_type, ("primal_cos",), transformer_dim, num_head, head_dim)
    attention = _attention(transformer_dim, num_head, low_rank, rank_multi, trace_no_x)
    tensors.pop("indices", None)
    return Conversion(PublishedLayer(attention, reduction=square_of_mean), tensors, [*UNWRAP, *NAMES])


def _attention(dim: int, num_head: int, low_rank: int, rank_multi: int, trace_no_x: bool) -> MaskedPrimalAttention:
    options = {"rank": low_rank, "num_samples": low_rank * rank_multi, "data_trace": not trace_no_x}
    return MaskedPrimalAttention(dim, num_heads=num_head, **options)


def _check_attention(attn_type: str, known: tuple[str, ...], dim: int, num_head: int, head_dim: int) -> None:
    if attn_type not in known:
        raise ValueError(unknown_name("attn_type", attn_type, known))
    if num_head * head_dim != dim:
        raise ValueError(f"`num_head` · `head_dim` must be `transformer_dim` {dim}, got {num_head} · {head_dim}")


def _classifier(
    tensors: dict[str, Tensor],
    hybrid: bool,
    *,
    model_class: str = "ModelForSC",
    attn_type: str = "primal_cos",
    vocab_size: int,
    num_classes: int,
    max_seq_len: int,
    embedding_dim: int,
    transformer_dim: int,
    transformer_hidden_dim: int,
    num_layers: int,
    num_head: int,
    head_dim: int,
    low_rank: int | None = None,
    rank_multi: int = 10,
    trace_no_x: bool = False,
    eta: float = 0.0,
    pooling_mode: str = "MEAN",
    tied_weights: bool = False,
    learn_pos_emb: bool = True,
    dropout_prob: float = 0.1,
    attention_dropout: float = 0.1,
    mixed_precision: bool = False,
    attention_grad_checkpointing: bool = False,
    num_positions: int | None = None,
) -> Conversion:
    """Both models, and their baseline where `attn_type` is "softmax"; `learn_pos_emb` is never read.

    `num_positions`, no key of the original, is a power of two from `max_seq_len` on; None: the weights say it.
    `hybrid` is two layers, softmax and primal, whatever `num_layers` and `tied_weights` say.
    """
    _check_attention(attn_type, ("primal_cos", "softmax"), transformer_dim, num_head, head_dim)
    hybrid = hybrid and attn_type == "primal_cos"
    for name, value, known in (
        ("model_class", model_class, ("ModelForSC", "ModelForSCDual")),
        ("pooling_mode", pooling_mode, ("MEAN", "CLS")),
    ):
        if value not in known:
            raise ValueError(unknown_name(name, value, known))
    if embedding_dim != transformer_dim:
        raise ValueError(f"`embedding_dim` must be `transformer_dim` {transformer_dim}, got {embedding_dim}")
    if attn_type == "primal_cos" and low_rank is None:
        raise ValueError("the configuration of a Primal-Attention must have low_rank")
    kinds = ["softmax", "primal_cos"] if hybrid else [attn_type] * num_layers
    mixers: list[Mixer] = []
    for kind in kinds:
        if kind == "softmax":
            softmax = SoftmaxAttention(transformer_dim, causal=False, num_heads=num_head, dropout=attention_dropout)
            mixers.append(softmax)
        else:
            mixers.append(_attention(transformer_dim, num_head, low_rank or 0, rank_multi, trace_no_x))
    tied = tied_weights and not hybrid
    table = tensors.get("model.embeddings.position_embeddings.weight")
    classifier = ByteClassifier(
        blocks(mixers[:1] if tied else mixers, transformer_hidden_dim, dropout=dropout_prob),
        transformer_dim,
        transformer_hidden_dim,
        num_classes=num_classes,
        vocab_size=vocab_size,
        num_positions=num_positions or (max_seq_len if table is None else len(table)),
        pair=model_class == "ModelForSCDual",
        class_token=pooling_mode == "CLS",
        repeats=len(mixers) if tied else 1,
        dropout=dropout_prob,
    )
    layer = r"model.transformer" if tied else r"model.transformer\1" if tied_weights else r"model.transformer_\1"
    return Conversion(classifier, tensors, [*MODEL_NAMES, (r"^layers\.(\d+)", layer)])


@register_family("primal.lra_former")
def lra_former(tensors: dict[str, Tensor], **config: Any) -> Conversion:
    """PrimalFormer, or with `attn_type` "softmax" the published baseline."""
    check_options("primal.lra_former", _classifier, config)
    return _classifier(tensors, False, **config)


@register_family("primal.lra_trans")
def lra_trans(tensors: dict[str, Tensor], **config: Any) -> Conversion:
    """Primal.+Trans., a softmax layer, then a primal one, or with `attn_type` "softmax" the published baseline."""
    check_options("primal.lra_trans", _classifier, config)
    return _classifier(tensors, True, **config)
