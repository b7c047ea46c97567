"""A trial's weights put into a plain transformers model.

`W + scale * B A` for low-rank factors; a parameter that the trial owns replaces the backbone's. What comes out is an
ordinary `AutoModelForSequenceClassification`, which is also how a saved model is checked on writing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fleetune.errors import RefusedError
from fleetune.methods.base import LowRank


def merge_into(model: Any, tensors: Mapping[str, Tensor], low_rank: tuple[LowRank, ...]) -> Any:
    """Write a trial's tensors (by their own names) into a plain classification model, and return it.

    RefusedError where the trial owns a bias that the model has no place for.
    """
    parameters = dict(model.named_parameters())
    factors = {f"{f.site}.lora_{side}" for f in low_rank for side in "AB"}
    with torch.no_grad():
        for name, value in tensors.items():
            if name in factors:
                continue
            if name not in parameters:
                raise RefusedError(
                    f"{name}: the trial added this bias (add_missing=true) and a plain {model.config.model_type} model "
                    "has no place for it; use the saved folder with fleetune itself"
                )
            parameters[name].copy_(value)
        for f in low_rank:
            # In float64, so that merging costs one rounding and not the sum of r.
            down, up = tensors[f"{f.site}.lora_A"].double(), tensors[f"{f.site}.lora_B"].double()
            weight = parameters[f"{f.site}.weight"]
            weight.copy_((weight.double() + f.scale * (up @ down)).to(weight.dtype))
    return model
