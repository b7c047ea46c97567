"""A trial that becomes NaN or infinite ends and is reported; its mates are bit-equal to what a quiet end leaves them.

The quiet end: the same trial, in good health, takes part in the round in which the other failed, and then leaves without
a word. Who shares a pass changes the last bits of a product, so bit-equality says that the failure changed no pass, no
evaluation and no admission, and that no kernel let NaN through to a neighbour (0 * nan is nan).
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from fleetune.cohort.events import Advanced, EpochDone, Event, TrialFailed
from fleetune.cohort.train import Cohort
from fleetune.cohort.trial import TrialInput
from tests.cohort.outcomes import HOPELESS, assert_bit_equal, engine_of, train, trial

MATES = [
    trial("lora", {"r": 2, "lora_dropout": 0.2}, ident="a", dropout=0.1, num_train_epochs=2),
    trial("head", ident="b", seed=1, rows=13, gradient_accumulation_steps=2),
    trial("lora", {"target_modules": "all-linear"}, ident="c", seed=2, label_smoothing_factor=0.1),
    trial("lora", {"r": 1}, ident="late", seed=3, num_train_epochs=2),
]
SIZE = 4


def lost(**training: Any) -> TrialInput:
    return trial(
        "lora",
        {"r": 3, "target_modules": "all-linear", "lora_dropout": 0.1},
        ident="lost",
        seed=9,
        num_train_epochs=3,
        **training,
    )


def in_company(one: TrialInput) -> list[TrialInput]:
    """In the midst of the others; the last of them waits for a place."""
    return [MATES[0], one, *MATES[1:]]


class Hurt:
    """Damages the trial after some rounds, and remembers after how many it failed."""

    def __init__(self, after: int, kind: str) -> None:
        self.after, self.kind = after, kind
        self.rounds, self.failed_in, self.at_evaluation = 0, 0, False
        self.reason = ""

    def __call__(self, cohort: Cohort, event: Event) -> None:
        if isinstance(event, TrialFailed):
            # Events come after the round: `Advanced` of a failure within it is still to come.
            self.at_evaluation = "predictions" in event.reason
            self.failed_in = self.rounds + (not self.at_evaluation)
            self.reason = event.reason
        if not isinstance(event, Advanced):
            return
        self.rounds += 1
        for one in cohort.active:
            if self.rounds == self.after and one.id == "lost":
                with torch.no_grad():
                    if self.kind == "gradient":
                        one.owned.grads[0][0] = math.inf
                    else:
                        one.owned.flats[0][3] = float(self.kind)


class Leaves:
    """Takes the trial out after that round, or after the evaluation that followed it."""

    def __init__(self, hurt: Hurt) -> None:
        self.hurt, self.rounds = hurt, 0

    def __call__(self, cohort: Cohort, event: Event) -> None:
        self.rounds += isinstance(event, Advanced)
        now = self.rounds == self.hurt.failed_in
        moment = EpochDone if self.hurt.at_evaluation else Advanced
        if now and isinstance(event, moment):
            cohort.active[:] = [one for one in cohort.active if one.id != "lost"]


# 4 micro-batches an epoch in steps of two: from within a group, before an evaluation, in mid-epoch.
KINDS = [
    (0, "huge rate", ""),
    (1, "nan", "the loss became nan at step 1"),
    (6, "inf", ""),
    (4, "nan", "its predictions are not finite at step 2"),
    (3, "gradient", "the gradient became inf at step 2"),
]
FAMILIES = [
    ("bert", torch.float64),
    ("bert", torch.bfloat16),
    ("modernbert", torch.float32),
    ("albert", torch.float32),
    ("mpnet", torch.float32),
    ("distilbert", torch.bfloat16),
]
NARROW = 70
"""Tokens that hold one or two micro-batches."""
EVERY = [
    (*family, *kind, tokens) for family in FAMILIES for kind in KINDS for tokens in (10**6, NARROW)
]
# All kinds on one family, and once a family of each layout and dtype; the rest of the product is slow.
QUICK = {("bert", torch.float64, *kind, NARROW) for kind in KINDS} | {
    (*family, *KINDS[3], 10**6) for family in FAMILIES[1:3] + FAMILIES[4:5]
}


@pytest.mark.parametrize(
    ("family", "dtype", "after", "kind", "says", "max_tokens"),
    [pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow) for case in EVERY],
)
def test_mates_of_a_trial_that_diverges_notice_nothing(
    family: str, dtype: torch.dtype, after: int, kind: str, says: str, max_tokens: int
) -> None:
    engine = engine_of(family, dtype)
    hurt = Hurt(after, kind)
    twos = {"gradient_accumulation_steps": 2}
    # Near the largest number of the weights' dtype: its square is none.
    largest = 1e300 if dtype == torch.float64 else 1e37
    rate = {**HOPELESS, "learning_rate": largest} if kind == "huge rate" else {}
    found = train(
        engine, in_company(lost(**rate, **twos)), size=SIZE, max_tokens=max_tokens, watch=hurt
    )
    assert hurt.reason and found["lost"].how == hurt.reason
    assert says in hurt.reason
    leaves = Leaves(hurt)
    expected = train(
        engine, in_company(lost(**twos)), size=SIZE, max_tokens=max_tokens, watch=leaves
    )
    assert "lost" not in expected or not expected["lost"].how, "it left quietly"
    for mate in MATES:
        assert found[mate.spec.id].how == "done"
        assert_bit_equal(found[mate.spec.id], expected[mate.spec.id])


def test_all_trials_may_diverge() -> None:
    """Each is reported for itself, and the ones that waited are tried too."""
    rates = {"learning_rate": 1e250, "warmup_steps": 1, "max_grad_norm": 0}
    every = [trial("lora", ident=str(k), seed=k, **rates) for k in range(5)]
    found = train(engine_of("bert"), every, size=2)
    assert len(found) == 5
    assert all("became nan" in end.how or "not finite" in end.how for end in found.values())
