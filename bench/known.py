"""How much faster an epoch is where what never changes of the encoder is worked out once (src/fleetune/cohort/known.py).

Trials without dropout below what they train: the head alone, and LoRA on the last layer alone. Each trains a few epochs with
known values and a few without, on the same rows in the same order; an epoch's time holds its evaluation. The first epoch with
known values holds their making, so the ratio is of the later ones. Both sides take turns.

    python -m bench.known --task rte                        # bench/results/known.json, a table on stdout
    python -m bench.known --task sst2 --rows 4000
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any
from unittest import mock

from bench.tables import keep

EPOCHS = {"known": 5, "whole encoder": 2}
HEAD = ["method", "whole encoder, s an epoch", "first epoch", "later epochs", "ratio"]


def prepared_trials(given: argparse.Namespace) -> tuple[Any, list[Any]]:
    """The task with its backbone, and one trial a method."""
    from fleetune.backbone.sites import site_map
    from fleetune.study.prepare import DataSettings, MethodSettings, Settings, prepare

    embedded = given.task.startswith("demo-")
    training = {"num_train_epochs": max(EPOCHS.values()), "dropout": 0.0}

    def settings(methods: tuple[MethodSettings, ...]) -> Settings:
        data = DataSettings(task=given.task, data_dir=None if embedded else given.data_dir)
        return Settings(data, methods, (42,), training, backbone=given.backbone)

    first = prepare(settings((MethodSettings("head", {}),)))
    sites = site_map(first.backbone.classifier(first.num_labels, ())[0])
    last = max(site.layer for site in sites if site.layer is not None)
    upper = MethodSettings("lora", {"layers_to_transform": (last,)})
    found = prepare(settings((MethodSettings("head", {}), upper)))
    return found, list(found.inputs)


def epochs(prepared: Any, trial: Any, count: int, most_bytes: int | None) -> list[float]:
    """Seconds of each of the first epochs of a training, evaluation included; most_bytes: of known values."""
    from fleetune.cohort import known
    from fleetune.cohort.engine import Engine
    from fleetune.cohort.events import EpochDone
    from fleetune.cohort.plan import default_limits
    from fleetune.cohort.train import Cohort
    from fleetune.study.prepare import DTYPES

    model, fresh = prepared.backbone.classifier(prepared.num_labels, ())
    engine = Engine(model, fresh, dtype=DTYPES[prepared.dtype])
    with mock.patch.object(known, "MOST_BYTES", known.MOST_BYTES if most_bytes is None else 0):
        times, began = [], time.perf_counter()
        tokens = default_limits("cpu").tokens
        for event in Cohort(engine, [trial], size=1, max_tokens=tokens).run():
            if isinstance(event, EpochDone):
                times.append(time.perf_counter() - began)
                began = time.perf_counter()
                if len(times) == count:
                    break
    return times


def row(prepared: Any, trial: Any, repeats: int) -> tuple[list[str], dict[str, Any]]:
    """A line of the table, and every time behind it."""
    whole: list[float] = []
    first: list[float] = []
    later: list[float] = []
    ratios: list[float] = []
    for _ in range(repeats):
        slow = epochs(prepared, trial, EPOCHS["whole encoder"], 0)
        quick = epochs(prepared, trial, EPOCHS["known"], None)
        whole += slow
        first.append(quick[0])
        later += quick[1:]
        ratios.append(statistics.median(slow) / statistics.median(quick[1:]))
    name = f"{trial.spec.method}, {len(trial.train):,} rows"
    line = [
        name,
        _spread(whole, ".1f"),
        _spread(first, ".1f"),
        _spread(later, ".3f"),
        _spread(ratios, ".0f") + " x",
    ]
    return line, {"method": name, "whole": whole, "first": first, "later": later, "ratios": ratios}


def _spread(values: Sequence[float], form: str) -> str:
    middle = format(statistics.median(values), form)
    if len(values) == 1:
        return middle
    return f"{middle} [{min(values):{form}}, {max(values):{form}}]"


def main(words: Sequence[str] | None = None) -> None:
    """Measure, keep, print."""
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--name", default="known")
    found.add_argument("--task", default="rte")
    found.add_argument("--data-dir", default="../shared/data/glue")
    found.add_argument("--backbone", default="minilm")
    found.add_argument("--rows", type=int, help="of training; default: all")
    found.add_argument("--repeats", type=int, default=2)
    given = found.parse_args(words)
    from dataclasses import replace

    from bench.trials import with_rows
    from fleetune.study.machine import commit, hardware

    prepared, trials = prepared_trials(given)
    if given.rows:
        trials = [replace(t, train=with_rows(t.train, t.train.rows[: given.rows])) for t in trials]
    measured = [row(prepared, trial, given.repeats) for trial in trials]
    rows = [line for line, _ in measured]
    about = [
        " ".join(["python -m bench.known", *(sys.argv[1:] if words is None else words)]),
        f"{given.backbone}, {given.task}, {prepared.dtype}, no dropout; lora: the last layer alone",
        f"commit {commit()}, {hardware('cpu')['processor']}; target for the head: 50 x",
    ]
    times = [kept for _, kept in measured]
    keep(given.name, about, (HEAD, rows), times=times, machine=hardware("cpu"))


if __name__ == "__main__":
    main()
