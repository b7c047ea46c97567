"""What a run will train and what it will cost, before anything is written.

Trials, epochs and parameters are exact (but for trials that fail, for repeats of a setting in a batch, which go on together, and
for the epochs of the last phase under protocol "cv", which the folds choose: they are the most). Time, memory and disk are
estimates with their reasons in `assumptions`; expect a factor of two. Nothing here looks at a label of a test row, and nothing
is written.
"""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import torch

from fleetune.backbone.families import family_of
from fleetune.backbone.sites import SiteMap
from fleetune.cohort.kernels import keep_few_kernels
from fleetune.cohort.memory import COPIES
from fleetune.cohort.plan import default_limits, groups
from fleetune.errors import counted
from fleetune.methods.base import count_parameters
from fleetune.methods.table import method_class
from fleetune.study import plan
from fleetune.study.checkpoints import KEPT
from fleetune.study.prepare import DTYPES, Prepared, PreparedTask
from fleetune.study.propose import propose
from fleetune.study.rows import FOLDS, epochs_of, length_of, settle, trial_input
from fleetune.study.search import ETA, Budget, rungs
from fleetune.study.settings import SEARCH
from fleetune.study.space import Arm

# Of the machine's matrix rate: 58 % was seen on two cores with RTE and MiniLM (DESIGN.md, section 8: limit 120, reached 70).
EFFICIENCY = 0.5
# Python with torch, transformers and peft loaded.
LIBRARIES_BYTES = 600 * 2**20


_CV_EPOCHS = "epochs: under protocol cv those of the last phase are the most; the folds choose how many are trained"


def search_epochs(budget: Budget, epochs: int) -> int:
    """Epochs that one arm's search trains, where no trial fails; one fold counts as one trial."""
    total, left = 0, budget.trials
    while left > 0:
        n = min(budget.batch, left)
        left -= n
        at = 0
        racing = n
        for level, rung in enumerate(rungs(n, epochs) if budget.halving else (), start=1):
            total += racing * (rung - at)
            at, racing = rung, math.ceil(n / ETA**level)
        total += racing * (epochs - at)
    return total


def estimate(prepared: Prepared, device: str = "cpu") -> dict[str, Any]:
    """Trials, cohorts, parameters, memory, time and disk of a run, as plain values."""
    rate = matrix_rate(prepared.dtype, device)
    phases = (SEARCH, prepared.settings.phase)
    arms = [
        _arm(prepared, task, arm, b) for task in prepared.tasks for arm, b in plan.budgets(prepared)
    ]
    limits = default_limits(device)
    at_once = max(min(limits.trials, sum(a[key]["trials"] for a in arms)) for key in phases)
    weights = max(_weights(task.sites) for task in prepared.tasks)
    owned = sorted((a["trainable_parameters"] for a in arms), key=lambda p: -sum(p.values()))
    largest = sum(owned[0].values()) if owned else 0
    flops = sum(a["flops"] for a in arms)
    return {
        "phase": prepared.settings.phase,
        "arms": [{k: v for k, v in a.items() if k != "flops"} for a in arms],
        "cohorts": _cohorts(prepared, arms, limits.trials),
        "totals": {
            **{
                what: sum(a[key][what] for a in arms for key in phases)
                for what in ("trials", "epochs", "tokens")
            },
            "seconds": flops / (rate * EFFICIENCY),
            "memory_bytes": LIBRARIES_BYTES
            + 4 * weights * 4
            + at_once * largest * 4 * COPIES
            + _activations(prepared, limits.tokens),
            "disk_bytes": _disk(prepared, arms, at_once, largest),
        },
        "assumptions": [
            *(_CV_EPOCHS for task in prepared.tasks[:1] if task.rows.protocol == "cv"),
            f"time: {rate / 1e9:.0f} GFLOP/s in a matrix product just now, of which half is reached; what else the machine "
            "does comes on top",
            "memory: libraries, four copies of the encoder's weights, five numbers for each trainable parameter of "
            f"{counted(at_once, 'trial')} at once, and the activations of a pass",
            f"disk: weights and predictions of the {phases[1]} trials, and two snapshots of a cohort",
        ],
    }


def _arm(prepared: Prepared, task: PreparedTask, arm: Arm, budget: Budget) -> dict[str, Any]:
    rows, settings = task.rows, prepared.settings
    setting = settle(arm, arm.first_picks(), rows)
    seed = settings.search.seed if settings.search else 0
    part = rows.divisions(seed)[0]
    probe = trial_input(rows, setting, part, ident="probe", seed=seed, phase=SEARCH)
    epochs, folds = epochs_of(probe), FOLDS if rows.protocol == "cv" else 1
    counted = count_parameters(setting.method, task.sites)
    lengths = rows.table.lengths
    kept, held = int(lengths[part[0].rows].sum()), int(part[1].table.lengths[part[1].rows].sum())
    found = {
        SEARCH: {"trials": budget.trials * folds, "epochs": folds * search_epochs(budget, epochs)},
        settings.phase: {"trials": len(settings.seeds), "epochs": len(settings.seeds) * epochs},
    }
    whole = length_of(probe) / epochs  # below 1 where the last epoch is not a whole one
    for name, phase in found.items():
        # Under "cv" the last phase trains on all of train, and has nothing to be judged on.
        of = int(lengths.sum()) if folds > 1 and name != SEARCH else kept
        phase["tokens"] = round(phase["epochs"] * whole * of)
    per_token = 2 * _linear_weights(task.sites)
    backward = 1 if counted.encoder else 0
    trained = sum(phase["tokens"] for phase in found.values())
    judged = sum(found[name]["epochs"] for name in (found if folds == 1 else (SEARCH,))) * held
    tests = sum(int(t.lengths.sum()) for t in task.test_tables.values()) * len(settings.seeds)
    return {
        "task": rows.task.name,
        "arm": arm.name,
        "method": arm.method,
        "searched": plan.searched_values(arm) if budget.trials else {},
        "first_proposals": _proposals(prepared, task, arm, budget),
        **found,
        "trainable_parameters": {"encoder": counted.encoder, "head": counted.head},
        "flops": per_token * (trained * (1 + backward) + judged + tests),
    }


def _proposals(
    prepared: Prepared, task: PreparedTask, arm: Arm, budget: Budget
) -> list[dict[str, Any]]:
    """The first batch; what a learning sampler proposes later depends on the scores."""
    s = prepared.settings.search
    if s is None or not budget.trials or not arm.searched:
        return []
    count = min(budget.batch, budget.trials)
    return propose(
        s.sampler, arm, (), count=count, startup=count, seed=s.seed, task=task.rows.task.name
    )


def _cohorts(prepared: Prepared, arms: list[dict[str, Any]], at_once: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    family = family_of(prepared.backbone.config)
    for task in prepared.tasks:
        mine = [a for a in arms if a["task"] == task.rows.task.name]
        for phase in (SEARCH, prepared.settings.phase):
            training = [a for a in mine if a[phase]["trials"]]
            for group in groups(training, lambda a: method_class(a["method"]), family):
                trials = sum(a[phase]["trials"] for a in group.members)
                found.append(
                    {
                        "task": task.rows.task.name,
                        "phase": phase,
                        "arms": [a["arm"] for a in group.members],
                        "trials": trials,
                        "at_once": min(trials, at_once) if group.shares else 1,
                    }
                )
    return found


def matrix_rate(dtype: str, device: str) -> float:
    """Floating-point operations a second in one matrix product of an encoder's size, measured now, in a tenth of a second."""
    keep_few_kernels()  # these may be the first of the process
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(1024, 1024, generator=generator).to(device, DTYPES[dtype]) for _ in "ab")

    def product() -> float:
        """Its seconds."""
        start = time.monotonic()
        float((a @ b)[0, 0])  # waits for the device
        return time.monotonic() - start

    product()  # the first one also sets up threads and kernels
    best = product()
    end = time.monotonic() + 0.1
    while time.monotonic() < end:
        best = min(best, product())
    return 2 * 1024**3 / best


def _linear_weights(sites: SiteMap) -> int:
    return sum(s.d_in * s.d_out for s in sites.linear())


def _weights(sites: SiteMap) -> int:
    return sum(int(np.prod(shape)) for shape in sites.parameters().values())


def _activations(prepared: Prepared, tokens: int) -> int:
    """Of one pass: about twenty numbers of the hidden width for each token and layer are kept for the way back."""
    config = prepared.backbone.config
    width = int(getattr(config, "hidden_size", 768))
    layers = int(getattr(config, "num_hidden_layers", 12))
    size = 2 if prepared.dtype == "bfloat16" else 4
    return tokens * layers * width * 20 * size


def _disk(prepared: Prepared, arms: list[dict[str, Any]], at_once: int, largest: int) -> int:
    phase = prepared.settings.phase
    kept = sum(a[phase]["trials"] * 4 * sum(a["trainable_parameters"].values()) for a in arms)
    rows = sum(len(t) for task in prepared.tasks for t in task.test_tables.values())
    predictions = rows * len(prepared.settings.seeds) * len(prepared.arms) * 40
    journal = 400 * sum(a[SEARCH]["epochs"] + a[phase]["epochs"] for a in arms)
    snapshots = KEPT * at_once * largest * 4 * (COPIES - 1)
    return kept + predictions + journal + snapshots
