"""Training settings under the names of `transformers.TrainingArguments`, checked all at once.

Defaults are transformers' own, except where a field says otherwise. A resolved record holds every value, so that a
stored run leaves nothing to defaults.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from fleetune.errors import SettingsError, did_you_mean

Scheduler = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "warmup_stable_decay",
]
# Beyond these a number is a slip of the keyboard; whole numbers stay small enough for any arithmetic that follows.
MOST_STEPS = 2**31 - 1
MOST_EPOCHS = 1_000_000


class TrainingSettings(BaseModel):
    """How one trial trains."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    learning_rate: float | None = Field(
        default=None, gt=0, description="Peak learning rate of AdamW; by default the method's own."
    )
    num_train_epochs: float = Field(
        default=3.0,
        gt=0,
        le=MOST_EPOCHS,
        description="Passes over the training rows; may end within one.",
    )
    max_steps: int = Field(
        default=-1,
        ge=-1,
        le=MOST_STEPS,
        description="Optimizer steps; when positive it overrides num_train_epochs.",
    )
    per_device_train_batch_size: int = Field(
        default=16,
        ge=1,
        le=MOST_STEPS,
        description="Rows of one micro-batch of one trial (transformers: 8).",
    )
    per_device_eval_batch_size: int = Field(
        default=64,
        ge=1,
        le=MOST_STEPS,
        description="Rows of one trial in one evaluation pass (transformers: 8).",
    )
    gradient_accumulation_steps: int = Field(
        default=1,
        ge=1,
        le=MOST_STEPS,
        description="Micro-batches of one optimizer step; their losses are averaged.",
    )
    warmup_steps: float = Field(
        default=0,
        ge=0,
        le=MOST_STEPS,
        description="Steps of warm-up; below 1 a share of all steps.",
    )
    lr_scheduler_type: Scheduler = Field(
        default="linear", description="Schedule of the learning rate, as transformers names it."
    )
    lr_scheduler_kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description="Settings of the schedule itself, as transformers names them.",
    )
    weight_decay: float = Field(
        default=0.0, ge=0, description="AdamW's decoupled decay; never on biases and norms."
    )
    adam_beta1: float = Field(default=0.9, ge=0, lt=1, description="AdamW's beta1.")
    adam_beta2: float = Field(default=0.999, ge=0, lt=1, description="AdamW's beta2.")
    adam_epsilon: float = Field(default=1e-8, gt=0, description="AdamW's epsilon.")
    max_grad_norm: float = Field(
        default=1.0,
        ge=0,
        description="The trial's gradient is clipped to this norm; 0 does not clip.",
    )
    label_smoothing_factor: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of the target spread over all classes; a regression has none, and takes no notice of it.",
    )
    dropout: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="Replaces every dropout rate of the backbone and its head; by default they keep their own.",
    )
    metric_for_best_model: str | None = Field(
        default=None,
        description='Metric on the selection split that picks the epoch; by default the task\'s main one; "loss" works.',
    )
    greater_is_better: bool | None = Field(
        default=None, description="Direction of that metric; by default known from its name."
    )

    @model_validator(mode="after")
    def _check(self) -> TrainingSettings:
        if self.max_steps == 0:
            raise ValueError(
                "max_steps: must be positive, or -1 to train for num_train_epochs; got 0"
            )
        if self.warmup_steps >= 1 and self.warmup_steps != int(self.warmup_steps):
            raise ValueError(
                "warmup_steps: must be a whole number of steps, or a share below 1; "
                f"got {self.warmup_steps}"
            )
        return self

    def steps_per_epoch(self, rows: int) -> int:
        """Optimizer steps in one pass over so many rows; a last, smaller group of micro-batches is a step too."""
        micro = math.ceil(rows / self.per_device_train_batch_size)
        return max(math.ceil(micro / self.gradient_accumulation_steps), 1)

    def total_steps(self, rows: int) -> int:
        """Optimizer steps of the whole training."""
        if self.max_steps > 0:
            return self.max_steps
        return math.ceil(self.num_train_epochs * self.steps_per_epoch(rows))

    def warmup(self, rows: int) -> int:
        """Warm-up in optimizer steps."""
        if self.warmup_steps < 1:
            return math.ceil(self.total_steps(rows) * self.warmup_steps)
        return int(self.warmup_steps)


# What to use instead of other names of `transformers.TrainingArguments`, old ones too, and of names that people try.
INSTEAD = {
    "auto_find_batch_size": "none: where memory is short, lower per_device_train_batch_size",
    "batch_size": "per_device_train_batch_size",
    "bf16": "dtype (--dtype bfloat16), of the whole run",
    "data_seed": "none: a trial's seed sets head, adapter, order, dropout and split",
    "dataloader_num_workers": "none: rows are tokenised once, before training",
    "epochs": "num_train_epochs",
    "eval_strategy": "none: every epoch is evaluated",
    "evaluation_strategy": "none: every epoch is evaluated",
    "fp16": "dtype (--dtype bfloat16), of the whole run",
    "hub_model_id": "none while training; afterwards fleetune export MODEL --push-to-hub OWNER/NAME",
    "label_names": "none: the task says which column is the label",
    "load_best_model_at_end": "none: the best epoch is always kept",
    "logging_steps": "none: loss and metrics of each epoch are in the journal",
    "lr": "learning_rate",
    "optim": "none: AdamW, torch's own",
    "output_dir": "--output-dir of the command: it says where a run is, and is no setting of a training",
    "push_to_hub": "none while training; afterwards fleetune export MODEL --push-to-hub OWNER/NAME",
    "report_to": "--report-to of the command, with tensorboard or trackio; without it the run's folder holds everything",
    "resume_from_checkpoint": "none: the same command again goes on",
    "save_steps": "--save-steps of the command: it changes no number, so it is no setting of a training",
    "save_strategy": "none: every epoch, and at least every five minutes; more often with --save-steps",
    "save_total_limit": "none: the last two snapshots are kept, and each trial's best epoch",
    "seed": "--seed and --seeds of train; in a study first_seed and seeds of [confirm]",
    "train_sampling_strategy": "none: packed rows have no padding, so their lengths need no grouping",
    "use_cpu": "--device cpu of the command",
    "warmup_ratio": "warmup_steps (a share below 1)",
}


def instead_of(name: str) -> str | None:
    """What to do instead of giving another program's setting, as the end of a sentence; None for a name that nobody knows."""
    told = INSTEAD.get(name)
    if told is None:
        return None
    return f"there is {told}" if told.startswith("none") else f"use {told}"


def training_settings(values: Mapping[str, Any], where: str = "training") -> TrainingSettings:
    """Checked settings; SettingsError names every one that is wrong."""
    try:
        return TrainingSettings(**values)
    except ValidationError as error:
        raise SettingsError(where, explain(error, TrainingSettings)) from None


_PLAIN_TYPES = ("str", "int", "float", "bool")


def explain(error: ValidationError, model: type[BaseModel], *, noun: str = "setting") -> list[str]:
    """Each problem of a pydantic error as a sentence with key, rule and value; noun: what the model's fields are called."""
    sentences: dict[str, str] = {}
    for problem in error.errors():
        # The last part of an unknown field is its name, whatever that is.
        end = len(problem["loc"]) - (problem["type"] == "extra_forbidden")
        parts = [p for i, p in enumerate(problem["loc"]) if i >= end or not _is_branch(p)]
        path = ".".join(str(part + 1) if isinstance(part, int) else part for part in parts)
        told = _sentence(problem, path, _table_at(model, parts[:-1]), noun)
        # Each branch of a union says what it would have taken: the first is enough.
        sentences.setdefault(path or told, told)
    return list(sentences.values())


def _sentence(problem: ErrorDetails, path: str, table: type[BaseModel], noun: str) -> str:
    """table: where the field stands, or would."""
    key = path.rpartition(".")[2]
    match problem["type"]:
        case "extra_forbidden":
            better = instead_of(key) if noun == "setting" else None
            return f"{path}: unknown {noun}{f'; {better}' if better else did_you_mean(key, table.model_fields)}"
        case "missing":
            return f"{path}: missing, and has no default; give it"
        case "value_error":
            return str(problem["msg"]).removeprefix("Value error, ")
        case "literal_error":
            choices = re.findall(r"'([^']*)'", str(problem.get("ctx", {}).get("expected")))
            told = did_you_mean(str(problem["input"]), choices)
            return f'{path}: "{problem["input"]}" is not known{told}'
        case _:
            rule = str(problem["msg"])
            return f"{path}: {rule[0].lower()}{rule[1:]}, but got {problem['input']!r}"


def _is_branch(part: str | int) -> bool:
    """Whether a part of pydantic's path names a branch of a union, which users never wrote."""
    return isinstance(part, str) and ("[" in part or "(" in part or part in _PLAIN_TYPES)


def _table_at(model: type[BaseModel], path: Iterable[str | int]) -> type[BaseModel]:
    """The model that stands at a path below another; the other itself where none does."""
    for part in path:
        field = model.model_fields.get(part) if isinstance(part, str) else None
        inner = [] if field is None else [field.annotation]
        while inner:
            kind = inner.pop()
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                model = kind
            inner += get_args(kind)
    return model
