"""The trial of a run to use, and to take further."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fleetune.data.metrics import worst
from fleetune.report import trainings
from fleetune.report.trainings import Group


def winner(facts: dict[str, Any]) -> dict[str, Any] | None:
    """The trial to use: of the method with the best mean selection score, its best one; of several tasks, on the first.

    Test scores are not looked at. A failed trial has no selection score, and what its selection rows would give to a constant
    answer is not kept: in the mean of its method it counts as the worst there is (`data.metrics.worst`), or where a loss selects
    an infinite one.
    """
    groups = [g for g in trainings.groups(facts["trials"]) if g.done]
    if not groups:
        return None
    first = groups[0].first["task"]
    scored = [
        (group, [_selection_score(facts, trial) for trial in group.done])
        for group in groups
        if group.first["task"] == first
    ]
    group, scores = max(scored, key=lambda pair: _standing(*pair))
    return group.done[int(np.argmax(scores))]


def _standing(group: Group, scores: list[float]) -> tuple[float, float]:
    """What methods are ranked by; where losses are infinite, those of the trials that ended."""
    training = group.first["training"]
    least = worst(training["metric_for_best_model"]) if training["greater_is_better"] else -math.inf
    return float(np.mean([*scores, *(least for _ in group.failed)])), float(np.mean(scores))


def _selection_score(facts: dict[str, Any], trial: dict[str, Any]) -> float:
    """Higher is better. A trial that was trained on all of train has none, and stands by the score of its arm's search."""
    training = trial["training"]
    chosen = next(e for e in trial["epochs"] if e["epoch"] == trial["best_epoch"])
    score = chosen["selection"].get(training["metric_for_best_model"])
    if score is None:
        arms = (a for a in facts["arms"] if trial["id"] in a["confirm"]["trials"])
        score = next(a["score"] for a in arms)
    return float(score) if training["greater_is_better"] else -float(score)
