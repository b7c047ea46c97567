"""Metrics that are no mean: weighted forms against scikit-learn and scipy, and the comparison built on them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from bench.simulated import NOISES, simulate
from scipy import stats
from sklearn import metrics

from fleetune.seeds import stream
from fleetune.stats.compare import compare
from fleetune.stats.multiple import holm_family
from fleetune.stats.scores import compare_scores, pseudo_values
from fleetune.stats.weighted import scorer_of

ORACLES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": lambda p, y: metrics.accuracy_score(y, p),
    "f1": lambda p, y: metrics.f1_score(y, p, labels=[1], average="macro", zero_division=0.0),
    "f1_macro": lambda p, y: metrics.f1_score(y, p, average="macro", zero_division=0.0),
    "matthews_correlation": lambda p, y: metrics.matthews_corrcoef(y, p),
    "pearson": lambda p, y: float(stats.pearsonr(p, y).statistic),
    "spearmanr": lambda p, y: float(stats.spearmanr(p, y).statistic),
}
OF_TARGETS = ("pearson", "spearmanr")


def rows(name: str, i: int, seeds: int, n: int, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    draw = stream(30, name, i)
    if name in OF_TARGETS:
        labels = np.round(draw.uniform(0, 5, n), 1)
        return labels + draw.normal(0, 2, (seeds, n)).round(1), labels
    labels = draw.integers(0, classes, n)
    return np.where(
        draw.random((seeds, n)) < 0.6, labels, draw.integers(0, classes, (seeds, n))
    ), labels


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
@pytest.mark.filterwarnings("ignore:A single label was found")
@pytest.mark.parametrize("name", ORACLES)
def test_weighted_equals_the_metric_of_repeated_rows(name: str) -> None:
    """200 random inputs a metric, two to four classes."""
    for i in range(25):
        outputs, labels = rows(name, i, 2, 5 + 2 * i, 2 + i % 3)
        draw = stream(31, name, i)
        weights = draw.multinomial(len(labels), np.full(len(labels), 1 / len(labels)), 4)
        found = scorer_of(name, outputs, labels)(weights.astype(float))
        for weight, scores in zip(weights, found, strict=True):
            places = np.repeat(np.arange(len(labels)), weight)
            for one, score in zip(outputs, scores, strict=True):
                oracle = ORACLES[name](one[places], labels[places])
                assert score == pytest.approx(oracle, abs=1e-10)


@pytest.mark.parametrize("name", OF_TARGETS)
def test_a_correlation_of_constants_is_zero(name: str) -> None:
    labels = np.linspace(0.1, 5, 12)
    constant = np.full((1, 12), 2.7)
    assert scorer_of(name, constant, labels)(np.ones((1, 12)))[0, 0] == 0.0
    only_one = np.zeros((1, 12))
    only_one[0, 3] = 12
    assert scorer_of(name, labels[None], labels)(only_one)[0, 0] == 0.0


def test_accuracy_is_compare() -> None:
    """Where the metric is a mean, pseudo-values are the scores and everything is the same."""
    for i in range(20):
        outputs, labels = rows("accuracy", i, 11, 60)
        a, b = outputs[:5], outputs[5:]
        by_score = compare_scores("accuracy", a, b, labels, resamples=200)
        by_mean = compare(a == labels, b == labels, resamples=200)
        for field in (
            "difference",
            "low",
            "high",
            "p_value",
            "detectable",
            "bootstrap_low",
            "bootstrap_high",
        ):
            assert getattr(by_score, field) == pytest.approx(getattr(by_mean, field), rel=1e-9), (
                field
            )
        assert by_score.verdict == by_mean.verdict


@pytest.mark.parametrize("name", ["f1", "matthews_correlation", "pearson"])
def test_a_function_gives_what_the_name_gives(name: str) -> None:
    outputs, labels = rows(name, 0, 5, 25, 2)
    named = compare_scores(name, outputs[:2], outputs[2:], labels, resamples=15)
    called = compare_scores(ORACLES[name], outputs[:2], outputs[2:], labels, resamples=15)
    for field in ("difference", "low", "high", "p_value", "bootstrap_low", "bootstrap_high"):
        assert getattr(called, field) == pytest.approx(getattr(named, field), rel=1e-8), field


def test_pseudo_values_leave_one_example_out() -> None:
    outputs, labels = rows("matthews_correlation", 1, 3, 30)
    scorer = scorer_of("matthews_correlation", outputs, labels)
    whole = scorer(np.ones((1, 30)))[0]
    found = pseudo_values(scorer, whole, 30)
    for s in range(3):
        for i in range(30):
            rest = np.delete(np.arange(30), i)
            left = metrics.matthews_corrcoef(labels[rest], outputs[s][rest])
            assert found[s, i] == pytest.approx(30 * whole[s] - 29 * left, abs=1e-9)


def test_standard_error_over_examples_is_pearsons_known_one() -> None:
    """One training each, independent normal pairs: the variance of r is near (1 - rho^2)^2 / n (Fisher 1915)."""
    draw, n, rho = stream(32, "fisher"), 4000, 0.6
    labels = draw.normal(size=n)
    a = rho * labels + (1 - rho**2) ** 0.5 * draw.normal(size=(1, n))
    b = rho * labels + (1 - rho**2) ** 0.5 * draw.normal(size=(1, n))
    found = compare_scores("pearson", a, b, labels, resamples=10).standard_error
    # The two share `labels`, which correlates their r: Olkin and Siotani's covariance of overlapping correlations.
    mutual = rho * rho
    c = (mutual * (1 - 2 * rho**2) - 0.5 * rho**2 * (1 - 2 * rho**2 - mutual**2)) / n
    expected = (2 * (1 - rho**2) ** 2 / n - 2 * c) ** 0.5
    assert found == pytest.approx(expected, rel=0.08)


def test_a_few_wrong_rows_feign_no_equivalence() -> None:
    """What none of 60 rows shows may still be as large as the margin."""
    labels = np.arange(60) % 2
    a, b = np.tile(labels, (6, 1)), np.tile(labels, (6, 1))
    b[:, 0] = 1 - b[:, 0]
    a[0, 1] = b[0, 1] = 1 - labels[1]
    found = compare_scores("f1", a, b, labels, margin=0.1, resamples=2)
    assert found.equivalence_p >= (1 - 0.1) ** 60
    accuracies = compare_scores("accuracy", a, b, labels, margin=0.1, resamples=2)
    means = compare(a == labels, b == labels, margin=0.1, resamples=2)
    assert accuracies.equivalence_p == pytest.approx(means.equivalence_p)


def test_logits_are_read_as_classes_or_values() -> None:
    draw = stream(33, "logits")
    labels = draw.integers(0, 3, 50)
    a, b = draw.normal(size=(5, 50, 3)), draw.normal(size=(6, 50, 3))
    of_logits = compare_scores("f1_macro", a, b, labels, resamples=20)
    assert of_logits == compare_scores("f1_macro", a.argmax(2), b.argmax(2), labels, resamples=20)
    targets = draw.normal(size=50)
    of_values = compare_scores("pearson", a[:, :, :1], b[:, :, :1], targets, resamples=20)
    assert of_values == compare_scores("pearson", a[:, :, 0], b[:, :, 0], targets, resamples=20)


def test_swapping_the_sides_flips_the_verdict() -> None:
    draw = stream(34, "swap")
    labels = draw.integers(0, 2, 300)
    good = np.where(draw.random((6, 300)) < 0.9, labels, 1 - labels)
    poor = np.where(draw.random((7, 300)) < 0.6, labels, 1 - labels)
    forth = compare_scores("matthews_correlation", poor, good, labels, resamples=100)
    back = compare_scores("matthews_correlation", good, poor, labels, resamples=100)
    assert (forth.verdict, back.verdict) == ("better", "worse")
    assert back.difference == pytest.approx(-forth.difference)
    assert (back.low, back.high) == pytest.approx((-forth.high, -forth.low))


@pytest.mark.slow
@pytest.mark.parametrize("noise", ["calm", "noisy", "wild"])
@pytest.mark.parametrize("name", ["matthews_correlation", "f1"])
def test_false_positives_of_scores_that_are_no_means(name: str, noise: str) -> None:
    """1,000 nulls at CoLA-like balance: near 5 % by pseudo-values, where the bootstrap alone goes from under 1 % to 15 %."""
    draw = stream(35, name, noise)
    found = 0
    for _ in range(20):
        a, b = simulate(draw, 50, (5, 5), 408, NOISES[noise], accuracy=0.8)
        for right_a, right_b in zip(a, b, strict=True):
            y = (draw.random(408) < 0.69).astype(int)
            one, other = np.where(right_a, y, 1 - y), np.where(right_b, y, 1 - y)
            found += compare_scores(name, one, other, y, resamples=2).p_value < 0.05
    # 5 % of 1,000 has a standard error of 0.7 %: three of them.
    assert 0.029 <= found / 1000 <= 0.071


@pytest.mark.parametrize(
    ("score", "a", "b", "labels", "words"),
    [
        ("auc", np.ones((5, 4)), np.ones((5, 4)), np.ones(4), 'score "auc" is not known'),
        ("f1", np.ones((5, 4)), np.ones((5, 3)), np.ones(4), "`outputs_b` must be"),
        ("f1", np.ones((5, 4)), np.ones((5, 4)), np.ones((4, 1)), "`labels` must be"),
        (
            "f1",
            np.full((5, 4), np.nan),
            np.ones((5, 4)),
            np.ones(4),
            "`outputs_a` must hold finite",
        ),
        (
            lambda p, y: float("nan"),
            np.ones((5, 4)),
            np.ones((5, 4)),
            np.ones(4),
            "finite for every",
        ),
        (lambda p, y: 1.0, np.ones((5, 4, 2)), np.ones((5, 4)), np.ones(4), "outputs of one form"),
    ],
)
def test_wrong_input_is_named(score, a, b, labels, words) -> None:
    with pytest.raises(ValueError, match=words):
        compare_scores(score, a, b, labels)


NAMES = ["f1", "matthews_correlation", "pearson", "spearmanr"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("score", [0, 1])
def test_where_nothing_varies_there_is_no_interval_and_no_test(name: str, score: int) -> None:
    """Constant answers against as constant or perfect ones: what another example would do to them is not known from these."""
    labels = np.arange(300) % 2
    constant, perfect = np.zeros((5, 300), dtype=int), np.tile(labels, (6, 1))
    c = compare_scores(name, constant, perfect if score else constant, labels, resamples=5)
    assert (c.low, c.high, c.bootstrap_low, c.bootstrap_high, c.detectable) == (None,) * 5
    assert (c.verdict, c.p_value, c.equivalence_p) == ("cannot tell", 1.0, 1.0)
    assert c.difference == pytest.approx(score)
    assert "nothing varies" in c.reason and "compatible" not in str(c)
    assert "no interval" in str(c) and "nothing varies" in c.how
    member = holm_family({"x": c, "y": c}, family="two").members[0]
    assert (member.simultaneous_low, member.simultaneous_high) == (None, None)
    assert member.reason == c.reason


@pytest.mark.parametrize("name", NAMES)
def test_one_side_that_varies_is_enough(name: str) -> None:
    outputs, labels = rows(name, 0, 5, 60, 2)
    c = compare_scores(name, np.zeros_like(outputs), outputs, labels, resamples=5)
    assert c.low is not None and c.high is not None and c.low < c.difference < c.high
