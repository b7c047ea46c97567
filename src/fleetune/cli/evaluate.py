"""`fleetune evaluate`: metrics of one saved model on labelled rows."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from fleetune.cli.options import (
    AsJson,
    DataDir,
    DataFile,
    Device,
    Dtype,
    OwnFile,
    Task,
    dump,
    out,
    say,
    tell_cut,
)
from fleetune.errors import DataError, SettingsError


def register(app: typer.Typer) -> None:
    app.command("evaluate")(evaluate)


def evaluate(
    model: Annotated[
        Path,
        typer.Argument(help="A trial's folder, one of export --format hf, or a run (its winner)."),
    ],
    file: OwnFile = None,
    task: Task = None,
    data_dir: DataDir = None,
    data: DataFile = None,
    text_column: Annotated[
        list[str] | None,
        typer.Option(
            help="Column of the text in --data; twice for pairs. By default as it was called in training."
        ),
    ] = None,
    label_column: Annotated[
        str | None,
        typer.Option(
            help="Column of the label in --data. By default as it was called in training."
        ),
    ] = None,
    dtype: Dtype = None,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Metrics of a saved model on a task's test set, or on own labelled rows.

    Example: fleetune evaluate runs/first fresh.csv
    """
    from fleetune.data.notes import of_f1
    from fleetune.data.overlap import overlaps_with
    from fleetune.report.model_facts import seen_by
    from fleetune.serve.evaluation import evaluate_rows
    from fleetune.serve.predictor import Predictor

    task, data = _source(file, task, data)
    if problems := _misplaced(task, data_dir, text_column, label_column):
        raise SettingsError("evaluate", problems)
    predictor = Predictor(model, dtype=dtype, device=device)
    sets = _sets(predictor, task, data_dir, data, text_column, label_column)
    seen, record = seen_by(predictor.folder, predictor.record.task), predictor.record
    found: list[dict[str, Any]] = []
    for name, split in sets:
        chose = split.checksum in (record.chosen_on or {}).values() or (
            seen is not None
            and any(overlaps_with(rows, {name: split}) for rows in seen.chose.values())
        )
        one = evaluate_rows(predictor, name, split, optimistic=chose)
        one["in_train"] = None if data is None else _in_train(name, split, seen)
        if chose:
            say(
                f"note: rows of {name} chose this model's epoch, so its scores on them are OPTIMISTIC"
            )
        elif seen is None and record.chosen_on != {} and (data is None or record.chosen_on):
            say(
                f"note: the run of this model is not at hand, so whether rows of {name} chose its epoch is not known"
            )
        tell_cut(one["truncated"], name, record.max_length)
        found.append(one)
    for note in of_f1(record.metrics, record.label_names):
        say(f"note: {note}")
    if as_json:
        dump({"model": str(predictor.folder), "task": task or str(data), "sets": found})
        return
    from fleetune.report.tables import OPTIMISTIC, grid, span, texts_given

    rows = [
        [
            e["set"],
            m + (f" ({OPTIMISTIC})" if v["optimistic"] else ""),
            f"{100 * v['value']:.2f}",
            span(v),
            str(v["n"]),
            v["how"],
        ]
        for e in found
        for m, v in e["metrics"].items()
    ]
    out(grid(["set", "metric", "value", "95% interval", "n", "how"], rows, right=(2, 4)))
    say(f"next: fleetune predict {shlex.quote(str(model))} {texts_given(predictor.pairs)}")


def _in_train(name: str, split: Any, seen: Any) -> int | None:
    """How many of the rows the model was trained on, where that is known; tells of them, and where it is not known."""
    from fleetune.data.overlap import overlap_message, overlaps_with

    if seen is None:
        say(
            f"note: the rows that this model was trained on are not at hand, so whether those of {name} are among them "
            "was not looked at"
        )
        return None
    overlap = overlaps_with(seen.train, {name: split}).get(name)
    if overlap is None:
        return 0
    say(f"note: {overlap_message(name, overlap, len(split))}")
    return overlap.rows


def _source(
    file: str | None, task: str | None, data: Path | None
) -> tuple[str | None, Path | None]:
    """The task, or the file of rows; file: one of both."""
    if file is not None and (task or data):
        raise SettingsError("evaluate", [f"give {file} alone, or --task, or --data, and not both"])
    if file is not None:
        from fleetune.study.fixed import task_or_file

        task, own = task_or_file(file)
        data = None if own is None else Path(own)
    if task is None and data is None:
        raise SettingsError(
            "evaluate", ["rows are needed: give a file of labelled rows, or --task"]
        )
    if task is not None and data is not None:
        raise SettingsError("evaluate", ["give either --task or --data, and not both"])
    return task, data


def _misplaced(
    task: str | None, data_dir: Path | None, text: list[str] | None, label: str | None
) -> list[str]:
    """What is given for the other source of rows, and would change nothing."""
    if task is None:
        given, told = {"--data-dir": data_dir}, "is for --task, and the rows come from --data"
    else:
        given = {"--text-column": text, "--label-column": label}
        told = f"is for --data, and the columns of task {task} are known"
    return [f"{flag} {told}; leave it out" for flag, value in given.items() if value]


def _sets(
    predictor: Any,
    task: str | None,
    data_dir: Path | None,
    data: Path | None,
    text: Any,
    label: str | None,
) -> list[tuple[str, Any]]:
    from fleetune.serve.evaluation import labelled_file
    from fleetune.serve.predictor import check_columns

    record = predictor.record
    if data is not None:
        return [(data.name, labelled_file(data, text, label, record))]
    from fleetune.data.load import load_task

    assert task is not None
    dataset = load_task(task, data_dir)
    if list(dataset.task.label_names) != record.label_names:
        raise DataError(
            task,
            [
                f"{_labels(dataset.task.label_names, 'its labels are')}, but {_labels(record.label_names, 'the model gives')}"
            ],
        )
    check_columns(dataset.task.columns, record)
    return list(dataset.tests.items())


def _labels(names: Sequence[str], told: str) -> str:
    """Labels in words; a target that is a number has none."""
    return f"{told} {', '.join(names) if names else 'numbers'}"
