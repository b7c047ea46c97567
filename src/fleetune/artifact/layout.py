"""What a saved model's folder holds, and the record that describes it.

adapter_config.json        PEFT's; for methods without a tuner in PEFT, the same fields with fleetune's name for it
adapter_model.safetensors  every tensor that the trial owns, under PEFT's names: values, not differences
README.md                  a model card
fleetune.json              what PEFT's files do not say: method, labels, backbone checksums, lengths, file checksums, its own
metrics.json, predictions.parquet
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
RECORD = "fleetune.json"
METRICS = "metrics.json"
PREDICTIONS = "predictions.parquet"
CARD = "README.md"
GRAPH = "model.onnx"
SEAL = "sha256"
"""The key of the record under which its own checksum stands."""
PREFIX = "base_model.model."
FORMAT = 1


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """What is needed to use a saved model again, besides its weights."""

    method: str
    hyperparameters: dict[str, Any]
    seed: int
    task: str
    text_columns: list[str]
    label_names: list[str]
    regression: bool
    metrics: list[str]
    backbone: str
    """As the user named it."""
    backbone_source: str
    backbone_revision: str | None
    backbone_checksum: str
    model_type: str
    dtype: str
    """Compute dtype of the encoder in training and, by default, in prediction."""
    max_length: int
    best_epoch: int
    fleetune_version: str
    format: int = FORMAT
    label_column: str | None = None
    """As it was called in the training rows; None in models that were saved before this was kept, as of the next three."""
    backbone_config: str | None = None
    """`Backbone.config_checksum`."""
    backbone_tokenizer: str | None = None
    """`Backbone.tokenizer_checksum`."""
    chosen_on: dict[str, str] | None = None
    """The test set that chose the epoch, with its checksum, under protocol "paper"; else empty."""

    @property
    def num_labels(self) -> int:
        return 1 if self.regression else len(self.label_names)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """What fleetune.json holds, with a checksum under `SEAL`.

    It is of all else but `checksums`: the files themselves prove those, and some are of files that hold times.
    """
    rest = {key: value for key, value in record.items() if key != SEAL}
    own = {key: value for key, value in rest.items() if key != "checksums"}
    told = json.dumps(own, sort_keys=True, allow_nan=False)
    return {**rest, SEAL: hashlib.sha256(told.encode()).hexdigest()}


def peft_name(name: str) -> str:
    """A parameter's name in adapter_model.safetensors: PEFT's prefix, and `.weight` behind a low-rank factor."""
    return f"{PREFIX}{name}.weight" if name.endswith((".lora_A", ".lora_B")) else f"{PREFIX}{name}"


def own_name(name: str) -> str:
    """The way back from `peft_name`."""
    bare = name.removeprefix(PREFIX)
    return (
        bare.removesuffix(".weight")
        if bare.endswith((".lora_A.weight", ".lora_B.weight"))
        else bare
    )
