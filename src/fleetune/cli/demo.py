"""`fleetune demo`: the whole thing on the embedded task and encoder, offline, ending in a report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fleetune.cli.options import AsJson, say
from fleetune.errors import SOME_TRIALS_FAILED


def register(app: typer.Typer) -> None:
    app.command("demo")(demo)


def demo(
    output_dir: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/demo"),
    as_json: AsJson = False,
) -> None:
    """Train head, BitFit and LoRA with five seeds each on demo-sentiment in one cohort, compare them, and write the report.

    Example: fleetune demo
    """
    from fleetune.cli.train import run
    from fleetune.study.prepare import DataSettings, MethodSettings, Settings

    say(
        "demo-sentiment: 3 methods x 5 seeds on all-MiniLM-L6-v2, offline; a few minutes on two cores"
    )
    settings = Settings(
        data=DataSettings(task="demo-sentiment"),
        methods=(
            # Without dropout what the head reads of a row never changes, so the encoder sees each row once.
            MethodSettings("head", training={"learning_rate": 5e-3, "dropout": 0.0}),
            MethodSettings("bitfit", training={"learning_rate": 3e-3}),
            MethodSettings("lora", {"r": 8, "lora_alpha": 16.0}, {"learning_rate": 2e-3}),
        ),
        seeds=(0, 1, 2, 3, 4),
        training={"num_train_epochs": 4, "warmup_steps": 0.1, "weight_decay": 0.01},
    )
    failed = run(settings, output_dir, as_json=as_json)
    from fleetune.report.page import write_report

    say(f"report: {write_report(output_dir)}   (one file; open it in a browser)")
    say("      the same with your own rows: fleetune train reviews.csv --output-dir runs/own")
    if failed:
        raise typer.Exit(SOME_TRIALS_FAILED)
