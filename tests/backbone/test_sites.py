"""Sites of a model: what of it has parameters, found without its weights."""

from __future__ import annotations

import logging

import pytest

from fleetune.backbone.sites import empty_model, site_map
from tests.tiny import tiny_model


@pytest.mark.parametrize("labels", [1, 2, 5])
def test_a_model_without_weights_has_the_shapes_of_one_with(
    labels: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For any number of labels, and without a word of transformers, which the terminal would show."""
    config = tiny_model("bert", num_labels=3).config
    caplog.set_level(logging.WARNING, logger="transformers")
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    found = site_map(empty_model(config, labels))
    expected = site_map(tiny_model("bert", num_labels=labels))
    assert [(s.name, s.shapes) for s in found] == [(s.name, s.shapes) for s in expected]
    assert caplog.messages == []
