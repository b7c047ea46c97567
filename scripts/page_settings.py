"""docs/settings.md: every training setting, and what became of other names of `transformers.TrainingArguments`."""

from __future__ import annotations

import dataclasses
from typing import Any

from fleetune.config import _OLD_NAMES as OLD_NAMES
from fleetune.config import TrainingSettings
from scripts import markdown as md

# What to use instead of other names of TrainingArguments. Those that config.py tells in an error stand there.
INSTEAD: dict[str, str] = {
    "output_dir": "`--output-dir`",
    "seed": "`--seed` for the first seed, `--seeds` for how many",
    "data_seed": "none: a trial's seed sets head, adapter, order, dropout and split",
    "optim": "none: AdamW, torch's own",
    "save_strategy": "none: every epoch, and at least every five minutes, so that a cut costs little",
    "save_total_limit": "none: two snapshots of the cohort are kept while it trains",
    "resume_from_checkpoint": "none: the same command again goes on",
    "logging_steps": "none: loss and metrics of each epoch are in the journal",
    "report_to": "`--report-to` with tensorboard or trackio; without it the run folder holds everything",
    "dataloader_num_workers": "none: rows are tokenised once, before training",
    "train_sampling_strategy": "none: packed rows have no padding, so their lengths need no grouping",
    "use_cpu": "`--device cpu`",
    "hub_model_id": "none while training; afterwards `fleetune export MODEL --push-to-hub OWNER/NAME`",
    "push_to_hub": "none while training; afterwards `fleetune export MODEL --push-to-hub OWNER/NAME`",
    "auto_find_batch_size": "none: where memory is short, lower `per_device_train_batch_size`",
    "label_names": "none: the task says which column is the label",
}  # fmt: skip


def names_of_transformers() -> dict[str, Any]:
    """The fields of TrainingArguments with their defaults; `...` where a factory makes them."""
    from transformers import TrainingArguments

    return {
        f.name: f.default if f.default is not dataclasses.MISSING else ...
        for f in dataclasses.fields(TrainingArguments)
    }


def instead() -> dict[str, str]:
    """Every name that has another here, or none, and what to use."""
    told = {name: _in_code(value) for name, value in OLD_NAMES.items()}
    return dict(sorted({**told, **INSTEAD}.items()))


def _in_code(told: str) -> str:
    """What config.py says in an error, its setting or flag as code."""
    if told.startswith("none"):
        return told
    if told.startswith("--"):
        return md.code(told)
    name, space, rest = told.partition(" ")
    return f"{md.code(name)}{space}{rest}"


def render() -> str:
    """The page."""
    theirs = names_of_transformers()
    rows = [
        [
            md.code(name),
            md.kind_of(field),
            md.default_of(field),
            _their_default(theirs[name], md.default_of(field))
            if name in theirs
            else "no such name",
            field.description or "",
        ]
        for name, field in TrainingSettings.model_fields.items()
    ]
    return md.page(
        "Training settings",
        [
            md.paragraph(
                "Names and meanings are those of `transformers.TrainingArguments`. On the command line a setting is a "
                "flag: `learning_rate` is `--learning-rate`. What is left out keeps its default; a run stores every "
                "value in `study.toml`, defaults included. A setting that cannot be used ends the command with exit "
                "code 2 and a list of all that is wrong."
            ),
            md.table(["setting", "type", "default", "in transformers", "meaning"], rows),
            "## Other names, and what to use instead",
            md.paragraph(
                "Names that transformers has or had, and names that people try. An unknown setting is an error that "
                "names the right one; nothing is ignored without a word."
            ),
            md.table(
                ["name", "use"], [[md.code(name), value] for name, value in instead().items()]
            ),
            md.paragraph(
                "All other names of `TrainingArguments` have no counterpart. The rest of what decides a run is on the "
                "command line: [`fleetune train`](cli.md#fleetune-train). Settings of the methods: "
                "[methods](methods.md)."
            ),
        ],
    )


def _their_default(value: Any, ours: str) -> str:
    plain = getattr(value, "value", value)  # of an enumeration its word
    told = "-" if plain is ... or plain is None else md.code(md.shown(plain))
    return "the same" if told == ours else told
