"""`fleetune train`: one setting of each named method, any number of seeds, all in one cohort."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from fleetune.cli import shell
from fleetune.cli.before import tell_guesses, tell_imitated, tell_lengths, tell_notes, tell_plan
from fleetune.cli.options import (
    AsJson,
    DataDir,
    DataFile,
    Device,
    DryRun,
    LabelColumn,
    OwnFile,
    ReportTo,
    SaveSteps,
    Task,
    TextColumn,
    check_destination,
    dump,
    out,
    parse_set,
    say,
    split_names,
    terminal_width,
    with_training_flags,
)
from fleetune.errors import SOME_TRIALS_FAILED, SettingsError, counted


def register(app: typer.Typer) -> None:
    app.command("train")(with_training_flags(train))


def train(
    file: OwnFile = None,
    output_dir: Annotated[
        Path | None, typer.Option(help="Folder of the run; the same command again goes on in it.")
    ] = None,
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
    dry_run: DryRun = False,
    as_json: AsJson = False,
    *,
    training: dict[str, Any],
) -> None:
    """Train one setting of each method, with any number of seeds, and compare.

    Example: fleetune train --task demo-sentiment --methods bitfit,lora --seeds 3 --output-dir runs/first
    """
    check_destination("train", output_dir, dry_run)
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
    if output_dir is None or dry_run:
        dry(settings, device, as_json)
        return
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
    from fleetune.study.folder import refuse_foreign
    from fleetune.study.prepare import check_compute, prepare
    from fleetune.study.run import Run

    check_compute(None, device)
    writers = report_names(report_to)
    refuse_foreign(output_dir)  # before minutes are spent on data
    prepared = prepare(settings, device=device, run=output_dir)
    _introduce(prepared, settings, device)
    with in_terminal(prepared, output_dir, device, writers) as watch:
        outcome = Run(output_dir, prepared, device, save_steps=save_steps).train(watch)
    # Only now: statistics take a second to import, and training need not wait for them.
    from fleetune.report import study_tables, tables
    from fleetune.report.facts import run_facts
    from fleetune.report.winner import winner
    from fleetune.study.folder import trial_folder

    facts = run_facts(output_dir)
    if as_json:
        dump(facts)
    else:
        out(study_tables.found(facts, terminal_width()))
    if outcome.skipped:
        whole = counted(len(prepared.inputs), "trial")
        say(f"{outcome.skipped} of {whole} had been finished before")
    for trial in facts["trials"]:
        if trial["status"] == "failed":
            say(f"{trial['id']} failed: {trial['reason']}")
    best = winner(facts)
    if best is not None and trial_folder(output_dir, best["id"]).is_dir():
        texts = tables.texts_of(facts, best)
        chosen = "test rows, OPTIMISTIC" if best["optimistic"] else "selection rows"
        say(
            f"next: fleetune predict {shlex.quote(str(output_dir))} {texts}   (uses {best['id']}, best on the {chosen})"
        )
    return outcome.failed


def dry(settings: Any, device: str, as_json: bool) -> None:
    """Prepare and print what would run. Nothing is written."""
    from fleetune.study.prepare import check_compute, prepare

    check_compute(None, device)
    prepared = prepare(settings, cache=False, device=device)
    _introduce(prepared, settings, device)
    tell_plan(prepared, device, as_json)


def _introduce(prepared: Any, settings: Any, device: str) -> None:
    data, first = prepared.dataset, prepared.inputs[0]
    say(
        f"{data.task.name}: {len(first.train)} train, {len(first.selection)} selection, "
        + ", ".join(f"{len(split)} {name}" for name, split in data.tests.items())
        + f" rows ({data.source}); text {' + '.join(data.task.columns)}, label {data.task.label_column}"
    )
    tell_guesses(prepared, settings)
    tell_notes(data)
    say(
        f"backbone {prepared.backbone.source} in {prepared.dtype}; {counted(len(prepared.inputs), 'trial')}"
    )
    tell_imitated(prepared.dtype, device)
    tell_lengths(prepared, settings)
    if prepared.optimistic:
        say(
            "protocol paper: the epoch is chosen on the test rows, so the numbers will be OPTIMISTIC"
        )
