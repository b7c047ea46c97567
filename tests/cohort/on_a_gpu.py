"""A processor that works as a GPU does: tables, passes laid out ahead, and the references of the kernels.

Products by groups are loops here, which know float64; a capture is a stand-in, or there is none.
"""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fleetune.cohort import grouped
from fleetune.cohort import open as open_backbone
from fleetune.cohort.engine import Engine
from tests.tiny import tiny_model


def product(a: Tensor, b: Tensor, *, offs: Tensor) -> Tensor:
    """torch.nn.functional.grouped_mm, group by group."""
    parts = list(pairwise([0, *offs.tolist()]))
    if b.dim() == 3:
        return torch.cat([a[low:high] @ b[k] for k, (low, high) in enumerate(parts)])
    return torch.stack([a[:, low:high] @ b[low:high] for low, high in parts])


def quick_engine(
    patch: pytest.MonkeyPatch, family: str = "bert", dtype: torch.dtype = torch.float64
) -> Engine:
    """An engine that takes a GPU's ways."""
    with pytest.MonkeyPatch.context() as here:
        here.setattr(open_backbone, "suits", lambda *_: True)
        engine = Engine(tiny_model(family).to(dtype), dtype=dtype)
    engine.lanes.count = 1  # a GPU runs one pass after the other
    patch.setattr(grouped, "grouped_mm", product)
    assert engine.graphs is not None
    return engine


def replaying(engine: Engine, patch: pytest.MonkeyPatch) -> Engine:
    """The same engine, which replays: a stand-in for a graph does the pass anew, and leaves the losses where a graph would."""
    graphs = engine.graphs
    assert graphs is not None

    def capture(form: Any) -> Any:
        losses = torch.empty(len(form.work.keys), dtype=torch.float64)
        form.graph = SimpleNamespace(replay=lambda: losses.copy_(graphs._step(form))), losses
        return form.graph

    patch.setattr(graphs, "_capture", capture)
    graphs.captures = True
    return engine


def plain_engine(family: str = "bert", dtype: torch.dtype = torch.float64) -> Engine:
    return Engine(tiny_model(family).to(dtype), dtype=dtype)
