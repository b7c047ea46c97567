"""What one saved model scored on its test sets, each score with its interval over the examples (stats/intervals.py).

One model is one training: the interval says nothing of other seeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from numpy.typing import NDArray

from fleetune.data.base import Split
from fleetune.records import Estimate

Scored = list[tuple[str, str, Estimate]]
"""(test set, metric, estimate)."""


def saved_scores(
    predictions: Iterable[tuple[str, Split, NDArray[Any]]],
    metrics: Sequence[str],
    *,
    optimistic: bool,
) -> Scored:
    """predictions: name, rows with labels, and finite logits [n, C] of each test set."""
    # Half a second of scipy, not before the first step.
    from fleetune.stats.intervals import metric_estimate

    found: Scored = []
    for name, split, logits in predictions:
        if split.labels is None or not len(split):
            continue
        outputs, labels = logits[None], split.labels
        found += [
            (name, m, metric_estimate(m, outputs, labels, optimistic=optimistic)) for m in metrics
        ]
    return found
