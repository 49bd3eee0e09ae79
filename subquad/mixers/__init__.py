"""Token mixers: what lets the positions of a sequence see each other. One file each; see `base` for the protocol."""

from subquad.mixers.base import MIXERS, Mixer, State, build_mixer, register_mixer
from subquad.mixers.hgrn2 import HGRN2
from subquad.mixers.hgru import HGRU, HGRU2D
from subquad.mixers.primal import PrimalAttention
from subquad.mixers.softmax import SoftmaxAttention
from subquad.mixers.tno import GTU, GTU2D, TNO

__all__ = [
    "GTU",
    "GTU2D",
    "HGRN2",
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
