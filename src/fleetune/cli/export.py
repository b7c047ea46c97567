"""`fleetune export`: a saved model in a form that others read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fleetune.cli.options import out, say
from fleetune.errors import SettingsError, did_you_mean

FORMATS = ("hf",)


def register(app: typer.Typer) -> None:
    app.command("export")(export)


def export(
    model: Annotated[Path, typer.Argument(help="A trial's folder, or a run (its winner).")],
    output: Annotated[Path, typer.Option(help="New folder to write.")],
    format_: Annotated[
        str, typer.Option("--format", help="hf: one plain transformers model, adapter merged.")
    ] = "hf",
) -> None:
    """Merge the adapter into the backbone and write a plain transformers model.

    Example: fleetune export runs/first --format hf --output my-model
    """
    if format_ not in FORMATS:
        raise SettingsError(
            "export", [f'format "{format_}" is not known{did_you_mean(format_, FORMATS)}']
        )
    from fleetune.artifact.export import export_hf
    from fleetune.serve.predictor import model_folder

    folder = model_folder(model)
    export_hf(folder, output)
    out(str(output))
    say(
        f"exported {folder}; load it with AutoModelForSequenceClassification.from_pretrained({str(output)!r})"
    )
