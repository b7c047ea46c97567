"""Rows of one token: as many rows of activations as sequences, so that their number does not say which of both they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fleetune.cohort.engine import Engine
from fleetune.cohort.events import EpochDone
from fleetune.cohort.train import Cohort
from fleetune.cohort.trial import Rows, TrialInput
from fleetune.config import training_settings
from fleetune.data.tokens import TokenTable
from fleetune.methods.table import make_method
from fleetune.records import TrialSpec
from tests.tiny import tiny_model


def table(*lengths: int) -> TokenTable:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = np.random.default_rng(0).integers(5, 97, offsets[-1]).astype(np.int32)
    return TokenTable(ids, offsets, None, 0, max(lengths))


def losses(family: str, method: str, lanes: int, lengths: tuple[int, ...]) -> list[float]:
    """Of each epoch, alone, with dropout."""
    model = tiny_model(family, max_position_embeddings=900).double()
    fresh = frozenset(n for n, _ in model.named_parameters() if n.startswith("classifier"))
    engine = Engine(model, fresh, dtype=torch.float64)
    engine.lanes.count = lanes
    n = len(lengths)
    rows = Rows(table(*lengths), np.arange(n), np.arange(n) % 3)
    settings = {"learning_rate": 1e-2, "per_device_train_batch_size": n, "num_train_epochs": 3, "dropout": 0.3}  # fmt: skip
    given = TrialInput(
        TrialSpec("a", "x", method, 1), make_method(method, {}), training_settings(settings), rows,
        Rows(rows.table, np.arange(0), rows.labels), (), "loss", False,
    )  # fmt: skip
    told = Cohort(engine, [given], size=1, max_tokens=10**6).run()
    return [event.result.loss for event in told if isinstance(event, EpochDone)]


@pytest.mark.parametrize("method", ["head", "lora"])
@pytest.mark.parametrize("family", ["bert", "distilbert", "modernbert", "mpnet"])
def test_dropout_is_the_same_however_a_micro_batch_is_divided(family: str, method: str) -> None:
    """One long row fills the first part, so that the others hold rows of one token alone."""
    lengths = (800, 1, 1, 1)
    alone = losses(family, method, 1, lengths)
    for lanes in (2, 3):
        np.testing.assert_allclose(losses(family, method, lanes, lengths), alone, rtol=1e-9)
