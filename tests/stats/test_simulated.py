"""The simulator's truth is true, the benchmark's test is `compare`'s, and the page's example runs."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from bench.simulated import NOISES, simulate
from bench.statistics import REGIMES, Budget, crossed_t, mcnemar, null_row

from fleetune.seeds import stream
from fleetune.stats.compare import compare
from fleetune.stats.models import compare_models

PAGE = Path(__file__).resolve().parents[2] / "docs" / "statistics.md"


def test_expected_accuracy_is_exact() -> None:
    a, b = simulate(
        stream(90, "truth"), 3000, (3, 4), 60, NOISES["noisy"], accuracy=0.8, difference=0.05
    )
    # Means of 3,000 studies whose accuracies spread by about 6 points: three standard errors are 0.4.
    assert (a.mean(), b.mean()) == pytest.approx((0.8, 0.85), abs=0.004)
    assert a.shape == (3000, 3, 60) and b.shape == (3000, 4, 60)


def test_equal_seeds_may_act_alike() -> None:
    a, b = simulate(stream(91, "alike"), 400, (8, 8), 400, NOISES["wild"], shared_seed=0.9)
    apart = simulate(stream(91, "apart"), 400, (8, 8), 400, NOISES["wild"])
    alike, none = (
        np.mean([np.corrcoef(x.mean(1), y.mean(1))[0, 1] for x, y in zip(*sides, strict=True)])
        for sides in ((a, b), apart)
    )
    assert alike > 0.7 and abs(none) < 0.1


def test_the_benchmark_tests_what_compare_and_compare_models_test() -> None:
    a, b = simulate(stream(92, "same"), 60, (5, 7), 100, NOISES["noisy"], difference=0.12)
    by_table, by_mcnemar = crossed_t(a, b), mcnemar(a, b)
    by_record = [compare(x, y, resamples=2).p_value < 0.05 for x, y in zip(a, b, strict=True)]
    assert by_table.tolist() == by_record
    assert {True, False} == set(by_record)
    pairs = [compare_models(x[0], y[0], resamples=2).p_value for x, y in zip(a, b, strict=True)]
    assert by_mcnemar.tolist() == [p < 0.05 for p in pairs]


def test_the_page_shows_every_regime_of_the_benchmark() -> None:
    rows = [
        line
        for line in PAGE.read_text("utf-8").splitlines()
        if "**" in line and line.startswith("| ")
    ]
    for noise, seeds, n, accuracy in REGIMES:
        trainings = str(seeds[0]) if seeds[0] == seeds[1] else f"{seeds[0]} and {seeds[1]}"
        cells = rf"^\| {noise} \| [\d.]+ \| {100 * accuracy:.0f} \| {n} \| {trainings} \| \*\*"
        assert any(re.match(cells, row) for row in rows), cells
    row = null_row(("calm", (5, 5), 40, 0.7), Budget(1, 1))
    assert row[:1] + row[2:5] == ["calm", "70", "40", "5"]


def test_the_example_on_the_page_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert len(blocks) == 1
    scope: dict[str, object] = {}
    exec(blocks[0], scope)
    assert scope["found"].verdict == "better"
