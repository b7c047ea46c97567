"""The trials that all sides train, the A/B runner, and the whole harness once, small."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from bench.source import ROOT, Source
from bench.store import read
from bench.trials import TrialsSpec, prepare_trials

from bench import cohort, levers


def spec(backbone: Path, **given) -> TrialsSpec:
    base = {
        "task": "demo-sentiment",
        "backbone": str(backbone),
        "rows": 8,
        "batch": 4,
        "accumulation": 1,
    }
    return TrialsSpec(**{**base, **given})


def test_a_trial_is_the_same_whatever_the_size_of_the_cohort(tiny_backbone: Path) -> None:
    """Ratios compare a loop over the first two trials with cohorts of any size."""
    _, two = prepare_trials(spec(tiny_backbone, trials=2))
    _, many = prepare_trials(spec(tiny_backbone, trials=11))
    for a, b in zip(two, many[:2], strict=True):
        assert a.spec.method == b.spec.method
        assert a.spec.hyperparameters == b.spec.hyperparameters
        assert a.settings == b.settings
        np.testing.assert_array_equal(a.train.rows, b.train.rows)


def test_trials_have_rows_of_their_own_see_each_once_and_evaluate_nothing(
    tiny_backbone: Path,
) -> None:
    _, inputs = prepare_trials(spec(tiny_backbone, trials=3, rows=16))
    for given in inputs:
        assert len(set(given.train.rows.tolist())) == 16
        assert len(given.selection) == 0
        assert given.settings.total_steps(len(given.train)) == 4
    assert len({tuple(given.train.rows.tolist()) for given in inputs}) == 3


@pytest.mark.parametrize(
    ("mix", "methods"), [("lora", {"lora"}), ("bitfit", {"bitfit"}), ("mixed", {"lora", "bitfit"})]
)
def test_a_mix_holds_its_methods(tiny_backbone: Path, mix: str, methods: set[str]) -> None:
    _, inputs = prepare_trials(spec(tiny_backbone, trials=4, mix=mix))
    assert {given.spec.method for given in inputs} == methods


def test_an_unknown_mix_is_refused() -> None:
    with pytest.raises(ValueError, match="lora, bitfit, mixed"):
        TrialsSpec(mix="everything")


@pytest.mark.parametrize("text", ["max_tokens", "nonsense=3"])
def test_a_lever_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"package\.module\.ATTRIBUTE"):
        levers.split(text)


def test_a_tree_is_imported_inside_and_gone_outside(tmp_path: Path) -> None:
    import fleetune.seeds as installed

    shutil.copytree(ROOT / "src" / "fleetune", tmp_path / "fleetune")
    with (tmp_path / "fleetune" / "seeds.py").open("a") as file:
        file.write("\nFROM_THE_TREE = True\n")
    source = Source(str(tmp_path))
    for _ in range(2):  # its modules are kept from one time to the next
        with source.active():
            import fleetune.seeds as inside

            assert inside.FROM_THE_TREE
    assert sys.modules["fleetune.seeds"] is installed
    assert not hasattr(installed, "FROM_THE_TREE")


def test_two_equal_sides_train_the_same_and_a_changed_one_shows(
    tiny_backbone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--task", "demo-sentiment", "--backbone", str(tiny_backbone), "--trials", "2", "--rounds", "2",
             "--batch", "4", "--accumulation", "1", "--dtype", "float32"]  # fmt: skip
    levers.main([*words, "--b", "fleetune.backbone.stream.BUCKET_SHARE=0.85"])
    same = capsys.readouterr().out
    assert "b is" in same
    assert "mean losses differ by at most 0.00e+00, trained values by 0.00e+00" in same
    levers.main([*words, "--b", "dtype=bfloat16"])
    assert "mean losses differ by at most 0.00e+00" not in capsys.readouterr().out


@pytest.mark.slow
def test_the_harness_measures_writes_and_skips_what_is_there(
    tiny_backbone: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(cohort, "RESULTS", tmp_path)
    words = ["--backbone", str(tiny_backbone), "--task", "demo-sentiment", "--mix", "mixed", "--trials", "1,2",
             "--steps", "1", "--accumulation", "1", "--repeats", "1", "--threads", "1", "--processes", "2",
             "--sides", "fleetune,trainer,trainer-grouped,trainer-default,processes"]  # fmt: skip
    cohort.main(words)
    told = read(tmp_path / "cohort.json")
    assert told is not None
    assert [c for c in told["cells"].values() if "failed" in c] == []
    by_size = {row["trials"]: row for row in told["summary"]}
    assert set(by_size) == {1, 2}
    assert set(by_size[2]["peers"]) == {
        "trainer",
        "trainer-grouped",
        "trainer-default",
        "processes",
    }
    # One step of 16 rows for each of two trials, on either side.
    examples = [c["examples"] for k, c in told["cells"].items() if "/K2/" in k]
    assert examples == [32] * len(examples)
    capsys.readouterr()
    cohort.main(words)
    assert "0 of 7 cells to measure" in capsys.readouterr().err
