"""Metrics of classification and regression, each of a whole data set: never the mean over batches.

Where a metric is not defined (nothing predicted or true is positive, or one side is constant) it is 0: such a
prediction says nothing about the truth.
"""

import math

import numpy as np


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """The share of predictions that are right.

    Args:
        predictions: (examples,) classes.
        labels: (examples,) true classes.

    Raises:
        ValueError: There are no examples, or not equally many predictions and labels.
    """
    predictions, labels = _pair(predictions, labels)
    return float((predictions == labels).mean())


def f1(predictions: np.ndarray, labels: np.ndarray, positive: int = 1) -> float:
    """The harmonic mean of precision and recall of one class, F₁ = 2 TP / (2 TP + FP + FN).

    Args:
        predictions: (examples,) classes.
        labels: (examples,) true classes.
        positive: The class.

    Raises:
        ValueError: As `accuracy`.
    """
    predictions, labels = _pair(predictions, labels)
    found, wanted = predictions == positive, labels == positive
    total = int(found.sum() + wanted.sum())
    return 2 * int((found & wanted).sum()) / total if total else 0.0


def matthews_correlation(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Matthews' correlation coefficient of any number of classes (Gorodkin, 2004, R_K).

    Args:
        predictions: (examples,) classes.
        labels: (examples,) true classes.

    Raises:
        ValueError: As `accuracy`.
    """
    predictions, labels = _pair(predictions, labels)
    classes = np.union1d(predictions, labels)
    found, wanted = (values[:, None] == classes for values in (predictions, labels))
    # Pearson's correlation of the indicators, summed over the classes; in whole numbers it is exact.
    num = len(labels)
    predicted, true = found.sum(0).tolist(), wanted.sum(0).tolist()
    covariance = num * int((found & wanted).sum()) - sum(p * t for p, t in zip(predicted, true, strict=True))
    variances = (num * num - sum(count * count for count in counts) for counts in (predicted, true))
    scale = math.sqrt(math.prod(variances))
    return covariance / scale if scale else 0.0


def pearson_correlation(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Pearson's correlation coefficient.

    Args:
        predictions: (examples,) numbers.
        labels: (examples,) true numbers.

    Raises:
        ValueError: As `accuracy`.
    """
    x, y = (values.astype(np.float64) for values in _pair(predictions, labels))
    if not (np.ptp(x) and np.ptp(y)):
        return 0.0
    x, y = x - x.mean(), y - y.mean()
    return float(np.clip((x @ y) / (np.linalg.norm(x) * np.linalg.norm(y)), -1, 1))


def spearman_correlation(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Spearman's rank correlation coefficient: Pearson's of the ranks; equal numbers share the mean of their ranks.

    Args:
        predictions: (examples,) numbers.
        labels: (examples,) true numbers.

    Raises:
        ValueError: As `accuracy`.
    """
    predictions, labels = _pair(predictions, labels)
    return pearson_correlation(_ranks(predictions), _ranks(labels))


def _ranks(values: np.ndarray) -> np.ndarray:
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[which]


def _pair(predictions: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    if predictions.shape != labels.shape or labels.ndim != 1 or not len(labels):
        raise ValueError(
            "a metric needs equally many predictions and labels, (examples,) each and at least one, got "
            f"{predictions.shape} and {labels.shape}"
        )
    return predictions, labels
