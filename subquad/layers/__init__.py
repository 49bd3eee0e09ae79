"""What stands around a token mixer: norms, activations, channel mixers, positions, lower bounds."""

from subquad.layers.activations import ACTIVATIONS, activation, gated
from subquad.layers.channel_mixers import FFN, GLU, build_channel_mixer
from subquad.layers.lower_bounds import LowerBounds, shared_lower_bounds
from subquad.layers.lrpe import LRPE, RELATIVE_POSITIONS, RotaryPositions, build_relative_positions
from subquad.layers.norms import NORMS, BatchNorm, apply_norm, apply_norm_to_heads, build_norm
from subquad.layers.patches import PATCH_EMBEDDINGS, PatchEmbedding, build_patch_embedding
from subquad.layers.positions import SinusoidalPositions, apply_rotary
from subquad.layers.relative_position_encoder import RelativePositionEncoder

__all__ = [
    "ACTIVATIONS",
    "FFN",
    "GLU",
    "LRPE",
    "NORMS",
    "PATCH_EMBEDDINGS",
    "RELATIVE_POSITIONS",
    "BatchNorm",
    "LowerBounds",
    "PatchEmbedding",
    "RelativePositionEncoder",
    "RotaryPositions",
    "SinusoidalPositions",
    "activation",
    "apply_norm",
    "apply_norm_to_heads",
    "apply_rotary",
    "build_channel_mixer",
    "build_norm",
    "build_patch_embedding",
    "build_relative_positions",
    "gated",
    "shared_lower_bounds",
]
