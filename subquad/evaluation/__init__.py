"""Evaluation of trained models: perplexity, length extrapolation, speed and memory, and the comparison of runs."""

from subquad.evaluation.accuracy import AccuracyResult, evaluate_accuracy
from subquad.evaluation.efficiency import (
    Efficiency,
    GenerationSpeed,
    TrainingSpeed,
    generation_speed,
    measure_run,
    training_speed,
)
from subquad.evaluation.evaluate import evaluate_run
from subquad.evaluation.extrapolation import extrapolate, extrapolate_run, save_extrapolation
from subquad.evaluation.images import ImageResult, evaluate_images
from subquad.evaluation.perplexity import (
    PerplexityResult,
    evaluate_masked_perplexity,
    evaluate_perplexity,
)
from subquad.evaluation.report import compare
from subquad.evaluation.runs import Run

__all__ = [
    "AccuracyResult",
    "Efficiency",
    "GenerationSpeed",
    "ImageResult",
    "PerplexityResult",
    "Run",
    "TrainingSpeed",
    "compare",
    "evaluate_accuracy",
    "evaluate_images",
    "evaluate_masked_perplexity",
    "evaluate_perplexity",
    "evaluate_run",
    "extrapolate",
    "extrapolate_run",
    "generation_speed",
    "measure_run",
    "save_extrapolation",
    "training_speed",
]
