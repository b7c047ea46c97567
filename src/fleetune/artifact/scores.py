"""What one saved model scored on its test sets, each score with its interval over the examples.

One model is one training: the interval says nothing of other seeds. Source of the intervals: stats/intervals.py for
accuracy (Wilson), the percentile bootstrap over examples for all other metrics.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetune.data.base import Split
from fleetune.records import Estimate
from fleetune.seeds import stream
from fleetune.stats.bootstrap import draw_weights, percentile
from fleetune.stats.intervals import LEVEL, accuracy_estimate
from fleetune.stats.weighted import scorer_of

_RESAMPLES = 1000
# Weights of so many examples and resamples are held at once.
_CELLS = 2_000_000

Scored = list[tuple[str, str, Estimate]]
"""(test set, metric, estimate)."""


def saved_scores(
    predictions: Iterable[tuple[str, Split, NDArray[Any]]],
    metrics: Sequence[str],
    *,
    optimistic: bool,
) -> Scored:
    """predictions: name, rows with labels, and logits [n, C] of each test set. Logits that are not finite have no score."""
    found: Scored = []
    for name, split, logits in predictions:
        if split.labels is None or not len(split) or not np.isfinite(logits).all():
            continue
        said = logits.argmax(1) if logits.shape[1] > 1 else logits[:, 0].astype(np.float64)
        found += [(name, m, _estimate(m, said, split.labels, optimistic)) for m in metrics]
    return found


def _estimate(metric: str, said: NDArray[Any], labels: NDArray[Any], optimistic: bool) -> Estimate:
    if metric == "accuracy":
        return accuracy_estimate((said == labels)[None], optimistic=optimistic)
    n = len(labels)
    scorer = scorer_of(metric, said[None], labels)
    draw = stream(0, "card", n)
    step = max(1, _CELLS // n)
    parts = [
        scorer(draw_weights(draw, min(step, _RESAMPLES - start), n))[:, 0]
        for start in range(0, _RESAMPLES, step)
    ]
    low, high = percentile(np.concatenate(parts), LEVEL)
    value = float(scorer(np.ones((1, n)))[0, 0])
    return Estimate(value, low, high, n, 1, "95% bootstrap over examples, one seed", optimistic)
