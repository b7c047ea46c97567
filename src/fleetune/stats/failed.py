"""What a training that failed is counted as: one that learned nothing.

Notation: n judged rows, C classes; outputs [S, n, C], of a regression [S, n, 1].

A training that diverged has no predictions. Left out, it would make its method look better the more often it fails, and the
comparison would be of the trainings that happened to survive. Counted as the constant answer it earns what a training earns that
learned nothing: the share of the most frequent class, and 0 by Matthews' coefficient and the correlations, which no constant has.
Misleads: where trained methods score below the constant answer, failing is favoured. The constant is a convention and no
measurement; what the training would have scored with another seed or a lower learning rate is not known.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def learned_nothing(labels: NDArray[Any], width: int) -> NDArray[np.float64]:
    """[n, width]: the most frequent class of `labels` [n] in every row, or where the width is 1 their mean.

    Of equally frequent classes it is the first.
    """
    if width == 1:
        return np.full((len(labels), 1), labels.mean(dtype=np.float64))
    found = np.zeros((len(labels), width))
    found[:, np.bincount(labels.astype(np.int64)).argmax()] = 1.0
    return found


def with_failed(outputs: NDArray[Any], labels: NDArray[Any], failed: int) -> NDArray[Any]:
    """The outputs [S, n, C] of the trainings that ended, and behind them those of so many that failed: [S + failed, n, C]."""
    nothing = learned_nothing(labels, outputs.shape[-1])
    return np.concatenate([outputs, np.repeat(nothing[None], failed, axis=0)])


def failed_as(failed: int, *, regression: bool) -> str:
    """What they are counted as, in words."""
    trainings = "failed training counts" if failed == 1 else "failed trainings count"
    said = "the mean of the targets" if regression else "the most frequent label"
    return f"{failed} {trainings} as giving {said} for every row"
