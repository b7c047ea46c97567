"""Small random models of every family and small token tables, for tests that need shape and not quality."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForSequenceClassification

from fleetune.data.tokens import TokenTable

VOCABULARY = 97
_BERT = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=80,
    type_vocab_size=2,
    pad_token_id=0,
)
_ROBERTA = {**_BERT, "pad_token_id": 1, "type_vocab_size": 1}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "electra": {**_BERT, "embedding_size": 24},
    "distilbert": dict(
        vocab_size=VOCABULARY,
        dim=32,
        n_layers=2,
        n_heads=4,
        hidden_dim=48,
        max_position_embeddings=80,
    ),
    "albert": {**_BERT, "embedding_size": 24, "num_hidden_groups": 1, "num_hidden_layers": 3},
    "modernbert": {
        **_BERT,
        "num_hidden_layers": 4,
        "local_attention": 8,
        "global_attn_every_n_layers": 3,
        "classifier_pooling": "mean",
        "bos_token_id": 2,
        "eos_token_id": 3,
        "cls_token_id": 2,
        "sep_token_id": 3,
    },
    "eurobert": {
        **{k: v for k, v in _BERT.items() if k != "type_vocab_size"},
        "num_key_value_heads": 4,
        "bos_token_id": 2,
        "eos_token_id": 3,
    },
    "gte": _BERT,
    "nomic_bert": {**_BERT, "head_dim": 8},
    "mpnet": {**_ROBERTA, "relative_attention_num_buckets": 32},
    "deberta-v2": {
        **_BERT,
        "relative_attention": True,
        "position_buckets": 16,
        "pos_att_type": ["p2c", "c2p"],
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
    },
}
# An older transformers does not know all of them.
CONFIGS = {family: settings for family, settings in CONFIGS.items() if family in CONFIG_MAPPING}
NO_DROPOUT = {
    name: 0.0
    for name in (
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
        "classifier_dropout",
        "classifier_dropout_prob",
        "dropout",
        "attention_dropout",
        "seq_classif_dropout",
        "embedding_dropout",
        "mlp_dropout",
        "pooler_dropout",
    )
}


def tiny_model(family: str, seed: int = 0, num_labels: int = 3, **settings: Any) -> Any:
    """A random classifier of a family, its biases and norms moved off their trivial starts."""
    if family not in CONFIG_MAPPING:  # transformers is older than this family
        pytest.skip(f"this transformers has no {family}")
    config = AutoConfig.for_model(family, **{**CONFIGS[family], **settings}, num_labels=num_labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def tiny_table(
    rows: int,
    seed: int = 0,
    *,
    longest: int = 40,
    types: bool = False,
    first: int = 5,
    ones: float = 0.0,
) -> TokenTable:
    """Random tokens in rows of 2 to `longest`; a share `ones` of the rows has one, so that passes of such rows alone come up."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, longest + 1, rows)
    if ones:
        lengths[rng.random(rows) < ones] = 1
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = rng.integers(first, VOCABULARY, offsets[-1]).astype(np.int32)
    type_ids = None
    if types:
        place = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        type_ids = (place >= np.repeat(lengths // 2, lengths)).astype(np.uint8)
    return TokenTable(ids=ids, offsets=offsets, type_ids=type_ids, truncated=0, max_length=longest)
