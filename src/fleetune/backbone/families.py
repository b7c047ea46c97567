"""What differs between encoder families, as one table keyed by transformers' `model_type`.

A family says how its tokens are laid out, where its first position is, where its hidden states end and its pooling
begins, and which leaves are query, key, value and so on. A new family is one row; nothing else in Fleetune asks which
model it has.

Layouts:
    packed  the sequences of all trials end to end, `[1, T]`, no padding; needs transformers' `AttentionInterface`
    padded  the ordinary `[B, L]`; for models with their own attention code (mpnet, deberta-v2)
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fleetune.errors import SettingsError

Pooling = Literal["first", "mean", "late"]


@dataclass(frozen=True, slots=True)
class Family:
    """One row of the table."""

    model_type: str
    last: str
    """Path, inside the base model, of the module whose output is the final hidden states."""
    layout: Literal["packed", "padded"] = "packed"
    positions_after_padding: bool = False
    """True where positions count from `padding_idx + 1` instead of 0, and padding tokens have `padding_idx` (the RoBERTa
    family). mpnet does so too, in its own code: that is given no positions."""
    shares: bool = True
    """False where a leaf also runs on something that belongs to no trial (deberta-v2 projects its table of relative
    positions with the layer's own query and key): then each trial is a cohort of one."""
    pooling_setting: str | None = None
    """The setting of the config that says how a sequence becomes one vector; None: its first token."""
    narrows: tuple[str, str] | None = None
    """Inside the base model, the last layer's attention, and the module after it that takes (attended, residual) and where
    all but the first token of each sequence may be left out, since nothing later reads them. None: all are computed."""

    @property
    def like_bert(self) -> bool:
        """Whether its layers are BERT's, module by module (cohort/bert_layer.py)."""
        return self.narrows == _LIKE_BERT

    def positions(
        self,
        config: Any,
        ids: NDArray[np.int64],
        places: NDArray[np.int64],
        offsets: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        """The position number of each token, [T], as transformers' `create_position_ids_from_input_ids` counts.

        ids: [T]; places: of each token in its sequence, from 0, [T]; offsets: where each sequence starts, and T, [B + 1].
        """
        if not self.positions_after_padding:
            return places
        padding = int(config.pad_token_id)
        is_padding = ids == padding
        if not is_padding.any():
            return places + (padding + 1)
        # A text may hold the padding token: it has a position of its own, and those after it count on as if it were not there.
        seen = np.concatenate([[0], np.cumsum(is_padding)])
        skipped = seen[1:] - np.repeat(seen[offsets[:-1]], np.diff(offsets))
        return np.where(is_padding, padding, places + (padding + 1) - skipped)

    def pooling(self, config: Any) -> Pooling:
        """How a sequence becomes one vector: its first token, the mean, or the mean after the head ("late")."""
        said = getattr(config, self.pooling_setting) if self.pooling_setting else "first"
        return {"cls": "first", "bos": "first", "first": "first", "mean": "mean", "late": "late"}[
            said
        ]  # type: ignore[return-value]


_LIKE_BERT = ("encoder.layer.-1.attention.self", "encoder.layer.-1.attention.output")
_ROWS = (
    Family("bert", "encoder", narrows=_LIKE_BERT),
    Family("roberta", "encoder", positions_after_padding=True, narrows=_LIKE_BERT),
    Family("xlm-roberta", "encoder", positions_after_padding=True, narrows=_LIKE_BERT),
    Family("camembert", "encoder", positions_after_padding=True, narrows=_LIKE_BERT),
    Family("electra", "encoder", narrows=_LIKE_BERT),
    Family("distilbert", "transformer"),
    Family("albert", "encoder"),
    Family("modernbert", "final_norm", pooling_setting="classifier_pooling"),
    Family("eurobert", "norm", pooling_setting="classifier_pooling"),
    Family("gte", "layers.-1"),
    Family("nomic_bert", "layers.-1"),
    Family("mpnet", "encoder", layout="padded"),
    Family("deberta-v2", "encoder", layout="padded", shares=False),
)
FAMILIES: dict[str, Family] = {row.model_type: row for row in _ROWS}


def family_of(config: Any) -> Family:
    """The family of a transformers config; SettingsError for one that Fleetune does not know."""
    model_type = str(config.model_type)
    if model_type not in FAMILIES:
        raise SettingsError(
            "backbone",
            [f'model type "{model_type}" is not supported; those that are: {", ".join(FAMILIES)}'],
        )
    return FAMILIES[model_type]


# First match wins, so the more telling path comes first. Roles do not overlap: each leaf has exactly one, which is what
# the substring tests of the original BitFit code lack ("output" there also matches "attention.output").
_ROLES: tuple[tuple[str, str], ...] = (
    (r"embeddings?\.(.*\.)?(LayerNorm|layer_norm|norm)$", "embeddings_norm"),
    (r"(embedding_hidden_mapping_in|embeddings_project)$", "embeddings_projection"),
    (r"(embeddings\.\w+|embed_tokens|rel_embeddings|relative_attention_bias)$", "embeddings"),
    (r"pooler(\.dense)?$", "pooler"),
    (r"\.(query|q_lin|q_proj|query_proj|attn\.q)$", "query"),
    (r"\.(key|k_lin|k_proj|key_proj|attn\.k)$", "key"),
    (r"\.(value|v_lin|v_proj|value_proj|attn\.v)$", "value"),
    (r"\.(Wqkv|qkv_proj)$", "query_key_value"),
    (
        r"(attention\.output\.dense|attention\.dense|out_lin|o_proj|attn\.Wo|attn\.o|attn\.out_proj)$",
        "attention_output",
    ),
    (
        r"(attention\.output\.LayerNorm|attention\.LayerNorm|sa_layer_norm|attn_norm|attn_ln|input_layernorm"
        r"|post_attention_layernorm|attention_layernorm|norm1)$",
        "attention_norm",
    ),
    (
        r"(intermediate\.dense|ffn\.lin1|\.ffn|mlp\.Wi|gate_proj|up_proj|fc1|fc11|fc12)$",
        "intermediate",
    ),
    (r"(output\.dense|ffn\.lin2|ffn_output|mlp\.Wo|down_proj|fc2)$", "output"),
    (r"(LayerNorm|layer_norm|layernorm|mlp_norm|final_norm|norm2|norm)$", "output_norm"),
)
ROLES: tuple[str, ...] = tuple(role for _, role in _ROLES)


def role_of(path: str) -> str:
    """What the leaf at this path does in its layer; "other" where the table does not say."""
    for pattern, role in _ROLES:
        if re.search(pattern, path):
            return role
    return "other"
