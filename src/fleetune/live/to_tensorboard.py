"""TensorBoard: each trial a folder below `logs/` of its run, written through torch's SummaryWriter.

Needs the package `tensorboard` (Apache-2.0), which writes the event files; no server and no network.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard.writer import SummaryWriter

from fleetune.live.writers import Point
from fleetune.study.folder import LOGS

EVENT_FILES = "events.out.tfevents.*"


class TensorBoard:
    """Event files of a run's trials."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / LOGS
        self._open: dict[str, SummaryWriter] = {}
        self._settings: dict[str, Mapping[str, Any]] = {}
        self._step: dict[str, int] = {}

    def begin(self, ident: str, settings: Mapping[str, Any]) -> None:
        """A fresh file. The old one goes: event files can only grow, and a point in two of them shows twice."""
        for old in (self.folder / ident).glob(EVENT_FILES):
            old.unlink()
        self._settings[ident] = settings
        self._step[ident] = 0
        self._open[ident] = SummaryWriter(str(self.folder / ident))

    def add(self, ident: str, point: Point) -> None:
        """Scalars over optimizer steps."""
        writer = self._open[ident]
        for tag, value in point.values.items():
            writer.add_scalar(tag, value, point.step, walltime=point.time)
        writer.add_scalar("train/epoch", point.epoch, point.step, walltime=point.time)
        writer.flush()
        self._step[ident] = point.step

    def end(self, ident: str, scores: Mapping[str, float]) -> None:
        """Test scores, with the settings beside them for the tab "HParams"."""
        writer = self._open.pop(ident)
        if scores:
            told = {k: _plain(v) for k, v in self._settings[ident].items() if v is not None}
            writer.add_hparams(told, dict(scores), run_name=".", global_step=self._step[ident])
        writer.close()

    def close(self) -> str:
        """End all files, those of trials that are not through too."""
        for writer in self._open.values():
            writer.close()
        self._open.clear()
        return f"tensorboard --logdir {shlex.quote(str(self.folder))}"


def _plain(value: Any) -> bool | int | float | str:
    return value if isinstance(value, bool | int | float | str) else str(value)
