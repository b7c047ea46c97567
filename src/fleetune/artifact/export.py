"""A saved trial as a plain transformers model: one folder that `AutoModelForSequenceClassification` loads."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from fleetune.artifact import layout
from fleetune.artifact.card import exported_card
from fleetune.artifact.check import TOLERANCE, logits_of, padded_inputs
from fleetune.artifact.layout import ModelRecord
from fleetune.artifact.load import open_saved
from fleetune.artifact.merge import merge_into
from fleetune.backbone.load import quiet
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


def export_hf(folder: Path, output: Path) -> None:
    """Write the merged model of a trial's folder, in float32, with tokenizer and labels.

    RefusedError: the output exists, or the trial has biases that a plain model has no place for. FleetuneError: what was
    written gives other logits than the saved model.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise RefusedError(f"{output}: exists and is no empty folder; give --output a new folder")
    opened = open_saved(folder)
    record, backbone = opened.saved.record, opened.backbone
    merged = merge_into(opened.model, opened.saved.tensors, opened.low_rank)
    if output.exists():
        output.rmdir()
    with new_folder(output) as staging, quiet():
        merged.config.name_or_path = ""
        _save_pretrained(merged, staging)
        backbone.tokenizer.save_pretrained(staging)
        for file in staging.iterdir():
            file.chmod(plain_mode())  # safetensors makes files of mode 0600
        _compare(merged, staging, backbone.tokenizer, record)
        sums = {f.name: sha256(f) for f in sorted(staging.iterdir()) if f.is_file()}
        body: dict[str, Any] = {**record.as_json(), "exported": "hf", "checksums": sums}
        put(staging / layout.RECORD, as_json(body))
        card = folder / layout.CARD
        # Not among the checksums: a card is there to be written in.
        if card.is_file():
            put(staging / layout.CARD, exported_card(card.read_bytes(), record))


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


def _compare(merged: Any, staging: Path, tokenizer: Any, record: ModelRecord) -> None:
    from transformers import AutoModelForSequenceClassification

    read = AutoModelForSequenceClassification.from_pretrained(
        staging, local_files_only=True, use_safetensors=True, trust_remote_code=False
    )
    ids = tuple(str(i) for i in range(len(_PROBES)))
    second = _PROBES[::-1] if len(record.text_columns) == 2 else None
    longest = min(64, record.max_length)
    table = tokenize(Split(ids, _PROBES, second, None), tokenizer, longest, None, "")
    inputs = padded_inputs(merged, table, len(_PROBES))
    expected, found = logits_of(merged, inputs), logits_of(read, inputs)
    if not torch.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE):
        raise FleetuneError(
            f"{staging.name}: not exported, since reading it back gave other logits; please report this"
        )
