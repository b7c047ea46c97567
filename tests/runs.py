"""Small runs for tests: rows whose label can be read off a word, a tiny backbone, and commands in this process."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import typer

from fleetune.cli import main as cli
from fleetune.study.prepare import DataSettings, MethodSettings, Prepared, Settings, prepare
from fleetune.study.run import Outcome, Run

METHODS = ("head", "bitfit", "lora", "full")
TRAINING = {
    "num_train_epochs": 2,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-2,
    "warmup_steps": 1,
    "weight_decay": 0.01,
}


def texts(n: int, seed: int = 0) -> list[str]:
    """Texts of the words of `hub.save_tiny`; a text of class 1 holds more high words than one of class 0."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(n):
        low = 48 * (i % 2)
        own = rng.integers(low, low + 48, rng.integers(3, 9))
        noise = rng.integers(0, 96, 2)
        found.append(" ".join(f"w{word}" for word in [*own.tolist(), *noise.tolist()]))
    return found


def write_csv(
    path: Path,
    n: int,
    seed: int = 0,
    *,
    pairs: bool = False,
    labels: Sequence[str] = ("bad", "good"),
) -> Path:
    """Rows of one or two texts, their labels taking turns."""
    first, second = texts(n, seed), texts(n, seed + 1000)
    lines = ["first,second,label" if pairs else "text,label"]
    for i in range(n):
        words = f"{first[i]},{second[i]}" if pairs else first[i]
        lines.append(f"{words},{labels[i % len(labels)]}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_glue(folder: Path, task: str, n: int = 40) -> Path:
    """STS-B (targets) or MNLI (two test sets, three classes) in GLUE's TSV layout; the parent folder."""
    header, files = {
        "STS-B": ("index\tsentence1\tsentence2\tscore", ("train.tsv", "dev.tsv")),
        "MNLI": (
            "index\tsentence1\tsentence2\tgold_label",
            ("train.tsv", "dev_matched.tsv", "dev_mismatched.tsv"),
        ),
    }[task]
    (folder / task).mkdir(parents=True)
    names = ("entailment", "neutral", "contradiction")
    for seed, file in enumerate(files):
        rows = n if seed == 0 else n // 2 + seed
        first, second = texts(rows, seed), texts(rows, seed + 50)
        lines = [header]
        for i in range(rows):
            label = f"{(i * 7 % 11) / 2.2:.3f}" if task == "STS-B" else names[i % 3]
            lines.append(f"{i}\t{first[i]}\t{second[i]}\t{label}")
        (folder / task / file).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def settings(
    folder: Path,
    backbone: Path,
    methods: Sequence[str | MethodSettings] = METHODS,
    *,
    seeds: Sequence[int] = (0, 1),
    protocol: str = "holdout",
    **training: Any,
) -> Settings:
    """Settings on folder/train.csv and folder/test.csv."""
    return Settings(
        data=DataSettings(
            file=str(folder / "train.csv"), test_file=str(folder / "test.csv"), protocol=protocol
        ),
        methods=tuple(MethodSettings(m) if isinstance(m, str) else m for m in methods),
        seeds=tuple(seeds),
        training={**TRAINING, **training},
        backbone=str(backbone),
        dtype="float32",
    )


def on_task(given: Settings, task: str, data_dir: Path, protocol: str = "holdout") -> Settings:
    """The same settings on a named task."""
    return replace(given, data=DataSettings(task=task, data_dir=str(data_dir), protocol=protocol))


def train(folder: Path, given: Settings | Prepared, watch: Any = lambda event: None) -> Outcome:
    """Prepare and train in this process."""
    return Run(folder, given if isinstance(given, Prepared) else prepare(given)).train(watch)


@dataclass(frozen=True)
class Made:
    """The folders that many tests read and none changes."""

    folder: Path
    backbone: Path
    run: Path
    """All four methods, two seeds, held-out selection."""


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


def run_cli(*words: object, stdin: str | bytes = "") -> Result:
    """One command in this process: its exit code and both streams."""
    out, err = io.StringIO(), io.StringIO()
    fresh = typer.Typer(
        name="fleetune",
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        callback=cli._root,
    )
    code = 0
    given = stdin if isinstance(stdin, bytes) else stdin.encode()
    with (
        mock.patch.object(cli, "app", fresh),
        mock.patch.object(cli.signal, "signal"),
        mock.patch.object(sys, "argv", ["fleetune", *map(str, words)]),
        mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(given))),
        mock.patch.dict(os.environ, {"FLEETUNE_WARNINGS": "", "NO_COLOR": "", "TERM": "dumb"}),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        import warnings

        with warnings.catch_warnings():
            try:
                cli.main()
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return Result(code, out.getvalue(), err.getvalue())


def on_disk(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path]]:
    """What is flushed to the disk and what gets its name from now on, in order: ("flush", path), ("name", path)."""
    found: list[tuple[str, Path]] = []
    opened: dict[int, Path] = {}
    real_open, real_fsync = os.open, os.fsync

    def open_(path: Any, *words: Any, **more: Any) -> int:
        handle = real_open(path, *words, **more)
        opened[handle] = Path(path)
        return handle

    def fsync(handle: int) -> None:
        found.append(("flush", opened[handle]))
        real_fsync(handle)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "fsync", fsync)

    def naming(real: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
        def move(source: Any, target: Any) -> None:
            found.append(("name", Path(target)))
            real(source, target)

        return move

    for name in ("replace", "rename"):
        monkeypatch.setattr(os, name, naming(getattr(os, name)))
    return found


def tree(folder: Path) -> dict[str, bytes]:
    """Every file under a folder with its content."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
