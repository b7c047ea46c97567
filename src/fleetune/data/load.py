"""Every task that has a name: the nine of GLUE and the two embedded ones. Own files: sources.py."""

from __future__ import annotations

from pathlib import Path

from fleetune.data.base import Dataset
from fleetune.data.demo import DEMOS, load_demo
from fleetune.data.glue import GLUE, load_glue
from fleetune.errors import SettingsError, did_you_mean

TASK_NAMES: tuple[str, ...] = (*GLUE, *DEMOS)


def load_task(name: str, data_dir: Path | None) -> Dataset:
    """The data set of a task. data_dir: where GLUE's TSV files lie; the embedded tasks need none.

    Raises SettingsError for an unknown name; else what load_glue and load_demo raise.
    """
    if name in DEMOS:
        return load_demo(name)
    if name in GLUE:
        return load_glue(name, data_dir)
    remedy = "for own files use --data FILE"
    problem = f'task "{name}" is not known{did_you_mean(name, TASK_NAMES)}; {remedy}'
    raise SettingsError("task", [problem])
