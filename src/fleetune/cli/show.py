"""`fleetune show`: what a run has found so far, or what one of its trials did."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from fleetune.cli.options import AsJson, dump, out, say, terminal_width, visible_lines
from fleetune.errors import SettingsError


def register(app: typer.Typer) -> None:
    app.command("show")(show)


def show(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    trial: Annotated[str | None, typer.Argument(help="One trial of it, by its name.")] = None,
    as_json: AsJson = False,
    as_csv: Annotated[
        bool,
        typer.Option("--csv", help="Print CSV: one row a trial, or an epoch of the named trial."),
    ] = False,
) -> None:
    """Print the trials and estimates of a run, finished or not; or all that is known of one trial.

    Example: fleetune show runs/first
    Example: fleetune show runs/first lora-s42
    Example: fleetune show runs/first --csv > trials.csv
    """
    from fleetune.report import tables, trial_tables
    from fleetune.report.facts import run_facts
    from fleetune.report.stored import damage_told
    from fleetune.study.folder import trial_folder

    if as_json and as_csv:
        raise SettingsError("show", ["give --json or --csv, and not both"])
    facts = run_facts(run)
    chosen = None if trial is None else trial_tables.trial_of(facts, trial)
    if as_json:
        dump(facts if chosen is None else chosen)
    elif as_csv:
        out(trial_tables.trials_csv(facts) if chosen is None else trial_tables.epochs_csv(chosen))
    elif chosen is not None:
        out(trial_tables.one(chosen))
        if chosen["status"] == "done" and chosen["phase"] != "search":
            place = _quoted(trial_folder(run, chosen["id"]))
            say(f"next: fleetune predict {place} {tables.texts_of(facts, chosen)}")
    else:
        with damage_told(run):
            _all(run, facts)


def _all(run: Path, facts: dict[str, Any]) -> None:
    from fleetune.report import study_tables, tables
    from fleetune.report.winner import winner
    from fleetune.study.folder import trial_folder

    study = facts["study"]
    data, backbone = study["data"], study["backbone"]["name"]
    told = f"{data['task']}, protocol {data['protocol']}, {backbone}: {study['status']}"
    out(f"{visible_lines(told)}\n")
    out(tables.trials(facts))
    out("")
    out(study_tables.found(facts, terminal_width()))
    best = winner(facts)
    if study["status"] != "done":
        say("not finished: the same command goes on where it stopped")
    elif best is not None and trial_folder(run, best["id"]).is_dir():
        texts = tables.texts_of(facts, best)
        say(f"next: fleetune predict {_quoted(run)} {texts}   (uses {best['id']})")
        say(f"      fleetune report {_quoted(run)}   (one HTML file with everything)")


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
