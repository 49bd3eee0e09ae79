"""Token mixers: what lets the positions of a sequence see each other. One file each; see `base` for the protocol."""

from subquad.mixers.base import MIXERS, Mixer, State, build_mixer, register_mixer
from subquad.mixers.hgru import HGRU, HGRU2D
from subquad.mixers.primal import PrimalAttention
from subquad.mixers.softmax import SoftmaxAttention
from subquad.mixers.tno import GTU, GTU2D, TNO

__all__ = [
    "GTU",
    "GTU2D",
    "HGRU",
    "HGRU2D",
    "MIXERS",
    "TNO",
    "Mixer",
    "PrimalAttention",
    "SoftmaxAttention",
    "State",
    "build_mixer",
    "register_mixer",
]
