"""Nothing within a round asks for a number: on a GPU each such question waits until all that was asked before is done.

Here the ways of a GPU in float32; that of bfloat16 runs by kernels, and tests/gpu asks the device itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fleetune.backbone.device_noise import DeviceNoise
from fleetune.cohort import passes
from fleetune.cohort.engine import Engine
from fleetune.cohort.passes import cut, micro_batches, run_pass
from fleetune.cohort.trial import Trial
from tests.cohort.outcomes import trial
from tests.tiny import tiny_model

# What reads a value of a tensor, or makes a tensor whose size depends on one.
WAITING = (
    "_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "_unique2", "unique_dim", "equal",
    "repeat_interleave.Tensor",
)  # fmt: skip
TRIALS = [
    trial("lora", {"r": 4, "lora_dropout": 0.1}, ident="a", dropout=0.1),
    trial("bitfit", ident="b", seed=1, label_smoothing_factor=0.1),
    trial("head", ident="c", seed=2, max_grad_norm=0.5),
]


class Questions(TorchDispatchMode):
    """Collects the operations that would wait."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().removeprefix("aten::")
        if name.startswith(WAITING) or (name.startswith("index") and _by_truth(args)):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def _by_truth(args: tuple[Any, ...]) -> bool:
    """Whether rows are chosen by truth values, so that their number must be known."""
    chosen = args[1] if len(args) > 1 and isinstance(args[1], (list, tuple)) else []
    return any(isinstance(one, torch.Tensor) and one.dtype == torch.bool for one in chosen)


def a_round(engine: Engine, trials: list[Trial]) -> None:
    for group in cut(micro_batches(engine, trials), 10**6, engine.lanes.count):
        run_pass(engine, group).add_gradients()
    for one in trials:
        one.advance()


@pytest.mark.parametrize("family", ["bert", "modernbert", "distilbert"])
def test_a_round_asks_for_no_number(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "noise_on", lambda _, keys: DeviceNoise(keys))
    given = [one for one in TRIALS if family != "modernbert" or one.method.name != "bitfit"]
    engine = Engine(tiny_model(family))
    trials = [Trial(one, engine.start(one)) for one in given]
    a_round(engine, trials)  # the first one may look things up
    with Questions() as asked:
        a_round(engine, trials)
    assert asked.found == []


@pytest.mark.parametrize(
    "question",
    [
        lambda x: float(x.sum()),
        lambda x: bool((x > 0).any()),
        lambda x: x[x > 0],
        lambda x: torch.nonzero(x),
        lambda x: torch.repeat_interleave(x, torch.tensor([2, 1, 3])),
    ],
)
def test_a_question_would_be_found(question: Callable[[torch.Tensor], object]) -> None:
    x = torch.tensor([1.0, -1.0, 2.0])
    with Questions() as asked:
        question(x)
    assert asked.found
