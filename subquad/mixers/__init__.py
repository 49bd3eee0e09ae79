"""Token mixers: what lets the positions of a sequence see each other. One file each; see `base` for the protocol."""

from subquad.mixers.base import MIXERS, Mixer, State, build_mixer, register_mixer
from subquad.mixers.diag_attention import DiagAttention, DiagAttention2D
from subquad.mixers.fd_tno import FDGTU, FDGTU2D, FDTNO
from subquad.mixers.hgrn2 import HGRN2
from subquad.mixers.hgru import HGRU, HGRU2D
from subquad.mixers.norm_attention import NormAttention
from subquad.mixers.primal import PrimalAttention
from subquad.mixers.ski_tno import SKIGTU, SKIGTU2D, SKITNO
from subquad.mixers.softmax import SoftmaxAttention
from subquad.mixers.tno import GTU, GTU2D, TNO

__all__ = [
    "FDGTU",
    "FDGTU2D",
    "FDTNO",
    "GTU",
    "GTU2D",
    "HGRN2",
    "HGRU",
    "HGRU2D",
    "MIXERS",
    "SKIGTU",
    "SKIGTU2D",
    "SKITNO",
    "TNO",
    "DiagAttention",
    "DiagAttention2D",
    "Mixer",
    "NormAttention",
    "PrimalAttention",
    "SoftmaxAttention",
    "State",
    "build_mixer",
    "register_mixer",
]
