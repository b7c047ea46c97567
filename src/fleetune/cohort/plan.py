"""Which trials train together, how much one pass may hold, and why.

A plan is made once the backbone is loaded: what a pass needs is measured on it (memory.py), what the machine has left is
read, and the trials of a study are split into cohorts that fit. Each cohort says in a sentence why it is one.

Not covered: memory that others take while it trains (a cohort then makes its own passes smaller).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fleetune.cohort import memory
from fleetune.cohort.engine import Engine
from fleetune.cohort.memory import Needs
from fleetune.cohort.trial import TrialInput

# The rest is for what a prediction misses (tests/cohort/test_memory.py holds it to 15 %) and for other processes.
SHARE_OF_FREE = 0.75


@dataclass(frozen=True, slots=True)
class Limits:
    """What one cohort may hold."""

    trials: int
    """Trials at once."""
    tokens: int
    """Tokens in one pass."""


@dataclass(frozen=True, slots=True)
class Planned:
    """One cohort to come."""

    inputs: tuple[TrialInput, ...]
    limits: Limits
    needs: Needs
    why: tuple[str, ...]
    """Sentences: why these trials do not train with the others, and what memory allows. Empty where nothing limits."""


def plan(
    engine: Engine,
    inputs: Sequence[TrialInput],
    *,
    backbones: Mapping[str, str] | None = None,
    free: int | None = None,
) -> tuple[Planned, ...]:
    """Cohorts of a study's trials that fit this machine, in the order given.

    backbones: the name of each trial's backbone, by trial id, where they differ; all are measured on `engine`.
    free: bytes that may still be taken; by default what the machine or the device has left.
    """
    device = engine.backbone.device
    budget = (memory.available(device) if free is None else free) * SHARE_OF_FREE
    split = _split(engine, inputs, backbones or {})
    return tuple(_fitted(engine, group, why, budget) for group, why in split)


def fit(
    engine: Engine,
    inputs: Sequence[TrialInput],
    *,
    parked: int = 0,
    size: int | None = None,
    free: int | None = None,
) -> Planned:
    """The limits of one cohort of trials that may share a pass.

    inputs: its trials, or some that stand for them. parked: how many more keep their states beside those that train.
    size: how many train at once at most, where the user has said so. free: as in `plan`.
    """
    budget = (memory.available(engine.backbone.device) if free is None else free) * SHARE_OF_FREE
    return _fitted(engine, inputs, (), budget, parked=parked, size=size)


def cohorts(inputs: Sequence[TrialInput], backbone_shares: bool = True) -> list[list[TrialInput]]:
    """The trials that share a backbone in one cohort, each of the others alone; in the order given.

    backbone_shares: False for a family whose trials cannot train together (`families.Family.shares`).
    """
    sharing = [i for i in inputs if backbone_shares and i.method.abilities.shares_backbone]
    alone = [i for i in inputs if not (backbone_shares and i.method.abilities.shares_backbone)]
    return [*([sharing] if sharing else []), *([given] for given in alone)]


def default_limits(device: str) -> Limits:
    """Enough for the machine's matrix rate and no more, since activations cost memory by the token."""
    if device.startswith("cuda"):
        return Limits(trials=64, tokens=65_536)  # assumption, not measured
    # On two cores with MiniLM passes of 100,000 tokens ran at a third of the speed of passes of 4,000: fresh memory for
    # each activation then costs more than the products. docs/lab-notes.md, "tokens in a pass".
    return Limits(trials=32, tokens=4_096)


def _split(
    engine: Engine, inputs: Sequence[TrialInput], backbones: Mapping[str, str]
) -> list[tuple[list[TrialInput], tuple[str, ...]]]:
    """Groups that may train together, each with why it is apart from the rest."""
    family = engine.backbone.family
    by_backbone: dict[str, list[TrialInput]] = {}
    for given in inputs:
        by_backbone.setdefault(backbones.get(given.spec.id, ""), []).append(given)
    found: list[tuple[list[TrialInput], tuple[str, ...]]] = []
    for name, members in by_backbone.items():
        other = (
            (f"trials of another backbone than {name} cannot share its pass",)
            if len(by_backbone) > 1
            else ()
        )
        for group in cohorts(members, family.shares):
            method = group[0].method
            why = other
            if not method.abilities.shares_backbone:
                why += (f"{method.name} changes the backbone, so each trial needs a private copy",)
            elif not family.shares and len(members) > 1:
                why += (
                    f"a leaf of {family.model_type} also runs on a table that belongs to no trial, so its trials cannot "
                    "share a pass",
                )
            found.append((group, why))
    return found


def _fitted(
    engine: Engine,
    group: Sequence[TrialInput],
    why: tuple[str, ...],
    budget: float,
    *,
    parked: int = 0,
    size: int | None = None,
) -> Planned:
    """The largest limits up to the default ones whose needs stay within the budget."""
    default = default_limits(str(engine.backbone.device))
    rates = memory.measure(engine, group)
    most = min(default.trials if size is None else size, len(group))
    floor = max(memory.worst_batch(given) for given in group)

    def needs(trials: int, tokens: int) -> Needs:
        return memory.needs(engine, group, rates, trials=trials, tokens=tokens, parked=parked)

    def need(trials: int, tokens: int) -> int:
        return needs(trials, tokens).beyond_backbone

    # Places first, at the smallest pass; then as many tokens as what is left holds.
    smallest = min(floor, default.tokens)
    trials = _largest(1, most, lambda n: need(n, smallest) <= budget)
    tokens = _largest(smallest, default.tokens, lambda n: need(trials, n) <= budget)
    limits = Limits(trials, tokens)
    return Planned(
        tuple(group),
        limits,
        needs(trials, tokens),
        (*why, *_told(limits, Limits(most, default.tokens), need, budget)),
    )


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
