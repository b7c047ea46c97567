"""`fleetune show`: what a run has found so far."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fleetune.cli.options import AsJson, dump, out, say, visible_lines


def register(app: typer.Typer) -> None:
    app.command("show")(show)


def show(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    as_json: AsJson = False,
) -> None:
    """Print the trials and estimates of a run, finished or not."""
    from fleetune.report import study_tables, tables
    from fleetune.report.facts import run_facts, winner

    facts = run_facts(run)
    if as_json:
        dump(facts)
        return
    study = facts["study"]
    data, backbone = study["data"], study["backbone"]["name"]
    told = f"{data['task']}, protocol {data['protocol']}, {backbone}: {study['status']}"
    out(f"{visible_lines(told)}\n")
    out(tables.trials(facts))
    out("")
    out(study_tables.found(facts))
    best = winner(facts)
    if study["status"] != "done":
        say("not finished: the same command goes on where it stopped")
    elif best is not None:
        say(f'next: fleetune predict {run} --text "..."   (uses {best["id"]})')
