"""Packed hidden states and logits equal the padded ones of the untouched model, for every family."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close
from transformers import CONFIG_MAPPING
from transformers.models.roberta.modeling_roberta import RobertaEmbeddings

from fleetune.backbone.families import FAMILIES
from fleetune.cohort.engine import Engine
from fleetune.cohort.layers import Active
from fleetune.data.packing import pack
from fleetune.data.tokens import TokenTable
from fleetune.methods.table import make_method
from tests.oracles.solo import padded_batch
from tests.tiny import CONFIGS, NO_DROPOUT, tiny_model, tiny_table

NOBODY = Active({}, {})
# Fewer heads of keys and values than of queries.
GROUPED = [("eurobert", {"num_key_value_heads": heads}) for heads in (1, 2)]
VARIANTS = [
    *((family, {}) for family in CONFIGS),
    *GROUPED,
    ("modernbert", {"classifier_pooling": "cls"}),
    ("eurobert", {"classifier_pooling": "bos"}),
    ("eurobert", {"classifier_pooling": "mean"}),
]


def padded(model, table):
    """The untouched model on the ordinary padded batch of a whole table."""
    n, longest = len(table.offsets) - 1, int(table.lengths.max())
    ids = torch.full((n, longest), model.config.pad_token_id)
    mask = torch.zeros((n, longest), dtype=torch.long)
    types = torch.zeros((n, longest), dtype=torch.long)
    for i in range(n):
        low, high = table.offsets[i], table.offsets[i + 1]
        ids[i, : high - low] = torch.from_numpy(table.ids[low:high])
        mask[i, : high - low] = 1
        if table.type_ids is not None:
            types[i, : high - low] = torch.from_numpy(table.type_ids[low:high])
    inputs = {"input_ids": ids, "attention_mask": mask}
    if table.type_ids is not None:
        inputs["token_type_ids"] = types
    with torch.no_grad():
        hidden = getattr(model, model.base_model_prefix)(**inputs)[0]
        return hidden, model(**inputs).logits, mask.bool()


def with_padding_inside(table: TokenTable, padding: int) -> TokenTable:
    """The same rows, a third of their tokens the padding token: at the beginning and the end of some, and all of one."""
    ids = table.ids.copy()
    ids[np.random.default_rng(8).random(len(ids)) < 1 / 3] = padding
    ids[table.offsets[[0, 1]]] = ids[table.offsets[[2, 3]] - 1] = padding
    ids[table.offsets[4] : table.offsets[5]] = padding
    return replace(table, ids=ids)


def test_every_family_is_tested() -> None:
    assert set(CONFIGS) == {family for family in FAMILIES if family in CONFIG_MAPPING}


@pytest.mark.parametrize("family", CONFIGS)
def test_packed_hidden_states_equal_padded_ones(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The final ones, of every token, as they come to where the head takes its own."""
    model = tiny_model(family)
    table = tiny_table(9, seed=3, types="type_vocab_size" in CONFIGS[family] and family not in
                       ("roberta", "xlm-roberta", "camembert", "mpnet"))  # fmt: skip
    expected, _, mask = padded(copy.deepcopy(model), table)
    engine = Engine(model)
    packed = (
        pack([(table, np.arange(4)), (table, np.arange(4, 9))])
        if FAMILIES[family].shares
        else pack([(table, np.arange(9))])
    )
    seen: list[torch.Tensor] = []
    reduced = engine.backbone._reduced
    monkeypatch.setattr(engine.backbone, "narrows", False)
    monkeypatch.setattr(
        engine.backbone, "_reduced", lambda states: seen.append(states) or reduced(states)
    )
    with torch.no_grad():
        engine.backbone.forward(packed, NOBODY)
    (hidden,) = seen
    found = hidden[0] if engine.backbone.family.layout == "packed" else hidden[mask]
    assert found.shape == expected[mask].shape
    # float32 rounding: sums of up to 48 products, taken in another order.
    assert_close(found, expected[mask], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(("family", "settings"), VARIANTS)
def test_packed_logits_equal_padded_ones(family: str, settings: dict) -> None:
    model = tiny_model(family, **settings)
    table = tiny_table(9, seed=4)
    _, expected, _ = padded(copy.deepcopy(model), table)
    engine = Engine(model)
    packed = (
        pack([(table, np.arange(2)), (table, np.arange(2, 9))])
        if FAMILIES[family].shares
        else pack([(table, np.arange(9))])
    )
    with torch.no_grad():
        assert_close(engine.backbone.forward(packed, NOBODY), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(("family", "settings"), VARIANTS)
def test_a_padding_token_in_a_text_is_what_it_is_for_the_untouched_model(
    family: str, settings: dict
) -> None:
    """Attention sees it, and the RoBERTa family does not count it: logits in float64."""
    model = tiny_model(family, **settings).double()
    table = with_padding_inside(tiny_table(9, seed=4), model.config.pad_token_id)
    _, expected, _ = padded(copy.deepcopy(model), table)
    engine = Engine(model, dtype=torch.float64)
    parts = [(table, np.arange(2)), (table, np.arange(2, 9))]
    packed = pack(parts if FAMILIES[family].shares else [(table, np.arange(9))])
    with torch.no_grad():
        assert_close(engine.backbone.forward(packed, NOBODY), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "family", [f for f, row in FAMILIES.items() if row.positions_after_padding]
)
def test_positions_are_those_of_transformers(family: str) -> None:
    """Row by row, with and without padding tokens."""
    config = tiny_model(family).config
    stock = RobertaEmbeddings.create_position_ids_from_input_ids
    plain = tiny_table(9, seed=4)
    for table in (plain, with_padding_inside(plain, config.pad_token_id)):
        packed = pack([(table, np.arange(9))])
        found = FAMILIES[family].positions(config, packed.ids, packed.positions, packed.offsets)
        rows = [torch.from_numpy(table.row(i).astype("int64"))[None] for i in range(9)]
        expected = torch.cat([stock(row, config.pad_token_id)[0] for row in rows])
        assert found.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("deberta-v2", {}),
        *GROUPED,
        *(
            pytest.param(family, {}, marks=pytest.mark.slow)
            for family in CONFIGS
            if family != "deberta-v2"
        ),
    ],
)
def test_gradients_of_full_are_those_of_the_untouched_model(family: str, settings: dict) -> None:
    """Every parameter's, in float64."""
    model = tiny_model(family, **NO_DROPOUT, **settings).double()
    table, rows = tiny_table(9, seed=5), np.arange(9)
    labels = torch.from_numpy(rows % 3)
    alone = copy.deepcopy(model)
    functional.cross_entropy(alone(**padded_batch(alone, table, rows)).logits, labels).backward()
    engine = Engine(model, dtype=torch.float64)
    owned = engine.owned(make_method("full", {}), 0)
    functional.cross_entropy(engine.logits([owned], pack([(table, rows)]), None), labels).backward()
    for name, parameter in alone.named_parameters():
        found = owned.tensors[name].grad
        assert found is not None
        # Some parameters have no part in a classifier's output (gte's pooler with "first").
        expected = torch.zeros_like(found) if parameter.grad is None else parameter.grad
        assert_close(found, expected, rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")
