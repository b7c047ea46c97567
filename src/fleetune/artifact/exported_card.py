"""The model card of what was exported of a saved trial: the same numbers, another way to load."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from fleetune.artifact.card import LOAD_HEADING, as_yaml, load_section
from fleetune.artifact.layout import ModelRecord


def exported_card(card: bytes, record: ModelRecord, kind: str) -> bytes:
    """The card of a trial, for what was exported of it as `hf` or `onnx`: the same numbers, another way to load.

    What was written below the ways to load stays. A card that was written anew, without our headings or in other characters
    than UTF-8, is its author's: it stays as it is.
    """
    try:
        head, heading, tail = card.decode("utf-8").partition(LOAD_HEADING)
        lines = head.split("\n")
        end = lines.index("---", 1)
        front = _front_of_plain(lines[:end], _LIBRARIES[kind])
    except (
        ValueError,
        TypeError,
    ):  # other characters; no front matter; tags that are no list in JSON
        return card
    if not heading or lines[0] != "---":
        return card
    own = f"\n{load_section(record)}\n"
    rest = tail.removeprefix(own) if tail.startswith(own) else _after_section(tail)
    load = f"## How to load it\n\n{_exported_load(record, kind)}"
    return "\n".join([*front, *lines[end:], load + rest]).encode()


def _after_section(text: str) -> str:
    """From the next heading on; a line in a block of code is none."""
    fenced = False
    for match in re.finditer(r"^(```|## )", text, re.M):
        if match[0] == "```":
            fenced = not fenced
        elif not fenced:
            return f"\n{text[match.start() :]}"
    return ""


def _front_of_plain(front: Sequence[str], library: str) -> list[str]:
    """The lines of the front matter, as they are of a whole model."""
    lines = list(front)
    for i, line in enumerate(lines):
        key, colon, value = line.partition(": ")
        if key == "library_name":
            lines[i] = f'{key}{colon}"{library}"'
        elif key == "base_model_relation":
            lines[i] = f'{key}{colon}"finetune"'
        elif key == "tags":
            lines[i] = f"{key}{colon}{as_yaml([t for t in json.loads(value) if t != 'peft'])}"
    return lines


def _exported_load(record: ModelRecord, kind: str) -> str:
    pair = len(record.text_columns) == 2
    texts = '["the first text"], ["the second text"]' if pair else '["a text", "another text"]'
    if kind == "hf":
        told = (
            "The adapter is merged: this is a plain transformers model, in float32. With `truncation=True` the tokenizer cuts "
            f"texts where the training did, at {record.max_length} tokens."
        )
        return f"{told}\n\n```python\n{_PLAIN.format(texts=texts)}```\n"
    code = _ONNX.format(texts=texts)
    told = (
        "The adapter is merged, and the whole is one graph for ONNX Runtime, in float32. It takes padded batches of any size "
        "and gives logits, in the order of id2label in config.json."
    )
    return f"{told}\n\n```python\n{code}```\n"


# As the hub calls what loads them.
_LIBRARIES = {"hf": "transformers", "onnx": "onnx"}
_ONNX = """\
import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before onnxruntime is loaded: its builds from 1.29 on report to their maker
import onnxruntime
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
session = onnxruntime.InferenceSession("model.onnx")
batch = tokenizer({texts}, padding=True, truncation=True, return_tensors="np")
logits = session.run(["logits"], {{i.name: batch[i.name] for i in session.get_inputs()}})[0]
"""
_PLAIN = """\
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification.from_pretrained(".")
tokenizer = AutoTokenizer.from_pretrained(".")
batch = tokenizer({texts}, padding=True, truncation=True, return_tensors="pt")
with torch.inference_mode():
    logits = model(**batch).logits
"""
