"""A saved trial as a plain transformers model: one folder that `AutoModelForSequenceClassification` loads."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from fleetune.artifact import layout
from fleetune.artifact.check import TOLERANCE, logits_of, padded_inputs
from fleetune.artifact.exported_card import exported_card
from fleetune.artifact.layout import ModelRecord
from fleetune.artifact.load import open_saved
from fleetune.artifact.merge import merge_into
from fleetune.backbone.load import READS, quiet
from fleetune.data.base import Split
from fleetune.data.tokens import tokenize
from fleetune.durable import as_json, new_folder, plain_mode, put, sha256
from fleetune.errors import FleetuneError, RefusedError

# Texts on which the exported model is compared with the saved one.
_PROBES = (
    "It works.",
    "This was not what they had promised us in the letter of 3 May.",
    "?",
    "a " * 60,
)


@dataclass(frozen=True, slots=True)
class Merged:
    """A saved trial merged into a plain model, with the folder that its export grows in."""

    model: Any
    """A transformers classifier in float32."""
    tokenizer: Any
    """Its own, with the length at which texts were cut in training as its limit."""
    record: ModelRecord
    staging: Path


def export_hf(folder: Path, output: Path) -> None:
    """Write the merged model of a trial's folder, in float32, with tokenizer and labels.

    RefusedError: the output exists, or the trial has biases that a plain model has no place for. FleetuneError: what was
    written gives other logits than the saved model.
    """
    with exporting(folder, output, "hf") as merged:
        _save_pretrained(merged.model, merged.staging)
        _compare(merged)


@contextmanager
def exporting(folder: Path, output: Path, kind: str) -> Generator[Merged]:
    """What every export has in common: the merged model before, and after it tokenizer, labels, checksums and the card.

    kind: the format, as the record names it. The output appears when all is written, or not at all.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise RefusedError(f"{output}: exists and is no empty folder; give --output a new folder")
    opened = open_saved(folder)
    record = opened.saved.record
    tokenizer = _cutting_at(record.max_length, opened.backbone.tokenizer)
    model = merge_into(opened.model, opened.saved.tensors, opened.low_rank)
    model.config.name_or_path = ""
    if output.exists():
        output.rmdir()
    with new_folder(output) as staging, quiet():
        tokenizer.save_pretrained(staging)
        yield Merged(model, tokenizer, record, staging)
        for file in staging.iterdir():
            file.chmod(plain_mode())  # safetensors makes files of mode 0600
        sums = {f.name: sha256(f) for f in sorted(staging.iterdir()) if f.is_file()}
        body: dict[str, Any] = {**record.as_json(), "exported": kind, "checksums": sums}
        put(staging / layout.RECORD, as_json(layout.sealed(body)))
        card = folder / layout.CARD
        # Not among the checksums: a card is there to be written in.
        if card.is_file():
            put(staging / layout.CARD, exported_card(card.read_bytes(), record, kind))


def _cutting_at(most: int, tokenizer: Any) -> Any:
    """A tokenizer that by itself cuts where the model does, when it is asked to cut, and says nothing else of lengths."""
    own = copy.deepcopy(tokenizer)
    own.init_kwargs.setdefault(READS, tokenizer.model_max_length)
    own.model_max_length = most
    for name in ("max_length", "stride", "truncation_strategy", "padding_strategy"):
        own.init_kwargs.pop(name, None)
    own.backend_tokenizer.no_truncation()
    own.backend_tokenizer.no_padding()
    return own


def probes(merged: Merged, count: int = len(_PROBES)) -> dict[str, Tensor]:
    """Some texts, or pairs of them, as a padded batch on which an export is compared with the model that it was made of."""
    ids = tuple(str(i) for i in range(count))
    second = _PROBES[::-1][:count] if len(merged.record.text_columns) == 2 else None
    longest = min(64, merged.record.max_length)
    split = Split(ids, _PROBES[:count], second, None)
    table = tokenize(split, merged.tokenizer, longest, None, "")
    return padded_inputs(merged.model, table, count)


def same_logits(merged: Merged, inputs: dict[str, Tensor], found: Tensor) -> None:
    """FleetuneError where an export gave other logits for some inputs than the model that it was made of."""
    expected = logits_of(merged.model, inputs)
    if not torch.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE):
        raise FleetuneError(
            f"{merged.staging.name}: not exported, since reading it back gave other logits; please report this"
        )


def _save_pretrained(model: Any, folder: Path) -> None:
    """transformers' own way to save. OSError where the disk refuses, which safetensors says in words of its own."""
    try:
        model.save_pretrained(folder, safe_serialization=True)
    except SafetensorError as error:
        found = re.search(r"os error (\d+)", str(error))
        if found is None:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number)) from None


def _compare(merged: Merged) -> None:
    from transformers import AutoModelForSequenceClassification

    read = AutoModelForSequenceClassification.from_pretrained(
        merged.staging, local_files_only=True, use_safetensors=True, trust_remote_code=False
    )
    inputs = probes(merged)
    same_logits(merged, inputs, logits_of(read, inputs))
