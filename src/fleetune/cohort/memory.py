"""What a cohort needs of a machine's memory, what the machine has left, and how to go back when it was not enough.

Notation: K trials, P trainable parameters of one, T tokens of a pass. Formulas: docs/scaling.md.

A cohort holds (1) the backbone's weights, and the values that trials start from; (2) for each trial its parameters, their
gradients, AdamW's two moments and the best epoch's copy; (3) while a pass runs, what its backward needs, which grows with
the tokens. (1) and (2) are counted; (3) depends on family, methods and every kernel on the way, so it is not modelled but
measured: two small passes of these trials through this backbone, every allocation counted, give a rate by the token.

Not covered: memory that the process itself holds (torch, the tables of tokens), and what other processes take meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from fleetune.cohort.trial import Trial

# -- when it was not enough -----------------------------------------------------------------------

_SIGNS = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice: Python's, torch's on a device, or its processor allocator's."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


class Undo:
    """Puts the gradients of some trials back to what they were before a pass.

    Only a trial in the middle of an accumulation group has gradients to keep: all others are zero.
    """

    def __init__(self, trials: Iterable[Trial]) -> None:
        self._kept = [
            (t, [g.clone() for g in t.owned.grads] if t.mid_group else None) for t in trials
        ]

    def restore(self) -> None:
        for trial, grads in self._kept:
            if grads is None:
                trial.owned.zero_grad()
                continue
            for mine, before in zip(trial.owned.grads, grads, strict=True):
                mine.copy_(before)
