"""`fleetune export`: a saved model in a form that others read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fleetune.cli.options import out, say
from fleetune.errors import SettingsError, did_you_mean

FORMATS = ("hf", "optuna")


def register(app: typer.Typer) -> None:
    app.command("export")(export)


def export(
    model: Annotated[Path, typer.Argument(help="A trial's folder, or a run (its winner).")],
    output: Annotated[Path, typer.Option(help="New folder to write; for optuna a new file.")],
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            help="hf: one plain transformers model, adapter merged. optuna: the search of a study as a database for "
            "optuna-dashboard.",
        ),
    ] = "hf",
) -> None:
    """Merge the adapter into the backbone and write a plain transformers model; or write a study's search for Optuna.

    Example: fleetune export runs/first --format hf --output my-model
    """
    if format_ not in FORMATS:
        raise SettingsError(
            "export", [f'format "{format_}" is not known{did_you_mean(format_, FORMATS)}']
        )
    if format_ == "optuna":
        _optuna(model, output)
        return
    from fleetune.artifact.export import export_hf
    from fleetune.serve.predictor import model_folder

    folder = model_folder(model)
    export_hf(folder, output)
    out(str(output))
    say(
        f"exported {folder}; load it with AutoModelForSequenceClassification.from_pretrained({str(output)!r})"
    )


def _optuna(run: Path, output: Path) -> None:
    from fleetune.study.journal import NAME
    from fleetune.study.optuna_file import export_optuna

    if not (run / NAME).is_file():
        raise SettingsError(str(run), ["no run: give the --output-dir of a study"])
    count = export_optuna(run, output)
    out(str(output))
    say(f"{count} trials; look at them with optuna-dashboard sqlite:///{output}")
