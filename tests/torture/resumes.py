"""C8, C10, C11, N1: resumed at every step, refused where something has changed, short of memory, and run twice."""

from __future__ import annotations

import importlib
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
import torch

from fleetune.artifact import layout
from fleetune.cohort import train as cohort_train
from fleetune.cohort.events import Advanced, Event
from fleetune.methods.table import METHODS
from fleetune.study import machine
from fleetune.study import run as study_run
from fleetune.study.file import read_study
from fleetune.study.prepare import MethodSettings, Prepared, prepare
from tests import runs
from tests.backbone.hub import save_tiny
from tests.torture.row import Row
from tests.torture.workshop import Workshop, difference

ACCUMULATION = (1, 2, 4)


# --- C8


def at_every_step(folder: Path, count: int) -> Iterator[str]:
    """For every method, and accumulation of 1, 2 and 4, with dropout: saved at each round, stopped there, resumed."""
    save_tiny(folder / "tiny")
    runs.write_csv(folder / "train.csv", 30)
    runs.write_csv(folder / "test.csv", 10, seed=7)
    kinds = [(method, steps) for method in METHODS for steps in ACCUMULATION]
    random.Random(9).shuffle(kinds)
    made: dict[tuple[str, int], tuple[Prepared, Path, list[int]]] = {}
    # Every micro-batch is a round with a snapshot of its own, in the middle of an accumulation group too.
    with mock.patch.object(study_run, "SAVE_SECONDS", -1.0):
        for case in range(count):
            kind = kinds[case % len(kinds)]
            if kind not in made:
                made[kind] = uncut(folder, *kind)
            prepared, whole, rounds = made[kind]
            stop = rounds[case // len(kinds) % len(rounds)]
            run = folder / f"run-{case}"
            try:
                runs.train(run, prepared, stop_after(stop))
            except KeyboardInterrupt:
                runs.train(run, prepared)
            told = difference(run, whole)
            shutil.rmtree(run)
            yield f"{kind[0]}, accumulation {kind[1]}, event {stop}: {told}" if told else ""


def uncut(folder: Path, method: str, steps: int) -> tuple[Prepared, Path, list[int]]:
    """A run of a method beside a mate, and the events after which a round is over, in a random order."""
    own = MethodSettings(method, {"lora_dropout": 0.1} if method == "lora" else {})
    mate = [] if method == "head" else ["head"]
    given = runs.settings(
        folder, folder / "tiny", [own, *mate], seeds=[0], dropout=0.1, per_device_train_batch_size=4,
        gradient_accumulation_steps=steps,
    )  # fmt: skip
    prepared, whole = prepare(given), folder / f"{method}-{steps}"
    events: list[Event] = []
    runs.train(whole, prepared, events.append)
    rounds = [i + 1 for i, e in enumerate(events) if isinstance(e, Advanced)]
    random.Random(steps).shuffle(rounds)
    return prepared, whole, rounds


def stop_after(events: int) -> Callable[[Event], None]:
    left = iter(range(events - 1))

    def watch(event: Event) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt

    return watch


# --- C10


def changed_inputs(folder: Path, count: int) -> Iterator[str]:
    """The same folder with something else: refused with the difference (exit 6), and left as it was."""
    source = folder / "source"
    source.mkdir()
    save_tiny(source / "tiny")
    runs.write_csv(source / "train.csv", 30)
    runs.write_csv(source / "test.csv", 10, seed=7)
    own = {
        "--data": source / "train.csv", "--test-data": source / "test.csv", "--backbone": source / "tiny",
        "--method": "lora", "--set": "r=2", "--dtype": "float32", "--seed": 0, "--num-train-epochs": 1,
        "--learning-rate": 1e-3, "--output-dir": folder / "run",
    }  # fmt: skip
    words = [word for pair in own.items() for word in pair]
    found = runs.run_cli("train", *words)
    assert found.code == 0, found.err
    before = runs.tree(folder / "run")
    changes = list(CHANGES.items())
    for case in range(count):
        name, (named, change) = changes[case % len(changes)]
        kept = folder / "kept"
        shutil.copytree(source, kept)
        with mock.patch.object(machine.metadata, "version", machine.metadata.version):
            more = change(source) or []
            found = runs.run_cli("train", *words, *more)
        shutil.rmtree(source)
        kept.rename(source)
        told = "" if found.code == 6 else f"exit {found.code}: {found.err[-300:]}"
        if not told and not (named in found.err and " there, " in found.err):
            told = f"said {found.err[-300:]!r}"
        if runs.tree(folder / "run") != before:
            told = told or "the run was changed"
        yield f"{name}: {told}" if told else ""


def _other_rows(source: Path) -> None:
    runs.write_csv(source / "test.csv", 10, seed=8)


def _other_labels(source: Path) -> None:
    for name, rows, seed in (("train.csv", 30, 0), ("test.csv", 10, 7)):
        runs.write_csv(source / name, rows, seed, labels=("awful", "good"))


def _other_weights(source: Path) -> None:
    save_tiny(source / "tiny", initializer_range=0.03)


def _other_tokenizer(source: Path) -> None:
    path = source / "tiny" / "tokenizer.json"
    text = path.read_text()
    path.write_text(text.replace('"w1"', '"w?"').replace('"w2"', '"w1"').replace('"w?"', '"w2"'))


def _other_library(source: Path) -> None:
    real = machine.metadata.version
    machine.metadata.version = lambda name: "9.0.0" if name == "transformers" else real(name)


CHANGES: dict[str, tuple[str, Callable[[Path], list[Any] | None]]] = {
    "data": ("data: ", _other_rows),
    "label map": ("data: ", _other_labels),
    "split seed": ("seeds", lambda _: ["--seed", 1]),
    "backbone": ("backbone: ", _other_weights),
    "tokenizer": ("tokenizer: ", _other_tokenizer),
    "method's settings": ("methods.lora.r", lambda _: ["--set", "r=4"]),
    "training settings": ("weight_decay", lambda _: ["--weight-decay", 0.5]),
    "library major": ("transformers (major version)", _other_library),
    "dtype": ("dtype", lambda _: ["--dtype", "float64"]),
    "protocol": ("protocol", lambda _: ["--protocol", "paper"]),
}


# --- C11

OUT_OF_MEMORY: tuple[BaseException, ...] = (
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4398046511104 bytes."),
)  # fmt: skip
ELSEWHERE = (
    ("fleetune.study.checkpoints", "_encoded", 7),
    ("fleetune.study.keep", "save_trial", 2),
    ("fleetune.study.journal", "_line", 30),
    ("fleetune.artifact.save", "model_card", 1),
    ("fleetune.data.metrics", "compute", 9),
)
"""Places outside of the passes, and the call that fails there."""
# In float64 a round in other passes moves a logit by rounding alone: 1e-12 was seen, a lost micro-batch moves it by 1e-3.
TOLERANCE = 1e-9


def short_of_memory(folder: Path, count: int) -> Iterator[str]:
    """In passes: done again in smaller ones, to the same numbers. Elsewhere: exit 75, and resumed to the same bits."""
    shop = Workshop(folder, trials=3, seeds=1)  # its own, since the study is another
    shop.study.write_text(shop.study.read_text().replace("float32", "float64"))
    whole, prepared = shop.whole(), prepare(read_study(shop.study, ()))
    draw = random.Random(11)
    for case in range(count):
        run = folder / f"run-{case}"
        if case % 2 == 0:
            error = OUT_OF_MEMORY[case // 2 % len(OUT_OF_MEMORY)]
            with failing(cohort_train, "run_pass", draw.randint(1, 25), error):
                runs.train(run, prepared)
            yield nearly(run, whole)
        else:
            place = ELSEWHERE[case // 2 % len(ELSEWHERE)]
            ended = shop.start(run, memory_error_in, place).wait()
            told = "" if ended.code == 75 else f"exit {ended.code} and not 75: {ended.err[-300:]}"
            if "Traceback" in ended.err or "out of memory" not in ended.err:
                told = told or f"said {ended.err[-300:]!r}"
            told = told or shop.check(run)
            yield f"{place}: {told}" if told else ""


def failing(module: Any, name: str, at: int, error: BaseException) -> Any:
    """The n-th call of a function raises, once."""
    left, real = iter(range(at)), getattr(module, name)

    def function(*words: Any, **named: Any) -> Any:
        if next(left, None) == at - 1:
            raise error
        return real(*words, **named)

    return mock.patch.object(module, name, function)


def memory_error_in(given: tuple[str, str, int]) -> None:
    """In a child: a function raises MemoryError at its n-th call."""
    module, name, at = given
    failing(importlib.import_module(module), name, at, MemoryError()).start()


def nearly(found: Path, expected: Path) -> str:
    """The same trials with the same predictions but for rounding."""
    names = [sorted(p.name for p in (run / "trials").iterdir()) for run in (found, expected)]
    if names[0] != names[1]:
        return f"trials {names[0]} and not {names[1]}"
    for name in names[0]:
        a, b = (
            np.asarray(
                pq.read_table(run / "trials" / name / layout.PREDICTIONS)["logits"].to_pylist()
            )
            for run in (found, expected)
        )
        worst = float(np.abs(a - b).max())
        # Predictions are kept in float32.
        if worst > max(TOLERANCE, float(np.finfo(np.float32).eps * np.abs(b).max())):
            return f"{name}: logits differ by {worst:.1e}"
    return ""


# --- N1


def the_same_twice(folder: Path, count: int) -> Iterator[str]:
    """The same seeds in another folder give the same bytes: for each method, and for a study."""
    shop = Workshop.small(folder)
    study = prepare(read_study(shop.study, ()))
    one = [
        prepare(runs.settings(shop.folder, shop.folder / "tiny", [m], seeds=[0], dropout=0.1))
        for m in METHODS
    ]
    configurations = [study, *one]
    for case in range(count):
        prepared = configurations[case % len(configurations)]
        first, second = folder / f"a-{case}", folder / f"b-{case}"
        runs.train(first, prepared)
        runs.train(second, replace(prepared))
        yield difference(first, second)


ROWS = [
    Row("C8 resumed at every step, every method, accumulation 1, 2, 4", 168, at_every_step),
    Row("C10 a resume with something changed", 10, changed_inputs, short=10),
    Row("C11 out of memory in the middle", 10, short_of_memory),
    Row("N1 the same seeds twice", 5, the_same_twice),
]
