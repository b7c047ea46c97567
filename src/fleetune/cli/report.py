"""`fleetune report`: the HTML report of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fleetune.cli.options import out, say


def register(app: typer.Typer) -> None:
    app.command("report")(report)


def report(
    run: Annotated[Path, typer.Argument(help="Folder of a run, finished or not.")],
    output: Annotated[
        Path | None,
        typer.Option(
            help="File to write; an earlier report is replaced, any other file is not. Default: report.html in the run's folder."
        ),
    ] = None,
) -> None:
    """Write the report of a run as one HTML file that opens anywhere and asks for nothing.

    Example: fleetune report runs/first --output first.html
    """
    from fleetune.report.page import write_report

    path = write_report(run, output)
    out(str(path))
    say(f"{path.stat().st_size / 1000:.0f} kB; open it in a browser, or send it on as it is")
