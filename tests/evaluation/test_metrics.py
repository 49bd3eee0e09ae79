"""Metrics against closed forms, and where they are installed against scikit-learn and scipy."""

import numpy as np
import pytest

from subquad.evaluation.metrics import accuracy, f1, matthews_correlation, pearson_correlation, spearman_correlation

# Confusion of two classes: 30 true positives, 5 false positives, 10 false negatives, 55 true negatives.
PREDICTED = np.repeat([1, 1, 0, 0], [30, 5, 10, 55])
TRUE = np.repeat([1, 0, 1, 0], [30, 5, 10, 55])


def test_two_classes_by_their_confusion_matrix():
    assert accuracy(PREDICTED, TRUE) == 0.85
    assert f1(PREDICTED, TRUE) == pytest.approx(2 * (30 / 35) * (30 / 40) / (30 / 35 + 30 / 40))
    assert f1(PREDICTED, TRUE, positive=0) == pytest.approx(2 * 55 / (2 * 55 + 15))
    expected = (30 * 55 - 5 * 10) / np.sqrt(35.0 * 40 * 60 * 65)
    assert matthews_correlation(PREDICTED, TRUE) == pytest.approx(expected)


def test_matthews_of_two_classes_is_pearson():
    assert matthews_correlation(PREDICTED, TRUE) == pytest.approx(pearson_correlation(PREDICTED, TRUE))
    assert matthews_correlation(1 - PREDICTED, TRUE) == pytest.approx(-matthews_correlation(PREDICTED, TRUE))


def test_matthews_of_three_classes():
    # Gorodkin's R_K: (c·s − Σ p_k t_k) / √((s² − Σ p_k²)(s² − Σ t_k²)) with s = 4, c = 3, p = (1, 2, 1), t = (1, 1, 2).
    assert matthews_correlation(np.array([0, 1, 1, 2]), np.array([0, 1, 2, 2])) == pytest.approx(7 / 10)


def test_the_order_of_examples_does_not_count():
    order = np.random.default_rng(0).permutation(len(TRUE))
    for metric in (accuracy, f1, matthews_correlation):
        assert metric(PREDICTED[order], TRUE[order]) == metric(PREDICTED, TRUE)


def test_correlations_of_numbers():
    x = np.array([1.0, 2.0, 3.0, 4.0])
    assert pearson_correlation(3 * x - 7, x) == pytest.approx(1)
    assert pearson_correlation(-x, x) == pytest.approx(-1)
    assert pearson_correlation(x**2, x) == pytest.approx(25 / np.sqrt(5 * 129))
    assert spearman_correlation(np.exp(x), x) == pytest.approx(1)
    # Ranks (1, 2.5, 2.5, 4) and (2, 1, 3, 4): covariance 3, variances 4.5 and 5.
    assert spearman_correlation(np.array([0.0, 5, 5, 9]), np.array([2.0, 1, 3, 4])) == pytest.approx(
        3 / np.sqrt(4.5 * 5)
    )


def test_a_large_offset_costs_no_precision():
    x = np.arange(100.0)
    assert pearson_correlation(x + 1e8, x) == pytest.approx(1, abs=1e-12)


def test_a_prediction_that_says_nothing_has_no_correlation():
    same, true = np.zeros(4), np.array([0, 1, 0, 1])
    assert matthews_correlation(same, true) == 0
    assert pearson_correlation(same, true) == spearman_correlation(same, true) == 0
    assert f1(same, same) == 0


@pytest.mark.parametrize("metric", [accuracy, f1, matthews_correlation, pearson_correlation, spearman_correlation])
def test_what_cannot_be_compared_is_refused(metric):
    with pytest.raises(ValueError, match=r"got \(3,\) and \(2,\)"):
        metric(np.zeros(3), np.zeros(2))
    with pytest.raises(ValueError, match="at least one"):
        metric(np.zeros(0), np.zeros(0))


@pytest.mark.parametrize("seed", range(3))
def test_against_scikit_learn_and_scipy(seed):
    sklearn, stats = pytest.importorskip("sklearn.metrics"), pytest.importorskip("scipy.stats")
    draw = np.random.default_rng(seed)
    for classes in (2, 3):
        a, b = draw.integers(classes, size=(2, 200))
        assert accuracy(a, b) == pytest.approx(sklearn.accuracy_score(b, a))
        assert matthews_correlation(a, b) == pytest.approx(sklearn.matthews_corrcoef(b, a))
        for positive in range(classes):
            expected = sklearn.f1_score(b == positive, a == positive)
            assert f1(a, b, positive) == pytest.approx(expected)
    x, y = draw.normal(size=(2, 200)).round(1)
    y += x
    assert pearson_correlation(x, y) == pytest.approx(stats.pearsonr(x, y).statistic)
    assert spearman_correlation(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
