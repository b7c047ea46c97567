"""trackio: each run a project, each trial a run of it, in trackio's own local store.

Needs the package `trackio` (MIT). Nothing leaves the machine unless the user set trackio's own TRACKIO_SPACE_ID or
TRACKIO_SERVER_URL. trackio holds one open run in a process, so a trial is written as a whole, when it has ended.
Assumption: a folder that is moved is another project, since projects are told apart by the folder's path.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import trackio  # pyright: ignore[reportMissingImports]

from fleetune.durable import write_json
from fleetune.live.writers import Point
from fleetune.study.folder import LOGS

NOTE = "trackio.json"


class Trackio:
    """The trials of a run in a project of trackio."""

    def __init__(self, folder: Path) -> None:
        place = str(folder.resolve())
        self.project = f"{folder.resolve().name}-{hashlib.sha256(place.encode()).hexdigest()[:6]}"
        self.note = folder / LOGS / NOTE
        self.done: list[str] = []
        if self.note.is_file():
            self.done = list(json.loads(self.note.read_text("utf-8")).get(self.project, ()))
        self._settings: dict[str, Mapping[str, Any]] = {}
        self._points: dict[str, list[Point]] = {}

    def begin(self, ident: str, settings: Mapping[str, Any]) -> None:
        """Remember a trial."""
        self._settings[ident], self._points[ident] = settings, []

    def add(self, ident: str, point: Point) -> None:
        """Remember an epoch."""
        self._points[ident].append(point)

    def end(self, ident: str, scores: Mapping[str, float]) -> None:
        """Write the trial, unless an earlier command has; what a cut one left of it makes way."""
        points = self._points.pop(ident)
        if ident in self.done:
            return
        # trackio prints on stdout, which is for data.
        with contextlib.redirect_stdout(io.StringIO()):
            with contextlib.suppress(ValueError):  # a project that is not there yet
                for old in [r for r in trackio.Api().runs(self.project) if r.name == ident]:
                    old.delete()
            run = trackio.init(
                project=self.project,
                name=ident,
                config=dict(self._settings[ident]),
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
            for point in points:
                last = point is points[-1]
                values = {**point.values, "train/epoch": point.epoch, **(scores if last else {})}
                run.log(values, step=point.step)
            trackio.finish()
        self.done.append(ident)
        self.note.parent.mkdir(exist_ok=True)
        write_json(self.note, {self.project: self.done})

    def close(self) -> str:
        """Trials that have not ended are not written."""
        return f"trackio show --project {self.project}"
