"""Two saved models: exact McNemar against counting coin tosses, the interval against scipy's bootstrap."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import stats

from fleetune.records import as_json
from fleetune.seeds import stream
from fleetune.stats.models import compare_model_scores, compare_models


def pair(
    *name: str | int, n: int = 277, up: float = 0.1, down: float = 0.06
) -> tuple[np.ndarray, np.ndarray]:
    draw = stream(40, *name)
    a, u = draw.random(n) < 0.7, draw.random(n)
    return a, np.where(a, u > down, u < up)


def test_p_is_that_of_fair_coins() -> None:
    """500 random inputs: the two-sided probability by whole-number counting of heads."""
    for i in range(500):
        draw = stream(41, i)
        a, b = pair(i, n=int(draw.integers(2, 120)), up=draw.random(), down=draw.random())
        found = compare_models(a, b, resamples=2)
        heads, tosses = sorted((found.only_a, found.only_b)), found.only_a + found.only_b
        tail = sum(math.comb(tosses, k) for k in range(heads[0] + 1))
        assert found.p_value == pytest.approx(min(1.0, 2 * tail / 2**tosses), rel=1e-10)


def test_interval_is_scipys_paired_bootstrap() -> None:
    for i in range(3):
        a, b = pair("interval", i)
        found = compare_models(a, b, resamples=20_000)
        gap = b.astype(float) - a
        scipys = stats.bootstrap(
            (gap,), np.mean, n_resamples=20_000, method="percentile", rng=stream(i, "oracle")
        ).confidence_interval
        # Steps are 1 / 277, and the two draws may end on neighbouring ones.
        assert found.low == pytest.approx(scipys.low, abs=1.5 / 277)
        assert found.high == pytest.approx(scipys.high, abs=1.5 / 277)


def test_swapping_the_files_flips_everything() -> None:
    a, b = pair("swap", up=0.6, down=0.05)
    forth, back = compare_models(a, b), compare_models(b, a)
    assert (forth.verdict, back.verdict) == ("better", "worse")
    assert (back.only_a, back.only_b, back.p_value) == (forth.only_b, forth.only_a, forth.p_value)
    assert back.difference == -forth.difference


def test_the_record_says_what_it_is_about() -> None:
    found = compare_models(*pair("about"))
    assert "these two files, not the methods" in found.about
    assert "these two files, not the methods" in found.how
    assert json.loads(json.dumps(as_json(found)))["n"] == 277


def test_counts_of_the_original_study_can_be_judged() -> None:
    """205 and 201 right of 277: even if the models disagreed on those 4 rows alone, p is 1/8; with more it only grows."""
    a = np.arange(277) < 205
    b = np.arange(277) < 201
    found = compare_models(a, b)
    assert found.p_value == pytest.approx(0.125)
    assert found.verdict == "cannot tell"


def test_identical_files() -> None:
    few, many = (compare_models(np.ones(n, bool), np.ones(n, bool)) for n in (50, 2000))
    assert (few.verdict, many.verdict) == ("cannot tell", "equivalent")
    assert few.p_value == 1.0 and few.high == -few.low
    assert (1 - few.high) ** 50 == pytest.approx(0.025)
    assert few.how.startswith("95% exact bound over examples") and "bootstrap" not in few.how


@pytest.mark.parametrize(("only_a", "only_b"), [(10, 22), (40, 60), (0, 5), (0, 6), (3, 14)])
def test_interval_and_p_say_the_same_about_0(only_a: int, only_b: int) -> None:
    """The bootstrap alone leaves out 0 at 10 against 22 rows and at 40 against 60, where p is 0.0501 and 0.0569."""
    a, b = np.zeros(872, bool), np.zeros(872, bool)
    a[:only_a], b[only_a : only_a + only_b] = True, True
    found = compare_models(a, b)
    assert (found.low > 0) == (found.p_value < 0.05) == (found.verdict == "better")
    assert found.low < found.difference < found.high


def test_a_few_rows_do_not_feign_equivalence() -> None:
    """With 1 % of rows that only A gets right, as many as the margin."""
    said = 0
    for i in range(200):
        a = np.ones(350, bool)
        b = stream(47, "feigned", i).random(350) >= 0.01
        said += compare_models(a, b, resamples=1000).verdict == "equivalent"
    assert said / 200 < 0.08


@pytest.mark.parametrize("metric", ["pearson", "spearmanr", "matthews_correlation", "f1"])
def test_equal_models_differ_by_another_metric_as_often_as_the_level_says(metric: str) -> None:
    """Two models of one quality whose errors are half the same: 5 % of 600 at 200 rows, with three standard errors to spare."""
    found = 0
    for i in range(600):
        draw = stream(7, metric, i)
        target, shared = draw.normal(size=(2, 200))
        outputs = [target + 0.7 * shared + 0.7 * draw.normal(size=200) for _ in range(2)]
        labels = target
        if metric in ("matthews_correlation", "f1"):
            outputs, labels = (
                [(one > 0.5).astype(int) for one in outputs],
                (target > 0.5).astype(int),
            )
        p = compare_model_scores(metric, *outputs, labels).p_value
        found += p < 0.05
    assert 0.05 - 0.027 < found / 600 < 0.05 + 0.027


def test_a_better_model_is_found_by_another_metric_and_equal_files_have_no_interval() -> None:
    draw = stream(8, "better")
    target, near, far = draw.normal(size=(3, 400))
    found = compare_model_scores("pearson", target + far, target + 0.5 * near, target)
    exact = [np.corrcoef(target, said)[0, 1] for said in (target + far, target + 0.5 * near)]
    assert found.difference == pytest.approx(exact[1] - exact[0], abs=1e-9)
    assert found.verdict == "better" and found.low is not None and found.low > 0
    assert (found.only_a, found.only_b, found.metric) == (None, None, "pearson")
    labels = np.tile([0, 1], 200)
    for metric in ("matthews_correlation", "f1"):
        constant = compare_model_scores(metric, labels, np.zeros_like(labels), labels)
        assert (constant.verdict, constant.low) == ("worse", None) and constant.p_value < 1e-50
        assert "exact McNemar" in constant.how
    same = compare_model_scores("pearson", target + far, target + far, target)
    assert (same.verdict, same.low, same.p_value) == ("cannot tell", None, 1.0)


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (np.ones(3, bool), np.ones(4, bool), "A has 3 and B has 4"),
        (np.ones(3), np.ones(3, bool), "`correct_a` must be a boolean array"),
        (
            np.ones((5, 3), bool),
            np.ones(3, bool),
            "methods with several seeds are compared by `compare`",
        ),
        (np.ones(0, bool), np.ones(0, bool), "at least one row"),
    ],
)
def test_wrong_input_is_named(a: np.ndarray, b: np.ndarray, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        compare_models(a, b)
