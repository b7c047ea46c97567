"""Saved models as others load them: stock PEFT, stock transformers, an ordinary padded batch."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from fleetune.serve.predictor import Predictor
from tests import runs
from tests.backbone.hub import save_tiny
from tests.tiny import tiny_model

TEXTS = runs.texts(100, seed=3)


def save_family(folder: Path, family: str) -> Path:
    """A random encoder of a family, without any head, with the tokenizer of `save_tiny`."""
    special = {"cls_token_id": 2, "sep_token_id": 3} if family == "modernbert" else {}
    model = tiny_model(family, num_labels=2, vocab_size=100, pad_token_id=0, **special)
    model.base_model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(save_tiny(folder.parent / f"{folder.name}-tokenizer"))
    tokenizer.save_pretrained(folder)
    return folder


def plain(backbone: Path, num_labels: int = 2) -> Any:
    """What a user's script starts from: the backbone with a fresh head."""
    with torch.random.fork_rng(devices=[]):
        return AutoModelForSequenceClassification.from_pretrained(backbone, num_labels=num_labels)


def with_peft(backbone: Path, folder: Path, num_labels: int = 2) -> Any:
    """The two lines of the model card."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        # peft asks transformers for a property that transformers is renaming.
        warnings.simplefilter("ignore", FutureWarning)
        return PeftModel.from_pretrained(plain(backbone, num_labels), str(folder))


def stock_logits(
    model: Any, tokenizer_folder: Path, texts: Sequence[str], second: Sequence[str] | None = None
) -> NDArray[Any]:
    """Logits [n, C] of an ordinary padded batch."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    batch = tokenizer(
        list(texts), None if second is None else list(second), padding=True, return_tensors="pt"
    )
    takes = ("input_ids", "attention_mask", "token_type_ids")
    inputs = {name: batch[name] for name in takes if name in batch}
    if model.config.model_type in ("distilbert", "modernbert"):
        inputs.pop("token_type_ids", None)
    with torch.inference_mode():
        return model.eval()(**inputs).logits.numpy()


def own_logits(
    path: Path, texts: Sequence[str], second: Sequence[str] | None = None
) -> NDArray[Any]:
    """Logits [n, C] as fleetune computes them, in float32."""
    return np.asarray(Predictor(path, dtype="float32").logits(texts, second))
