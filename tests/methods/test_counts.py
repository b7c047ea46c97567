"""What methods own: counts from shapes alone, the true counts of an engine, and errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFT_TARGETS
from torch.testing import assert_close
from transformers import RobertaConfig

from fleetune.backbone.sites import SiteMap, empty_model, site_map
from fleetune.cohort.engine import Engine
from fleetune.data.packing import pack
from fleetune.errors import SettingsError
from fleetune.methods.base import count_parameters
from fleetune.methods.bitfit import BitFit
from fleetune.methods.full import Full
from fleetune.methods.head import Head
from fleetune.methods.lora import Lora
from fleetune.methods.table import METHODS, make_method
from tests.tiny import CONFIGS, tiny_model, tiny_table

ROBERTA_HEAD = 592_130
# No bias anywhere in the encoder.
WITHOUT_BIASES = ("modernbert", "eurobert")


@pytest.fixture(scope="module")
def roberta_base() -> Any:
    config = RobertaConfig(vocab_size=50_265, max_position_embeddings=514, type_vocab_size=1)
    return empty_model(config)


@pytest.fixture(scope="module")
def tiny_sites() -> dict[str, SiteMap]:
    return {family: site_map(tiny_model(family)) for family in CONFIGS}


# -- roberta-base ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "encoder"),
    [
        (BitFit(), 102_144),
        # 12 layers of 768 (query) + 3,072 (intermediate).
        (BitFit(terms="paper-subset"), 46_080),
        (Lora(r=8), 294_912),
        (Lora(r=2), 73_728),
        (Head(), 0),
    ],
    ids=str,
)
def test_counts_of_roberta_base(roberta_base: Any, method: Any, encoder: int) -> None:
    count = count_parameters(method, site_map(roberta_base))
    assert (count.encoder, count.head, count.total) == (
        encoder,
        ROBERTA_HEAD,
        encoder + ROBERTA_HEAD,
    )


def test_full_counts_every_parameter_of_roberta_base(roberta_base: Any) -> None:
    count = count_parameters(Full(), site_map(roberta_base))
    assert count.total == sum(p.numel() for p in roberta_base.parameters()) == 124_647_170
    assert count.head == ROBERTA_HEAD


def test_empty_model_holds_no_weights(roberta_base: Any) -> None:
    assert all(parameter.is_meta for parameter in roberta_base.parameters())


# -- counts are true ------------------------------------------------------------------------------


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("fresh", [False, True])
def test_counts_are_what_an_engine_owns(family: str, fresh: bool) -> None:
    """With a head that the checkpoint had, and with one that it lacked, pooler included."""
    model = tiny_model(family)
    base = f"{model.base_model_prefix}."
    lacking = frozenset(
        name
        for name, _ in model.named_parameters()
        if fresh and (not name.startswith(base) or "pooler" in name)
    )
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    engine = Engine(model, lacking)
    head = {n for n in shapes if not n.startswith(base)} | lacking
    for name in METHODS:
        add = {"add_missing": True} if name == "bitfit" and family in WITHOUT_BIASES else {}
        method = make_method(name, add)
        count = count_parameters(method, engine.sites)
        tensors = engine.owned(method, 0).tensors
        in_head = sum(t.numel() for n, t in tensors.items() if n in head)
        elsewhere = sum(t.numel() for n, t in tensors.items() if n not in head)
        assert (count.encoder, count.head) == (elsewhere, in_head), name
        assert {n for n in tensors if n in head} == head, "every method trains the whole head"
        assert sum(flat.numel() for flat in engine.owned(method, 0).flats) == count.total
        for own, tensor in tensors.items():
            if own in shapes:
                assert tuple(tensor.shape) == shapes[own]


@pytest.mark.parametrize("family", CONFIGS)
def test_full_owns_each_parameter_once(family: str) -> None:
    model = tiny_model(family)
    parameters = dict(model.named_parameters())
    owned = Full().ownership(site_map(model))
    assert sorted(owned.parameters) == sorted(parameters)
    assert len(set(owned.parameters)) == len(owned.parameters)


@pytest.mark.parametrize("family", CONFIGS)
def test_counts_need_no_weights(family: str, tiny_sites: dict[str, SiteMap]) -> None:
    """The same on the meta device as with weights."""
    model = tiny_model(family)
    empty = site_map(empty_model(model.config, num_labels=3))
    assert empty == tiny_sites[family]


# -- bitfit ---------------------------------------------------------------------------------------


def test_bitfit_is_refused_where_there_are_no_biases(tiny_sites: dict[str, SiteMap]) -> None:
    with pytest.raises(SettingsError, match=r"modernbert backbone has no biases.*add_missing=true"):
        BitFit().ownership(tiny_sites["modernbert"])


@pytest.mark.parametrize("family", WITHOUT_BIASES)
def test_added_biases_start_as_identity(family: str) -> None:
    """And each of them is reached by the gradient."""
    engine = Engine(tiny_model(family).double(), dtype=torch.float64)
    plain = engine.owned(Head(), 0)
    owned = engine.owned(BitFit(add_missing=True), 0)
    added = sorted(owned.tensors.keys() - plain.tensors.keys())
    kinds = {engine.sites[name.removesuffix(".bias")].kind for name in added}
    # The norms of eurobert have no bias to add.
    assert kinds == ({"linear", "layer_norm"} if family == "modernbert" else {"linear"})
    assert added and all(name.endswith(".bias") for name in added)
    assert all(float(owned.tensors[name].detach().abs().max()) == 0.0 for name in added)
    table = tiny_table(6, seed=1)
    packed = pack([(table, np.arange(6))])
    logits = engine.logits([owned], packed, None)
    assert_close(logits, engine.logits([plain], packed, None), rtol=1e-12, atol=1e-12)
    logits.square().sum().backward()
    unreached = [n for n in added if float(owned.tensors[n].grad.norm()) == 0.0]  # type: ignore[union-attr]
    assert unreached == []


@pytest.mark.parametrize("family", [f for f in CONFIGS if f not in WITHOUT_BIASES])
def test_terms_are_disjoint_and_cover_all(family: str, tiny_sites: dict[str, SiteMap]) -> None:
    sites = tiny_sites[family]
    head = set(Head().ownership(sites).parameters)
    parts: list[str] = []
    for role in sites.roles:
        try:
            owned = BitFit(terms=(role,)).ownership(sites).parameters
        except SettingsError:
            assert not any(site.has_bias for site in sites.part("encoder") if site.role == role)
            continue
        parts += [name for name in owned if name not in head]
    assert len(parts) == len(set(parts)), "a bias belongs to one term"
    every = set(BitFit().ownership(sites).parameters) - head
    assert set(parts) == every
    assert every == {
        site.parameter("bias") for site in sites.part("encoder") if "bias" in site.shapes
    }


def test_paper_subset_is_query_and_intermediate(tiny_sites: dict[str, SiteMap]) -> None:
    owned = BitFit(terms="paper-subset").ownership(tiny_sites["bert"]).parameters
    encoder = [name for name in owned if not name.startswith("classifier")]
    assert len(encoder) == 4
    assert all(n.endswith(("query.bias", "intermediate.dense.bias")) for n in encoder)
    listed = BitFit.model_validate({"terms": "query, intermediate"})
    assert listed.ownership(tiny_sites["bert"]).parameters == owned


def test_unknown_terms_are_all_named(tiny_sites: dict[str, SiteMap]) -> None:
    with pytest.raises(SettingsError) as caught:
        BitFit(terms=("quary", "key", "outputnorm")).ownership(tiny_sites["bert"])
    assert caught.value.problems == (
        'terms: "quary" is no role of a bert backbone, did you mean "query"?',
        'terms: "outputnorm" is no role of a bert backbone, did you mean "output_norm"?',
    )


# -- lora -----------------------------------------------------------------------------------------


def test_unknown_targets_are_all_named(tiny_sites: dict[str, SiteMap]) -> None:
    with pytest.raises(SettingsError) as caught:
        Lora(target_modules=("qeury", "value", "denes")).ownership(tiny_sites["bert"])
    assert caught.value.problems == (
        'target_modules: no linear layer of the encoder is named "qeury", did you mean "query"?',
        'target_modules: no linear layer of the encoder is named "denes", did you mean "dense"?',
    )
    with pytest.raises(SettingsError, match='named "uery", did you mean "query"'):
        Lora(target_modules="uery").ownership(tiny_sites["bert"])


@pytest.mark.parametrize("method", [Lora(target_modules=""), BitFit(terms="")])
def test_an_empty_list_leaves_nothing_to_train(
    method: Lora | BitFit, tiny_sites: dict[str, SiteMap]
) -> None:
    with pytest.raises(SettingsError, match="an empty list leaves nothing to train"):
        method.ownership(tiny_sites["bert"])


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_hyperparameter_is_finite(value: float) -> None:
    """No JSON holds another, so a run could not be written."""
    with pytest.raises(SettingsError, match="lora_alpha: input should be a finite number"):
        make_method("lora", {"lora_alpha": value})


def test_a_target_in_the_head_is_unknown(tiny_sites: dict[str, SiteMap]) -> None:
    """The head is trained in full, so factors there would say nothing."""
    with pytest.raises(SettingsError, match='named "classifier"'):
        Lora(target_modules=("classifier",)).ownership(tiny_sites["bert"])


@pytest.mark.parametrize("given", [(1,), [1], 1, "1", "1,"])
def test_layers_to_transform_are_the_layers_that_get_factors(
    given: object, tiny_sites: dict[str, SiteMap]
) -> None:
    owned = Lora.model_validate({"layers_to_transform": given}).ownership(tiny_sites["bert"])
    assert [factors.site for factors in owned.low_rank] == [
        f"bert.encoder.layer.1.attention.self.{role}" for role in ("query", "value")
    ]


def test_layers_that_are_not_there_are_all_named(tiny_sites: dict[str, SiteMap]) -> None:
    with pytest.raises(SettingsError) as caught:
        Lora(layers_to_transform=(2, 0, -1)).ownership(tiny_sites["bert"])
    assert caught.value.problems == (
        "layers_to_transform: this bert backbone has the layers 0 to 1, but got 2",
        "layers_to_transform: this bert backbone has the layers 0 to 1, but got -1",
    )
    with pytest.raises(SettingsError, match="nothing to train"):
        Lora(layers_to_transform=()).ownership(tiny_sites["bert"])


@pytest.mark.parametrize("family", CONFIGS)
def test_all_linear_is_every_linear_layer_but_the_heads(
    family: str, tiny_sites: dict[str, SiteMap]
) -> None:
    model = tiny_model(family)
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    inside = {name for name in linear if name.startswith(f"{model.base_model_prefix}.")}
    assert inside < linear, "the head has a linear layer of its own"
    owned = Lora(target_modules="all-linear").ownership(tiny_sites[family])
    assert {factors.site for factors in owned.low_rank} == inside


def test_all_linear_leaves_out_a_fresh_pooler() -> None:
    model = tiny_model("bert")
    sites = site_map(model, frozenset({"bert.pooler.dense.weight", "bert.pooler.dense.bias"}))
    owned = Lora(target_modules="all-linear").ownership(sites)
    assert "bert.pooler.dense" not in {factors.site for factors in owned.low_rank}
    assert "bert.pooler.dense.weight" in owned.parameters


@pytest.mark.parametrize("family", sorted(CONFIGS.keys() & PEFT_TARGETS.keys()))
def test_default_targets_are_those_of_peft(family: str, tiny_sites: dict[str, SiteMap]) -> None:
    targets = PEFT_TARGETS[family]
    assert isinstance(targets, list)
    listed = Lora(target_modules=tuple(targets)).targets(tiny_sites[family])
    assert Lora().targets(tiny_sites[family]) == listed


@pytest.mark.parametrize("family", CONFIGS)
def test_default_targets_exist_in_every_layer(family: str, tiny_sites: dict[str, SiteMap]) -> None:
    sites = tiny_sites[family]
    layers = {site.layer for site in sites.part("encoder")} - {None}
    found = [site.layer for site in Lora().targets(sites)]
    assert layers and set(found) == layers
    assert {found.count(layer) for layer in layers} <= {1, 2}


def test_scale_is_that_of_peft() -> None:
    assert Lora(r=4, lora_alpha=8).scale == 2.0
    assert Lora(r=4, lora_alpha=8, use_rslora=True).scale == 4.0
