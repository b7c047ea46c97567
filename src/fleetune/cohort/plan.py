"""Which trials train together, how much one pass may hold, and why.

A plan is made once the backbone is loaded: what a pass needs is measured on it (memory.py), what the machine has left is
read, and the limits of a cohort follow. Each says in sentences why its trials are apart from others, and what does not fit.

Not covered: memory that others take while it trains (a cohort then makes its own passes smaller).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from fleetune.backbone.families import Family
from fleetune.cohort import memory, room
from fleetune.cohort.company import why_alone
from fleetune.cohort.drawn import worst_batch
from fleetune.cohort.engine import Engine
from fleetune.cohort.memory import Needs
from fleetune.cohort.trial import TrialInput
from fleetune.methods.base import Method

T = TypeVar("T")
# The rest is for what a prediction misses (tests/cohort/test_memory.py holds what is asked for to 15 %) and for other processes.
SHARE_OF_FREE = 0.75
# And on a processor for what the C library keeps between the blocks that it hands out: 1.7 times what was asked for was held by
# 15 trials of MiniLM (docs/lab-notes.md, "what malloc keeps").
SHARE_OF_FREE_CPU = 0.5


@dataclass(frozen=True, slots=True)
class Limits:
    """What one cohort may hold."""

    trials: int
    """Trials at once."""
    tokens: int
    """Tokens in one pass."""


@dataclass(frozen=True, slots=True)
class Group(Generic[T]):
    """Trials, or arms of a study, that may train in one cohort."""

    members: tuple[T, ...]
    why: str | None
    """A sentence: why each of its trials trains alone. None: they share a backbone."""

    @property
    def shares(self) -> bool:
        return self.why is None


@dataclass(frozen=True, slots=True)
class Planned:
    """One cohort to come."""

    limits: Limits
    needs: Needs
    why: tuple[str, ...]
    """Sentences: why its trials train alone, and what memory allows. Empty where nothing limits."""


def groups(
    members: Sequence[T], method: Callable[[T], Method | type[Method]], family: Family
) -> list[Group[T]]:
    """Those that share the backbone as one group, each of the others alone; in the order given."""
    judged = [(m, why_alone(method(m), family)) for m in members]
    sharing = tuple(m for m, why in judged if why is None)
    return [
        *([Group(sharing, None)] if sharing else []),
        *(Group((member,), why) for member, why in judged if why is not None),
    ]


def fit(
    engine: Engine,
    inputs: Sequence[TrialInput],
    *,
    parked: int = 0,
    size: int | None = None,
    free: int | None = None,
    alone: str | None = None,
) -> Planned:
    """The limits of one cohort: the largest up to the default ones whose needs stay within what may be taken.

    inputs: its trials, or some that stand for them. parked: how many more keep their states beside those that train.
    size: how many train at once at most, where the user has said so. free: bytes that may still be taken; by default what
    the machine or the device has left. alone: why they train one after the other (`Group.why`).
    """
    device = engine.backbone.device
    share = SHARE_OF_FREE_CPU if device.type == "cpu" else SHARE_OF_FREE
    budget = (room.available(device) if free is None else free) * share
    default = default_limits(str(device))
    estimate = memory.estimate(engine, inputs)
    wished = default.trials if size is None else size
    most = 1 if alone else min(wished, len(inputs))
    floor = max(worst_batch(given) for given in inputs)

    def needs(trials: int, tokens: int) -> Needs:
        return estimate.needs(trials=trials, tokens=tokens, parked=parked)

    def need(trials: int, tokens: int) -> int:
        return needs(trials, tokens).beyond_backbone

    # Places first, at the smallest pass; then as many tokens as what is left holds.
    smallest = min(floor, default.tokens)
    trials = _largest(1, most, lambda n: need(n, smallest) <= budget)
    tokens = _largest(smallest, default.tokens, lambda n: need(trials, n) <= budget)
    limits = Limits(trials, tokens)
    told = _told(limits, Limits(most, default.tokens), need, budget)
    return Planned(limits, needs(trials, tokens), (*([alone] if alone else []), *told))


def default_limits(device: str) -> Limits:
    """Enough for the machine's matrix rate and no more, since activations cost memory by the token."""
    if device.startswith("cuda"):
        return Limits(trials=64, tokens=65_536)  # assumption, not measured
    # On two cores with MiniLM passes of 100,000 tokens ran at a third of the speed of passes of 4,000: fresh memory for
    # each activation then costs more than the products. docs/lab-notes.md, "tokens in a pass".
    return Limits(trials=32, tokens=4_096)


def _largest(low: int, high: int, fits: Callable[[int], bool]) -> int:
    """The largest number from low to high that fits; low where none does. What fits at n must fit below n."""
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low


def _told(
    limits: Limits, wished: Limits, need: Callable[[int, int], int], budget: float
) -> tuple[str, ...]:
    """What memory does not allow, and what to do where not even the least fits."""
    found = need(limits.trials, limits.tokens)
    if found > budget:
        return (
            f"even one trial at a time needs {_size(found)} and {_size(budget)} may be taken, so it is likely to fail; "
            "lower per_device_train_batch_size or max_length, or free memory",
        )
    told: list[str] = []
    if limits.trials < wished.trials:
        told.append(
            f"{limits.trials} of {wished.trials} trials train at once: the states of more would not fit into the "
            f"{_size(budget)} that may be taken; the others follow as places become free"
        )
    if limits.tokens < wished.tokens:
        told.append(
            f"a pass holds {limits.tokens:,} tokens instead of {wished.tokens:,}, which would need "
            f"{_size(need(limits.trials, wished.tokens))} of the {_size(budget)} that may be taken"
        )
    return tuple(told)


def _size(count: float) -> str:
    """Bytes as people read them."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
