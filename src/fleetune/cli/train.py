"""`fleetune train`: one setting of each named method, any number of seeds, all in one cohort."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from fleetune.cli import shell
from fleetune.cli.options import (
    AsJson,
    DataDir,
    DataFile,
    Device,
    LabelColumn,
    OwnFile,
    ReportTo,
    SaveSteps,
    Task,
    TextColumn,
    dump,
    out,
    parse_set,
    say,
    split_names,
    tell_cut,
    with_training_flags,
)
from fleetune.errors import SOME_TRIALS_FAILED, SettingsError

# A guess is checked at a glance.
SHOWN_CLASSES = 5
# Labels that a note names.


def register(app: typer.Typer) -> None:
    app.command("train")(with_training_flags(train))


def train(
    output_dir: Annotated[
        Path, typer.Option(help="Folder of the run; the same command again goes on in it.")
    ],
    file: OwnFile = None,
    task: Task = None,
    data_dir: DataDir = None,
    data: DataFile = None,
    test_data: Annotated[
        Path | None,
        typer.Option(help="Own test rows; without them a fixed tenth of --data is the test set."),
    ] = None,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    groups_column: Annotated[
        str | None,
        typer.Option(help="Rows with the same value here stay on one side of every split."),
    ] = None,
    max_train_samples: Annotated[
        int | None,
        typer.Option(
            min=10,
            help="Take so many rows of train at most: a stratified draw, the same for every trial.",
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            "--methods",
            help="Methods to train, e.g. bitfit,lora. Default: lora.",
            autocompletion=shell.methods,
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="A setting of the method: r=8, or lora.r=8 for one of several. See fleetune methods.",
        ),
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, help="How many seeds: --seed and the next ones.")
    ] = 1,
    seed: Annotated[
        int,
        typer.Option(
            min=0, help="The first seed. It sets head, adapter, order, dropout and split."
        ),
    ] = 42,
    protocol: Annotated[
        str,
        typer.Option(
            help="holdout: the epoch is chosen on a tenth of train, the test set is used once. paper: the epoch is chosen "
            "on the test set, as many papers do; its numbers are stamped optimistic.",
            autocompletion=shell.choices("holdout", "paper"),
        ),
    ] = "holdout",
    backbone: Annotated[
        str, typer.Option(help="minilm, roberta-base, any hub id, or a local folder.")
    ] = "minilm",
    revision: Annotated[str | None, typer.Option(help="Commit, branch or tag of a hub id.")] = None,
    dtype: Annotated[
        str,
        typer.Option(
            help="Compute dtype of the encoder: auto, bfloat16, float32, float64.",
            autocompletion=shell.choices(*shell.DTYPES),
        ),
    ] = "auto",
    max_length: Annotated[
        int | None,
        typer.Option(
            help="Most tokens of a row; longer ones are cut and counted. Default: 256, or the backbone's limit."
        ),
    ] = None,
    device: Device = "cpu",
    report_to: ReportTo = None,
    save_steps: SaveSteps = None,
    as_json: AsJson = False,
    *,
    training: dict[str, Any],
) -> None:
    """Train one setting of each method, with any number of seeds, and compare.

    Example: fleetune train --task demo-sentiment --methods bitfit,lora --seeds 3 --output-dir runs/first
    """
    from fleetune.study.fixed import fixed_settings, task_or_file
    from fleetune.study.settings import DataSettings, MethodSettings

    names = split_names(method or ["lora"])
    own = parse_set(set_ or [], names)
    path = str(data) if data else None
    if file is not None:
        if task or path:
            raise SettingsError("train", [f"give {file} alone, or --task, or --data, and not both"])
        task, path = task_or_file(file)
    settings = fixed_settings(
        DataSettings(
            task=task,
            data_dir=str(data_dir) if data_dir else None,
            file=path,
            test_file=str(test_data) if test_data else None,
            text_columns=tuple(text_column) if text_column else None,
            label_column=label_column,
            groups_column=groups_column,
            max_train_samples=max_train_samples,
            protocol=protocol,
        ),
        [MethodSettings(name, own[name]) for name in names],
        seeds=seeds,
        seed=seed,
        training=training,
        backbone=backbone,
        revision=revision,
        dtype=dtype,
        max_length=max_length,
    )
    failed = run(
        settings,
        output_dir,
        device=device,
        report_to=report_to,
        save_steps=save_steps,
        as_json=as_json,
    )
    if failed:
        raise typer.Exit(SOME_TRIALS_FAILED)


def run(
    settings: Any,
    output_dir: Path,
    *,
    device: str = "cpu",
    report_to: Sequence[str] | None = None,
    save_steps: int | None = None,
    as_json: bool = False,
) -> int:
    """Prepare, train with progress, print the comparison. Returns how many trials failed."""
    from fleetune.live.follow import in_terminal
    from fleetune.live.writers import report_names
    from fleetune.study.prepare import check_compute, prepare
    from fleetune.study.run import Run

    check_compute(None, device)
    writers = report_names(report_to)
    prepared = prepare(settings, device=device)
    _introduce(prepared, settings, device)
    with in_terminal(prepared, output_dir, device, writers) as watch:
        outcome = Run(output_dir, prepared, device, save_steps=save_steps).train(watch)
    # Only now: statistics take a second to import, and training need not wait for them.
    from fleetune.report import study_tables, tables
    from fleetune.report.facts import run_facts, winner

    facts = run_facts(output_dir)
    if as_json:
        dump(facts)
    else:
        out(study_tables.found(facts))
    if outcome.skipped:
        say(f"{outcome.skipped} of {len(prepared.inputs)} trials had been finished before")
    for trial in facts["trials"]:
        if trial["status"] == "failed":
            say(f"{trial['id']} failed: {trial['reason']}")
    best = winner(facts)
    if best is not None:
        texts = tables.texts_of(facts, best)
        say(
            f"next: fleetune predict {shlex.quote(str(output_dir))} {texts}   (uses {best['id']}, best on the selection rows)"
        )
    return outcome.failed


def _introduce(prepared: Any, settings: Any, device: str) -> None:
    data, first = prepared.dataset, prepared.inputs[0]
    say(
        f"{data.task.name}: {len(first.train)} train, {len(first.selection)} selection, "
        + ", ".join(f"{len(split)} {name}" for name, split in data.tests.items())
        + f" rows ({data.source}); text {' + '.join(data.task.columns)}, label {data.task.label_column}"
    )
    tell_guesses(prepared, settings)
    tell_notes(data)
    say(f"backbone {prepared.backbone.source} in {prepared.dtype}; {len(prepared.inputs)} trials")
    tell_imitated(prepared.dtype, device)
    tell_lengths(prepared, settings)
    if prepared.optimistic:
        say(
            "protocol paper: the epoch is chosen on the test rows, so the numbers will be OPTIMISTIC"
        )


def tell_guesses(
    prepared: Any, settings: Any, text: str = "--text-column", label: str = "--label-column"
) -> None:
    """Which columns of own files were guessed; text, label: the flags, or keys of a study file, that name others."""
    what = "flags" if text.startswith("--") else "keys"
    for task, given in zip(prepared.tasks, settings.all_data, strict=True):
        guessed = _guessed(task.dataset.task, given, text, label)
        if guessed:
            of = f" for {task.dataset.task.name}" if len(prepared.tasks) > 1 else ""
            say(f"guessed{of}: {'; '.join(guessed)}; name others with these {what}")


def tell_lengths(prepared: Any, settings: Any, place: str = "--max-length") -> None:
    """Whether rows were cut, and whether the length that was asked for is more than there is; place: where it is given."""
    most = prepared.max_length
    if settings.max_length is not None and settings.max_length > most:
        say(
            f"{place} {settings.max_length} is more than the backbone reads: {most} tokens are used"
        )
    for task in prepared.tasks:
        of = f" ({task.dataset.task.name})" if len(prepared.tasks) > 1 else ""
        for name, count in task.truncated.items():
            tell_cut(count, name + of, most, f" ({place})")


def tell_notes(dataset: Any) -> None:
    """What is to be known of the rows before their scores are believed."""
    from fleetune.data.notes import notes_on, of_f1

    for note in (*notes_on(dataset), *of_f1(dataset.task.metrics, dataset.task.label_names)):
        say(f"note: {note}")


def tell_imitated(dtype: str, device: str) -> None:
    """That the dtype which was asked for is slow here."""
    from fleetune.study.prepare import is_imitated

    if is_imitated(dtype, device):
        say(
            f"note: {device} has no {dtype} in hardware; --dtype auto would take float32, which is many times faster here"
        )


def _guessed(task: Any, given: Any, text: str, label: str) -> list[str]:
    """The guesses about one task's columns, each with what changes it."""
    if given.file is None:
        return []
    guessed: list[str] = []
    if not given.text_columns:
        guessed.append(f"text = {' + '.join(task.columns)} ({text})")
    if not given.label_column:
        classes = ", ".join(task.label_names[:SHOWN_CLASSES])
        more = "" if len(task.label_names) <= SHOWN_CLASSES else ", ..."
        told = f"with {len(task.label_names)} classes, {classes}{more}"
        guessed.append(f"label = {task.label_column} {told} ({label})")
    return guessed
