"""`fleetune study`: methods, settings and seeds of a study file, searched, confirmed and compared."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from fleetune.cli.before import tell_guesses, tell_imitated, tell_lengths, tell_notes, tell_plan
from fleetune.cli.options import (
    AsJson,
    Device,
    DryRun,
    ReportTo,
    SaveSteps,
    check_destination,
    dump,
    out,
    say,
    terminal_width,
)
from fleetune.errors import SOME_TRIALS_FAILED, SettingsError, counted


def register(app: typer.Typer) -> None:
    app.command("study")(study)


def study(
    file: Annotated[
        Path | None, typer.Argument(metavar="STUDY.toml", help="The study file.")
    ] = None,
    output_dir: Annotated[
        Path | None, typer.Option(help="Folder of the run; the same command again goes on in it.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Another value for a key of the file: training.num_train_epochs=5, methods.lora.r=[2,4], confirm.seeds=5.",
        ),
    ] = None,
    dry_run: DryRun = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of a study file, for editors.")
    ] = False,
    device: Device = "cpu",
    report_to: ReportTo = None,
    save_steps: SaveSteps = None,
    as_json: AsJson = False,
) -> None:
    """Search each method with an equal budget, confirm the best settings with fresh seeds, and say what differs.

    Example: fleetune study recipes/rte-search.toml --output-dir runs/rte
    """
    if schema:
        from fleetune.study.schema import schema as json_schema

        dump(json_schema())
        return
    if file is None:
        raise SettingsError("study", ["a study file is needed: fleetune study STUDY.toml"])
    check_destination("study", output_dir, dry_run)
    from fleetune.live.writers import report_names
    from fleetune.study.file import read_study
    from fleetune.study.folder import has_begun, refuse_foreign
    from fleetune.study.prepare import check_compute, prepare
    from fleetune.study.run import Run

    begun = output_dir is not None and has_begun(output_dir)
    settings = read_study(file, set_ or (), begun=begun)
    check_compute(None, device)
    writers = report_names(settings.report_to if report_to is None else report_to)
    if output_dir is not None:
        refuse_foreign(output_dir)  # before minutes are spent on data
    prepared = prepare(settings, cache=not dry_run, device=device, run=output_dir)
    if dry_run:
        _tell(prepared, settings, device)
        tell_plan(prepared, device, as_json)
        return
    assert output_dir is not None
    run = Run(output_dir, prepared, device, save_steps=save_steps)
    if _run(run, settings, writers, as_json):
        raise typer.Exit(SOME_TRIALS_FAILED)


def _tell(prepared: Any, settings: Any, device: str) -> None:
    """What is to be known before hours are spent."""
    tell_imitated(prepared.dtype, device)
    tell_guesses(prepared, settings, "data.text_columns", "data.label_column")
    tell_lengths(prepared, settings, "backbone.max_length")
    for task in prepared.tasks:
        tell_notes(task.dataset, f"{task.dataset.task.name}: " if len(prepared.tasks) > 1 else "")
    if settings.search is not None and not any(arm.searched for arm in prepared.arms):
        say(
            "note: nothing is searched, since no method gives a list or a range; [search] changes nothing"
        )
    if prepared.optimistic:
        say(
            "protocol paper: epochs and settings are chosen on the test rows: numbers are OPTIMISTIC"
        )


def _run(run: Any, settings: Any, writers: Sequence[str], as_json: bool) -> int:
    """Train with progress and print what was found. Returns how many trials failed."""
    from fleetune.live.follow import in_terminal
    from fleetune.report import study_tables, tables
    from fleetune.report.facts import run_facts
    from fleetune.report.winner import winner
    from fleetune.study.estimate import estimate

    prepared, output_dir, device = run.prepared, run.folder, run.device
    plan = estimate(prepared, device)["totals"]
    say(
        f"{counted(plan['trials'], 'trial')}, {counted(plan['epochs'], 'epoch')}, about "
        f"{tables.duration(plan['seconds'])} in all; "
        f"backbone {prepared.backbone.source} in {prepared.dtype}"
    )
    _tell(prepared, settings, device)
    with in_terminal(prepared, output_dir, device, writers) as watch:
        outcome = run.train(watch)
    facts = run_facts(output_dir)
    if as_json:
        dump(facts)
    else:
        out(study_tables.found(facts, terminal_width()))
    if outcome.failed:
        place = shlex.quote(str(output_dir))
        say(f"{counted(outcome.failed, 'trial')} failed; fleetune show {place} names them")
    best = winner(facts)
    if best is not None:
        by = "test rows, OPTIMISTIC" if best["optimistic"] else "selection rows"
        say(
            f"next: fleetune report {shlex.quote(str(output_dir))}   (winner by {by}: {best['id']})"
        )
    return outcome.failed
