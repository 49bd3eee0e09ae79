"""TransNormer as published (arXiv 2210.10340): the mixers of fairseq-evo, and what they are made of.

What the published code computes beyond our mixers stands here: zero rows that take part in a softmax, activations that
make hidden scores count, positions with other angles or a learned reflection, and linear attention inside blocks. The
published mixers ignore padding: nothing here hands them a mask.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from subquad.compat import fairseq, tnn
from subquad.compat.reference import UNWRAP, Conversion, OnlyOutput, Rules, activation_name, norm_name, register_family
from subquad.layers import GLU, RotaryPositions, build_norm
from subquad.mixers import DiagAttention, build_mixer
from subquad.ops import rotate_pairs
from subquad.registry import unknown_name

KINDS = {1: "norm_attention", 2: "diag_attention"}
"""Our mixers by their published numbers."""

NORM_NAMES = {"norm_attention": "layer_norm", "diag_attention": "norm"}
"""What the norm inside a mixer is called."""

Changes = dict[str, Callable[[Any], Any]]
"""What a published mixer has and ours has not: a description, and a function from our mixer to the published one."""


class PublishedPositions(RotaryPositions):
    """Positions by rotation with all published options (class `Urpe`).

    Args:
        dim: Features of a query or key.
        p_matrix: 3 reflects the features first, 1 does not.
        theta_learned: Whether the angles per position are a parameter.
        theta_type: Those that are none, with n the length: "a" 10000^(−2m/d), "b" π/2/n/(d/2)·(m+1), "c" π/2/n/(m+1).
        householder_learned: Whether the reflection is learned, and divided by its norm.
        length: n, where it is not the number of positions: the size of a block.
    """

    def __init__(
        self,
        dim: int,
        *,
        p_matrix: int,
        theta_learned: bool,
        theta_type: str,
        householder_learned: bool,
        length: int | None = None,
    ):
        super().__init__(dim)
        if p_matrix not in (1, 3):
            raise ValueError(f"`p_matrix` must be 1 (nothing) or 3 (a reflection), got {p_matrix}")
        if theta_type not in ("a", "b", "c"):
            raise ValueError(unknown_name("theta_type", theta_type, ("a", "b", "c")))
        self.theta = nn.Parameter(torch.empty(dim // 2)) if theta_learned else None
        self.theta_type = theta_type
        self.length = length
        self.reflection = nn.Parameter(torch.empty(dim), requires_grad=householder_learned) if p_matrix == 3 else None

    def angles(self, positions: Tensor) -> Tensor:
        """Angles (..., dim // 2) of `positions` (...)."""
        if self.theta is not None or self.theta_type == "a":
            return super().angles(positions)
        half = self.dim // 2
        order = torch.arange(1, half + 1, device=positions.device, dtype=torch.float64)
        length = int(positions.max()) + 1 if self.length is None else self.length
        theta = math.pi / 2 / length * (order / half if self.theta_type == "b" else 1 / order)
        return positions.double().unsqueeze(-1) * theta

    def frequencies(self, device: torch.device) -> Tensor:
        """Angles per position (dim // 2,), float64."""
        return super().frequencies(device) if self.theta is None else self.theta.double()

    def forward(self, x: Tensor, angles: Tensor, elu: float | None = None) -> Tensor:
        """Encode queries or keys, as in `RotaryPositions`."""
        direction = self.reflection
        if direction is not None and direction.requires_grad:
            direction = direction / (torch.linalg.vector_norm(direction) + 1e-6)
        return rotate_pairs(x, angles, direction, elu=elu)


class LeakyDiagAttention(DiagAttention):
    """Attention inside blocks in which keys that nobody should see count: each as one of score 0.

    Bidirectional, with a softmax, these are the zero rows that fill the last block. Causal, with an activation φ, they
    are the later keys: φ(0) is not always 0.
    """

    def weights(self, scores: Tensor, visible: Tensor) -> Tensor:
        """What each key counts for each query, as in `DiagAttention`."""
        if self.activation is not None:
            return self.activation(scores.masked_fill(~visible, 0.0))
        return super().weights(scores, visible if self.causal else torch.ones_like(visible))


class LinearDiagAttention(DiagAttention):
    """Linear attention inside blocks (`group_type` "linear_chunk"): scores of feature maps count as they are.

    Args:
        dim: As in `DiagAttention`.
        causal: As in `DiagAttention`.
        feature_map: Of queries, divided by √e, and keys.
        **options: As in `DiagAttention`.
    """

    def __init__(self, dim: int, causal: bool, *, feature_map: Callable[[Tensor], Tensor], **options: Any):
        super().__init__(dim, causal, **{**options, "kernel": "identity"})
        self.feature_map = feature_map

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features of queries and keys, and values (batch, length, heads, head_dim)."""
        q, k, v = super().project(x)
        return self.feature_map(q), self.feature_map(k), v


class VanillaDiagAttention(LinearDiagAttention):
    """Linear attention inside blocks with a denominator (`group_type` "vanilla_linear_chunk"): weights add up to 1.

    Bidirectional, the zero rows that fill the last block count in it: each as a key φ(0).
    """

    def weights(self, scores: Tensor, visible: Tensor) -> Tensor:
        """What each key counts for each query, as in `DiagAttention`."""
        weights = super().weights(scores, visible if self.causal else torch.ones_like(visible))
        total = weights.sum(-1, keepdim=True)
        # Queries of rows that fill a block have no weights.
        return weights / total.masked_fill(total == 0, 1.0)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
        if not self.causal:
            zero = self.feature_map(k.new_zeros(self.block_size, 1, k.shape[-1]))
            _, filling = self.encode(zero, zero, torch.arange(self.block_size, device=k.device))
            k = k.where(visible.mT, filling.squeeze(1))
        return super()._attend(q, k, v, visible)


LINEAR_GROUPS = {"linear_chunk": LinearDiagAttention, "vanilla_linear_chunk": VanillaDiagAttention}


class Urpe(nn.Module):
    """Positions by rotation called as published: (..., length, dim), positions along the last axis but one."""

    def __init__(self, positions: RotaryPositions):
        super().__init__()
        self.positions = positions

    def forward(self, x: Tensor) -> Tensor:
        """Encode `x` (..., length, dim)."""
        return self.positions(x, self.positions.angles(torch.arange(x.shape[-2], device=x.device)))


def published_positions(
    dim: int,
    *,
    core_matrix: int = 1,
    p_matrix: int = 1,
    theta_type: str = "a",
    theta_learned: bool = False,
    householder_learned: bool = False,
    length: int | None = None,
) -> PublishedPositions:
    """Published positions of `dim` features, with the published names of their options."""
    if core_matrix != 1:
        raise ValueError(f"`core_matrix` must be 1, the rotation of all published models, got {core_matrix}")
    return PublishedPositions(
        dim,
        p_matrix=p_matrix,
        theta_learned=theta_learned,
        theta_type=theta_type,
        householder_learned=householder_learned,
        length=length,
    )


def attention(
    kind: str,
    causal: bool,
    *,
    embed_dim: int,
    num_heads: int,
    act_fun: Any,
    norm_type: str | None,
    positions: dict[str, Any] | None,
    bias: bool = True,
    group_type: str = "chunk",
    chunk_size: int = 64,
    use_softmax: bool = False,
    dropout: float = 0.0,
) -> tuple[dict[str, Any], Changes]:
    """A published mixer as a description of ours, and what ours has not.

    Args:
        kind: "norm_attention" or "diag_attention"; the options after `bias` are those of the second.
        causal: Whether a position sees only itself and earlier ones.
        embed_dim: Features.
        num_heads: Heads.
        act_fun: Published activation.
        norm_type: Published norm of the concatenated heads, or None.
        positions: Published options of `Urpe`, or None for no positions.
        bias: Whether the maps have biases.
        group_type: "chunk", "linear_chunk" or "vanilla_linear_chunk".
        chunk_size: Positions of a block.
        use_softmax: Whether a softmax of the scores counts, not their activation; then there is no norm, in any group.
        dropout: Probability of dropping weights.

    Raises:
        ValueError: If the options are not those of a published model.
    """
    changes: Changes = {}
    options: dict[str, Any] = {"type": kind, "num_heads": num_heads, "bias": bias, "positions": None}
    norm = None if norm_type is None else norm_name(norm_type)
    function = fairseq.function(act_fun)

    def instead(mixer: type[DiagAttention], **more: Any) -> Callable[[Any], Any]:
        return lambda _: mixer(embed_dim, causal, **{k: v for k, v in options.items() if k != "type"}, **more)

    if kind == "norm_attention":
        options |= {"activation": activation_name(act_fun), "norm": norm}
        if act_fun in fairseq.FUNCTIONS:
            changes[f"activation {act_fun!r}"] = _setter("activation", function)
    else:
        if group_type != "chunk" and group_type not in LINEAR_GROUPS:
            raise ValueError(
                f"`group_type` must be 'chunk', 'linear_chunk' or 'vanilla_linear_chunk', got {group_type!r}: other "
                "groups are of no published model, and 'window' mixes rows of a batch"
            )
        softmax = use_softmax and group_type == "chunk"
        options |= {"block_size": chunk_size, "dropout": dropout, "norm": None if use_softmax else norm}
        options["kernel"] = "softmax" if softmax else activation_name(act_fun)
        if group_type in LINEAR_GROUPS:
            changes["linear attention inside blocks"] = instead(LINEAR_GROUPS[group_type], feature_map=function)
            if use_softmax:
                changes["no norm"] = _setter("norm", nn.Identity())
        else:
            leaks = not causal if softmax else causal and bool(function(torch.zeros(1, device="cpu")))
            if leaks:
                changes["keys that nobody should see"] = instead(LeakyDiagAttention)
            if not softmax and act_fun in fairseq.FUNCTIONS:
                changes[f"activation {act_fun!r}"] = _setter("activation", function)
    if positions is not None:
        length = chunk_size if kind == "diag_attention" else None
        ours = published_positions(embed_dim // num_heads, length=length, **positions)
        if ours.reflection is None and ours.theta is None and ours.theta_type == "a":
            options["positions"] = "rotary"
        elif ours.reflection is not None and ours.theta is not None and not ours.reflection.requires_grad:
            options["positions"] = "lrpe"
        else:
            changes[f"positions with {positions}"] = _setter("positions", ours)
    return options, changes


def _setter(name: str, value: Any) -> Callable[[Any], Any]:
    def change(mixer: Any) -> Any:
        setattr(mixer, name, value)
        return mixer

    return change


def build(options: dict[str, Any], changes: Changes, dim: int, causal: bool) -> Any:
    """The published mixer."""
    mixer = build_mixer(options, dim, causal)
    for change in changes.values():
        mixer = change(mixer)
    return mixer


def norm_weight(norm_type: str | None) -> str:
    """What the weight of a published norm is called."""
    return {"rmsnorm": "scale", "gatedrmsnorm": "scale", "scalenorm": "scala"}.get(norm_type or "", "weight")


def mixer_names(where: str, kind: str, norm_type: str | None) -> Rules:
    """Names inside a mixer; `where` is a regular expression for what comes before them."""
    return [
        (rf"({where})norm\.weight$", rf"\1norm.{norm_weight(norm_type)}"),
        (rf"({where})norm\.", rf"\1{NORM_NAMES[kind]}."),
        (rf"({where})output_proj\.", r"\1out_proj."),
        (rf"({where})positions\.theta$", r"\1urpe.theta"),
        (rf"({where})positions\.reflection$", r"\1urpe.v"),
    ]


def flat_angles(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Angles of shape (1, 1, dim // 2) as (dim // 2,), and a norm under its name of today."""
    return {
        name.replace(".gated_rms_norm.", ".norm."): t.flatten() if name.split(".")[-1] == "theta" else t
        for name, t in tensors.items()
    }


def used_tensors(tensors: dict[str, Tensor], use_softmax: Any) -> dict[str, Tensor]:
    """The tensors without those of norms inside blocks, which stand in files with a softmax too, where none is used."""
    if not use_softmax:
        return tensors
    return {name: t for name, t in tensors.items() if not re.match(r"((.*\.)?self_attn\.)?norm\.", name)}


@register_family("transnormer.SimpleRMSNorm")
def norm(tensors: dict[str, Tensor], *, d: int) -> Conversion:
    """The norm without parameters over the last axis."""
    return Conversion(build_norm("simple_rmsnorm", d), tensors)


@register_family("transnormer.Urpe")
def urpe(
    tensors: dict[str, Tensor],
    *,
    core_matrix: int,
    p_matrix: int,
    embedding_dim: int,
    theta_type: str = "a",
    theta_learned: bool = False,
    householder_learned: bool = False,
    max_positions: int = 512,
) -> Conversion:
    """Positions by rotation over (..., length, dim); `max_positions` is ignored."""
    positions = published_positions(
        embedding_dim,
        core_matrix=core_matrix,
        p_matrix=p_matrix,
        theta_type=theta_type,
        theta_learned=theta_learned,
        householder_learned=householder_learned,
    )
    names = [(r"^positions\.theta$", "theta"), (r"^positions\.reflection$", "v")]
    return Conversion(Urpe(positions), flat_angles(tensors), names)


@register_family("transnormer.GLU")
def glu(
    tensors: dict[str, Tensor], *, d1: int, d2: int, act_fun: Any, fina_act: Any = "None", dropout: float = 0.0
) -> Conversion:
    """A gated linear unit over (..., d1); "swish" is none of the published activations, and means the identity."""
    unit = GLU(d1, d2, dropout=dropout)
    unit.activation = fairseq.function(act_fun)
    module = nn.Sequential(unit, fairseq.Elementwise(fairseq.function(fina_act)))
    return Conversion(module, tensors, [(r"^0\.", ""), *tnn.GLU_NAMES])


@register_family("transnormer.NormAttention")
def norm_attention(
    tensors: dict[str, Tensor],
    *,
    embed_dim: int,
    num_heads: int,
    act_fun: Any = "gelu",
    norm_type: str = "layernorm",
    causal: bool = False,
    bias: bool = True,
    use_urpe: bool = False,
    attention_use_layer_norm: bool = True,
    **positions: Any,
) -> Conversion:
    """Linear attention with a norm over (length, batch, dim)."""
    return _attention(
        tensors,
        "norm_attention",
        causal,
        embed_dim=embed_dim,
        num_heads=num_heads,
        act_fun=act_fun,
        norm_type=norm_type if attention_use_layer_norm else None,
        positions=_urpe_options(positions, use_urpe),
        bias=bias,
    )


@register_family("transnormer.DiagAttention")
def diag_attention(
    tensors: dict[str, Tensor],
    *,
    embed_dim: int,
    num_heads: int,
    act_fun: Any = "relu",
    norm_type: str = "gatedrmsnorm",
    chunk_size: int = 32,
    group_type: str = "chunk",
    causal: bool = False,
    use_softmax: bool = False,
    bias: bool = True,
    dropout: float = 0.0,
    use_urpe: bool = False,
    **positions: Any,
) -> Conversion:
    """Attention inside blocks over (length, batch, dim)."""
    return _attention(
        used_tensors(tensors, use_softmax),
        "diag_attention",
        causal,
        embed_dim=embed_dim,
        num_heads=num_heads,
        act_fun=act_fun,
        norm_type=norm_type,
        positions=_urpe_options(positions, use_urpe),
        bias=bias,
        group_type=group_type,
        chunk_size=chunk_size,
        use_softmax=use_softmax,
        dropout=dropout,
    )


def _attention(tensors: dict[str, Tensor], kind: str, causal: bool, **arguments: Any) -> Conversion:
    options, changes = attention(kind, causal, **arguments)
    module = OnlyOutput(build(options, changes, arguments["embed_dim"], causal), time_first=True)
    return Conversion(module, flat_angles(tensors), [*UNWRAP, *mixer_names("^", kind, arguments["norm_type"])])


URPE_OPTIONS = ("core_matrix", "p_matrix", "theta_type", "theta_learned", "householder_learned")

# What the published constructors take, and never read or for initial values alone.
DEAD_OPTIONS = re.compile(
    "index|has_out|max_l|max_positions|c|p|(v|kv|out_use)_act|negative_slope|lambda_|model_update_freq|init_type|rope_type|"
    "q_noise|qn_block_size|self_attention|use_(relu|elu|leak|bound|layer_norm|gelu|rope|v)|qk_layer_norm|(mem|seq)_.*"
)


def _urpe_options(options: dict[str, Any], use_urpe: bool) -> dict[str, Any] | None:
    options = {name: value for name, value in options.items() if not DEAD_OPTIONS.fullmatch(name)}
    for name in options:
        if name not in URPE_OPTIONS:
            raise ValueError(unknown_name("option of a TransNormer mixer", name, URPE_OPTIONS))
    return options if use_urpe else None
