"""A run's cohorts fit the memory that is free, say what it cut short, and keep their limits when they go on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fleetune.cohort import plan as planning
from fleetune.cohort import room
from fleetune.cohort.engine import Engine
from fleetune.cohort.events import Advanced, EpochDone
from fleetune.cohort.plan import Limits, Planned, default_limits
from fleetune.cohort.trial import Rows
from fleetune.study import checkpoints
from fleetune.study.prepare import Prepared, prepare
from fleetune.study.run import Run
from tests.runs import Made, settings
from tests.study import studies


class Cut(Exception):
    """What a test throws into a run."""


@pytest.fixture(scope="module")
def ready(made: Made) -> Prepared:
    return studies.prepared(studies.text(made))


@pytest.fixture(scope="module")
def wished(ready: Prepared, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What each stage planned where memory is no limit."""
    folder = tmp_path_factory.mktemp("roomy") / "run"
    studies.run(folder, ready)
    return plans(folder)


def plans(folder: Path) -> dict[str, dict[str, Any]]:
    """The plan of each stage; every stage has one."""
    found = {e["stage"]: e for e in studies.events(folder, "planned")}
    assert len(found) == len(studies.events(folder, "planned"))
    return found


def free(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(room, "available", lambda device, root=None: count)


def tight(wished: dict[str, dict[str, Any]]) -> int:
    """Bytes of which no stage can have what it would take."""
    return int(min(plan["bytes"] for plan in wished.values()) * 0.8)


@pytest.fixture(scope="module")
def squeezed(
    ready: Prepared, wished: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Planned]]:
    """A run in less memory than any stage would take, and what it told of its plans."""
    folder, told = tmp_path_factory.mktemp("squeezed") / "run", list[Planned]()
    with pytest.MonkeyPatch.context() as patch:
        free(patch, tight(wished))
        outcome = studies.run(
            folder, ready, watch=lambda e: told.append(e) if isinstance(e, Planned) else None
        )
    assert outcome.failed == 0
    return folder, told


def test_enough_memory_is_no_limit(wished: dict[str, dict[str, Any]]) -> None:
    assert len(wished) == 2  # the search and the confirm phase
    for plan in wished.values():
        assert plan["tokens"] == default_limits("cpu").tokens
        assert plan["why"] == []


def test_test_rows_keep_to_the_plan_as_epochs_do(
    ready: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More at the very end would undo a whole training, since it comes again with every resume."""
    held: list[int] = []
    predict = Engine.predict

    def counted(self: Engine, owned: Any, rows: Sequence[Rows], sizes: Sequence[int]) -> Any:
        lengths = [np.sort(one.table.lengths[one.rows]) for one in rows]
        held.append(sum(int(n[-size:].sum()) for n, size in zip(lengths, sizes, strict=True)))
        return predict(self, owned, rows, sizes)

    monkeypatch.setattr(Engine, "predict", counted)
    monkeypatch.setattr(planning, "default_limits", lambda device: Limits(32, 100))
    folder = tmp_path / "run"
    studies.run(folder, ready)
    assert {e["tokens"] for e in plans(folder).values()} == {100}
    assert all(t.lengths.sum() > 100 for task in ready.tasks for t in task.test_tables.values())
    assert 50 < max(held) <= 100


@pytest.mark.slow
def test_little_memory_makes_smaller_passes_and_says_so(
    wished: dict[str, dict[str, Any]], squeezed: tuple[Path, list[Planned]]
) -> None:
    folder, told = squeezed
    assert [p.limits.tokens for p in told] == [e["tokens"] for e in plans(folder).values()]
    for stage, plan in plans(folder).items():
        assert plan["bytes"] <= tight(wished) < wished[stage]["bytes"]
        assert any("may be taken" in sentence for sentence in plan["why"])


@pytest.mark.slow
def test_a_resumed_run_keeps_the_limits_of_the_first_command(
    ready: Prepared, wished, squeezed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other limits would put other trials into a pass, and so change the last digits."""
    free(monkeypatch, tight(wished))

    def cut(event: object) -> None:
        if isinstance(event, EpochDone):
            raise Cut

    with pytest.raises(Cut):
        studies.run(tmp_path / "cut", ready, watch=cut)
    first = plans(tmp_path / "cut")
    monkeypatch.undo()  # much memory now
    studies.run(tmp_path / "cut", ready)
    again = plans(tmp_path / "cut")
    assert {name: again[name] for name in first} == first
    search = [name for name in again if "search" in name]
    assert search == list(first)
    epochs = [
        {(e["id"], e["epoch"]): (e["loss"], e["selection"]) for e in found if "-t" in e["id"]}
        for found in (studies.events(run, "epoch") for run in (squeezed[0], tmp_path / "cut"))
    ]
    assert epochs[0] == epochs[1]


@pytest.mark.slow
def test_what_no_longer_fits_is_planned_again(
    ready: Prepared, wished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(event: object) -> None:
        if isinstance(event, EpochDone):
            raise Cut

    folder = tmp_path / "run"
    with pytest.raises(Cut):
        studies.run(folder, ready, watch=cut)
    free(monkeypatch, tight(wished))
    assert studies.run(folder, ready).failed == 0
    search = [e for e in studies.events(folder, "planned") if "search" in e["stage"]]
    assert len(search) == 2 and search[1]["bytes"] < search[0]["bytes"]


class Counted:
    """How many trained at once, and a cut after so many rounds; None: no cut."""

    def __init__(self, rounds: int | None = None) -> None:
        self.left, self.at_once = rounds, list[int]()

    def __call__(self, event: object) -> None:
        if isinstance(event, Advanced):
            self.at_once.append(len(event.trials))
            if self.left == len(self.at_once):
                raise Cut


def scores(folder: Path) -> dict[tuple[str, int], list[float]]:
    """Losses and metrics of every epoch, by trial and epoch."""
    return {
        (e["id"], e["epoch"]): [e["loss"], *e["selection"].values()]
        for e in studies.events(folder, "epoch")
    }


def assert_scores_equal(found: Path, expected: Path) -> None:
    """But for rounding in float64, since other trials share passes."""
    mine, other = scores(found), scores(expected)
    assert mine.keys() == other.keys()
    for place, values in other.items():
        assert mine[place] == pytest.approx(values, rel=1e-10), place


def test_fewer_trials_at_once_after_a_cut(made: Made, tmp_path: Path) -> None:
    """The others wait with their states, and a second cut while they do loses nothing."""
    methods = ["lora", "bitfit"]
    given = settings(made.folder, made.backbone, methods, seeds=[0, 1, 2], dropout=0.1)
    ready = prepare(replace(given, dtype="float64"))
    Run(tmp_path / "whole", ready).train(Counted())
    folder = tmp_path / "cut"
    with pytest.raises(Cut):
        Run(folder, ready, save_steps=1).train(Counted(rounds=3))
    (first, *_) = checkpoints.snapshots(folder / "checkpoints")
    assert len(first.note["active"]) == 6
    again, last = Counted(rounds=4), Counted()
    with pytest.raises(Cut):
        Run(folder, ready, trials=2, save_steps=1).train(again)
    (second, *_) = checkpoints.snapshots(folder / "checkpoints")
    assert second.number > first.number + 1 and second.note["active"] == first.note["active"]
    for number, ident in enumerate(first.note["active"]):
        assert (second.files[ident] == first.files[ident]) == (number >= 2), (
            "who waits is not written"
        )
    Run(folder, ready, trials=2).train(last)
    assert max(again.at_once) == max(last.at_once) == 2
    assert_scores_equal(folder, tmp_path / "whole")
    done = [e["id"] for e in studies.events(folder, "trial-done")]
    assert sorted(done) == sorted(first.note["active"])


def test_fewer_trials_of_a_search_at_once_after_a_cut(
    ready: Prepared, made: Made, tmp_path: Path
) -> None:
    """Those that wait take their places before new ones, and halving waits for them."""
    studies.run(tmp_path / "whole", ready)
    folder = tmp_path / "cut"
    for rounds, trials in ((4, None), (5, 2), (9, 1)):
        counted = Counted(rounds)
        with pytest.raises(Cut):
            Run(folder, ready, trials=trials, save_steps=1).train(counted)
        assert max(counted.at_once) <= (trials or 6)
    studies.run(folder, ready, trials=1, watch=(last := Counted()))
    assert set(last.at_once) == {1}
    assert_scores_equal(folder, tmp_path / "whole")
    assert studies.proposals(folder).keys() == studies.proposals(tmp_path / "whole").keys()


def test_the_journal_says_why_a_trial_trains_alone(made: Made) -> None:
    """The run of all four methods: three share the backbone, each trial of `full` has a copy of it."""
    told = [(e["at_once"], *e["why"]) for e in studies.events(made.run, "planned")]
    shared = [why for _, *why in told if not why]
    alone = [(at_once, why) for at_once, *why in told if why]
    assert len(shared) == 1 and alone
    assert all(at_once == 1 and "full changes the backbone" in why[0] for at_once, why in alone)
