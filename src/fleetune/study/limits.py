"""How large a stage's cohort may be: planned once from what memory is free, and kept in the journal.

Who shares a pass changes the last bits of a product. So a resumed stage takes the limits of the first command, although
another amount may be free by then; only where what is free would not hold them, they are planned again.
"""

from __future__ import annotations

from collections.abc import Sequence

from fleetune.cohort import room
from fleetune.cohort.engine import Engine
from fleetune.cohort.plan import Limits, Planned, fit
from fleetune.cohort.trial import TrialInput
from fleetune.study.journal import Journal

PLANNED = "planned"


def known(stage: str, engine: Engine, journal: Journal) -> Limits | None:
    """The limits that an earlier command gave a stage, where there is memory for them."""
    told = journal.history.all(PLANNED, stage=stage)
    if not told or told[-1]["bytes"] > room.available(engine.backbone.device):
        return None
    return Limits(told[-1]["at_once"], told[-1]["tokens"])


def planned(
    stage: str,
    engine: Engine,
    sample: Sequence[TrialInput],
    journal: Journal,
    *,
    parked: int = 0,
    size: int | None = None,
    alone: str | None = None,
) -> Planned:
    """Plan a stage and write it down. sample, parked, size, alone: as `fleetune.cohort.plan.fit` has them."""
    found = fit(engine, sample, parked=parked, size=size, alone=alone)
    journal.append(
        PLANNED,
        stage=stage,
        at_once=found.limits.trials,
        tokens=found.limits.tokens,
        bytes=found.needs.beyond_backbone,
        why=list(found.why),
    )
    return found
