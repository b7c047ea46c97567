"""Is what lies on the disk what was trained? Compared by logits, on real rows, before a model counts as saved.

Two ways that share no code meet here: the trial's tensors in memory, merged into a plain model; and the files, read back
by stock `PeftModel.from_pretrained` (LoRA), or by `load.py` and merged. Both run in float32 on the padded batch, whatever
dtype the trial trained in, so the comparison sees the files and not the rounding of the training.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fleetune.artifact.load import read_weights
from fleetune.artifact.merge import merge_into
from fleetune.backbone.draws import drawing
from fleetune.data.tokens import TokenTable
from fleetune.errors import FleetuneError, RefusedError
from fleetune.methods.base import LowRank

ROWS = 16
# Merged and unmerged products differ by float32 rounding through all layers: 2e-6 was seen with MiniLM; a lost head or a
# wrong scale is off by 0.01 and more.
TOLERANCE = 1e-4


class NoNumbers(Exception):
    """What a trained model says of some rows is not finite, so that it has no score and is not saved. Says which rows."""


class Checker:
    """Compares saved folders with what was trained.

    load: gives a pristine float32 classification model of the backbone; called once, when the first folder is checked, so
    that training need not wait for it. table: tokenised rows to try.
    """

    def __init__(self, load: Callable[[], Any], table: TokenTable) -> None:
        self._load = load
        self._table = table

    @cached_property
    def model(self) -> Any:
        """The pristine model, never changed."""
        return self._load()

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        """What the folders are tried on."""
        return padded_inputs(self.model, self._table, min(ROWS, len(self._table)))

    def check(
        self,
        folder: Path,
        tensors: Mapping[str, Tensor],
        low_rank: tuple[LowRank, ...],
        *,
        peft: bool,
    ) -> None:
        """FleetuneError where the folder's tensors or logits are not those of the trial; NoNumbers where these are none."""
        self._same_tensors(folder, tensors)
        try:
            expected = self._logits(merge_into(copy.deepcopy(self.model), tensors, low_rank))
        except RefusedError:
            return  # biases that a plain model has no place for: the tensors themselves are compared
        if not bool(expected.isfinite().all()):  # a training in float64 can come so far
            raise NoNumbers("its predictions in float32, as it would be saved, are not finite")
        found = self._logits(self._by_peft(folder) if peft else self._by_files(folder, low_rank))
        worst = float((found - expected).abs().max())
        if not worst <= TOLERANCE * max(1.0, float(expected.abs().max())):
            raise FleetuneError(
                f"{folder.name}: not saved, since reading it back gave logits that differ by {worst:.2e} from those of "
                "the trained model; this is a fault of fleetune or of the disk, please report it"
            )

    def _by_peft(self, folder: Path) -> Any:
        from peft import PeftModel

        # peft draws starting values from torch's global generator before it reads the saved ones.
        with warnings.catch_warnings(), drawing(0):
            # peft asks transformers for a property that transformers is renaming.
            warnings.simplefilter("ignore", FutureWarning)
            return PeftModel.from_pretrained(copy.deepcopy(self.model), str(folder))

    def _by_files(self, folder: Path, low_rank: tuple[LowRank, ...]) -> Any:
        return merge_into(copy.deepcopy(self.model), read_weights(folder), low_rank)

    def _same_tensors(self, folder: Path, tensors: Mapping[str, Tensor]) -> None:
        read = read_weights(folder)
        if read.keys() != tensors.keys() or any(
            not torch.equal(read[name], tensors[name].cpu()) for name in read
        ):
            raise FleetuneError(
                f"{folder.name}: not saved, since reading it back gave other tensors"
            )

    def _logits(self, model: Any) -> Tensor:
        return logits_of(model, self.inputs)


def logits_of(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """Logits of a plain model in evaluation."""
    with torch.inference_mode():
        return model.eval()(**inputs).logits


def padded_inputs(model: Any, table: TokenTable, rows: int) -> dict[str, Tensor]:
    """The first rows of a table as an ordinary padded batch for a plain model."""
    longest = int(table.lengths[:rows].max())
    ids = torch.full((rows, longest), int(model.config.pad_token_id))
    inputs = {"input_ids": ids, "attention_mask": torch.zeros_like(ids)}
    takes_types = "token_type_ids" in inspect.signature(model.forward).parameters
    if table.type_ids is not None and takes_types:
        inputs["token_type_ids"] = torch.zeros_like(ids)
    for i in range(rows):
        own = torch.from_numpy(table.row(i).astype("int64"))
        ids[i, : len(own)] = own
        inputs["attention_mask"][i, : len(own)] = 1
        types = table.row_types(i)
        if types is not None and takes_types:
            inputs["token_type_ids"][i, : len(own)] = torch.from_numpy(types.astype("int64"))
    return inputs
