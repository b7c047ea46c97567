"""`fleetune export`: a saved model in a form that others read."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from fleetune.cli.options import out, say
from fleetune.errors import SettingsError, counted, did_you_mean

FORMATS = ("hf", "onnx", "optuna")


def register(app: typer.Typer) -> None:
    app.command("export")(export)


def export(
    model: Annotated[Path, typer.Argument(help="A trial's folder, or a run (its winner).")],
    output: Annotated[
        Path | None, typer.Option(help="New folder to write; for optuna a new file.")
    ] = None,
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            help="hf: one plain transformers model, adapter merged. onnx: the same as a graph for ONNX Runtime. optuna: the "
            "search of a study as a database for optuna-dashboard.",
        ),
    ] = "hf",
    push_to_hub: Annotated[
        str | None,
        typer.Option(
            metavar="OWNER/NAME",
            help="Send the model to this repository of the hub, private unless --public: the adapter as it is saved, or with "
            "--output the merged model.",
        ),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Everybody may read what --push-to-hub sends.")
    ] = False,
) -> None:
    """Merge the adapter into the backbone and write a plain transformers model or an ONNX graph; send a model to the hub; or
    write a study's search for Optuna.

    Example: fleetune export runs/first --format hf --output my-model
    Example: fleetune export runs/first --format onnx --output my-graph
    Example: fleetune export runs/first --push-to-hub me/my-adapter
    Example: fleetune export runs/study --format optuna --output search.db
    """
    if format_ not in FORMATS:
        told = did_you_mean(format_, FORMATS)
        if format_.casefold() == "peft":
            told = "; a trial's folder (RUN/trials/ID) is in PEFT's layout as it is, and needs no export"
        raise SettingsError("export", [f'format "{format_}" is not known{told}'])
    if public and push_to_hub is None:
        raise SettingsError("export", ["--public says who may read what --push-to-hub sends"])
    if format_ == "optuna":
        if push_to_hub is not None:
            raise SettingsError("export", ["--push-to-hub sends a model, and optuna is none"])
        _optuna(model, _needed(output))
        return
    from fleetune.serve.predictor import model_folder

    folder = model_folder(model)
    if push_to_hub is None or output is not None or format_ == "onnx":
        output = _needed(output)
        load = _onnx(folder, output) if format_ == "onnx" else _hf(folder, output)
        out(str(output))
        say(f"exported {folder}; load it with {load}")
        folder = output
    if push_to_hub is not None:
        from fleetune.artifact.push import push_model

        out(push_model(folder, push_to_hub, public=public))
        who = "everybody can read it" if public else "private; its page has the setting"
        say(f"sent {folder} ({who}); predictions of the test rows stay here")


def _hf(folder: Path, output: Path) -> str:
    from fleetune.artifact.export import export_hf

    export_hf(folder, output)
    return f"AutoModelForSequenceClassification.from_pretrained({str(output)!r})"


def _onnx(folder: Path, output: Path) -> str:
    from fleetune.artifact import layout
    from fleetune.artifact.onnx import export_onnx

    export_onnx(folder, output)
    return f"onnxruntime.InferenceSession({str(output / layout.GRAPH)!r}); its README.md says how"


def _needed(output: Path | None) -> Path:
    if output is None:
        raise SettingsError("export", ["--output is needed: a new place to write to"])
    return output


def _optuna(run: Path, output: Path) -> None:
    from fleetune.study.journal import NAME
    from fleetune.study.optuna_file import export_optuna, url_of

    if not (run / NAME).is_file():
        raise SettingsError(str(run), ["no run: give the --output-dir of a study"])
    count = export_optuna(run, output)
    out(str(output))
    say(
        f"{counted(count, 'trial')}; look at them with optuna-dashboard {shlex.quote(url_of(output))}"
    )
