"""Long Range Arena (Tay et al., 2021, arXiv 2011.04006): generators and readers of its tasks."""

from subquad.data.lra.cifar import read_cifar10
from subquad.data.lra.datasets import LRAData, open_lra
from subquad.data.lra.listops import ListOpsLimits, evaluate_listops, generate_listops
from subquad.data.lra.pathfinder import draw_pathfinder, generate_pathfinder, pathfinder_parameters
from subquad.data.lra.readers import read_listops, read_pathfinder, read_retrieval, read_text
from subquad.data.lra.stand_ins import make_stand_ins
from subquad.data.lra.vocabulary import FrequencyVocabulary
from subquad.data.splits import random_split

__all__ = [
    "FrequencyVocabulary",
    "LRAData",
    "ListOpsLimits",
    "draw_pathfinder",
    "evaluate_listops",
    "generate_listops",
    "generate_pathfinder",
    "make_stand_ins",
    "open_lra",
    "pathfinder_parameters",
    "random_split",
    "read_cifar10",
    "read_listops",
    "read_pathfinder",
    "read_retrieval",
    "read_text",
]
