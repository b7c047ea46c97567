"""The tables of a study file, as pydantic checks them; what stands in [training] and [[methods]] is space.py's to check."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from fleetune.study.settings import FIRST_CONFIRM_SEED, MOST_SEED, MOST_TRIALS


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class DataTable(_Table):
    """Where the rows come from."""

    task: str | list[str] | None = Field(
        default=None, description="A named task, or a list of them."
    )
    data_dir: str | None = Field(default=None, description="Folder of the tasks in GLUE's layout.")
    file: str | None = Field(default=None, description="Own rows: CSV, TSV, JSONL or Parquet.")
    test_file: str | None = Field(default=None, description="Own test rows.")
    text_columns: list[str] | None = Field(default=None, description="One or two text columns.")
    label_column: str | None = Field(default=None, description="Column of the label.")
    groups_column: str | None = Field(
        default=None, description="Rows with the same value stay on one side of every division."
    )
    max_train_samples: int | None = Field(
        default=None,
        ge=10,
        description="Take so many rows of train at most: a stratified draw, the same for every trial.",
    )
    protocol: Literal["holdout", "cv", "paper"] = Field(
        default="holdout",
        description="How epochs and settings are chosen: on held-out rows of train, by five folds of train, or (paper, "
        "stamped optimistic) on the reported set itself.",
    )


class BackboneTable(_Table):
    """The pre-trained encoder."""

    name: str = Field(default="minilm", description="minilm, a hub id, or a local folder.")
    revision: str | None = Field(default=None, description="Commit, branch or tag of a hub id.")
    dtype: Literal["auto", "bfloat16", "float32", "float64"] = Field(
        default="auto", description="Compute dtype of the encoder."
    )
    max_length: int | None = Field(
        default=None, ge=4, le=1_000_000, description="Most tokens of a row."
    )


class SearchTable(_Table):
    """How settings are searched; the same for every method."""

    trials_per_method: int = Field(
        default=12, ge=1, le=MOST_TRIALS, description="Settings tried; equal for every method."
    )
    sampler: Literal["grid", "random", "tpe"] = Field(
        default="tpe", description="Who proposes settings."
    )
    pruner: Literal["halving", "none"] = Field(
        default="halving", description="Whether the worse part of a batch is stopped early."
    )
    batch: int | None = Field(
        default=None,
        ge=1,
        le=MOST_TRIALS,
        description="Settings proposed at once; by default all, for tpe a third.",
    )
    seed: int = Field(default=0, ge=0, le=MOST_SEED, description="First seed of the search.")


class ConfirmTable(_Table):
    """How the chosen settings are measured."""

    seeds: int = Field(
        default=10,
        ge=1,
        le=MOST_TRIALS,
        description="Fresh seeds, the same for every method; below 5 no verdict.",
    )
    first_seed: int = Field(
        default=FIRST_CONFIRM_SEED,
        ge=0,
        le=MOST_SEED,
        description="The first of them; the next ones follow.",
    )
    reference: str | None = Field(
        default=None,
        description="The method that the others are compared with; the first by default.",
    )


class StudyFile(_Table):
    """A study: methods times settings times seeds, on one or more tasks."""

    data: list[DataTable] = Field(min_length=1, description="The tasks.")
    backbone: BackboneTable = Field(default_factory=BackboneTable)
    training: dict[str, Any] = Field(
        default_factory=dict[str, Any], description="Settings of the training, for every method."
    )
    methods: list[dict[str, Any]] = Field(
        min_length=1, description="The methods that are compared."
    )
    search: SearchTable | None = None
    confirm: ConfirmTable = Field(default_factory=ConfirmTable)
    report_to: str | list[str] = Field(
        default_factory=list[str],
        description="Also write what is found for tensorboard or trackio; as --report-to.",
    )
