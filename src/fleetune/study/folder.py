"""The folder of a run: the names in it, its lock, and what is refused before anything in it changes."""

from __future__ import annotations

import errno
import json
import os
import tomllib
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fleetune.backbone.hub import COMMIT
from fleetune.durable import TEMPORARY, make_folder
from fleetune.errors import DataError, EnvironmentProblem, RefusedError, reason
from fleetune.study import journal
from fleetune.study.settings import PLACES

try:
    import fcntl
except ImportError:
    raise EnvironmentProblem(
        "a run's folder is locked as Linux and macOS do it, and this system has no such locks; on Windows use WSL"
    ) from None

STUDY = "study.toml"
ENVIRONMENT = "environment.json"
TRIALS = "trials"
CHECKPOINTS = "checkpoints"
LOGS = "logs"
"""Where writers of `report_to` put their files."""
GIVEN = ("data.jsonl", "test.jsonl")
"""Rows that a Python program gave; there before the run is (given.py)."""


def trial_folder(run: Path, ident: str) -> Path:
    """Where a run keeps a trial's model and predictions."""
    return run / TRIALS / ident


def has_begun(folder: Path) -> bool:
    """Whether a study has been started in a folder."""
    return (folder / STUDY).is_file()


def recorded_commit(folder: Path | None, backbone: str) -> str | None:
    """The commit of the hub's backbone that a run in this folder began with; None where there is none such.

    A branch moves on, and the run goes on with what it had.
    """
    if folder is None or not has_begun(folder):
        return None
    try:
        told = json.loads((folder / ENVIRONMENT).read_bytes())["backbone"]
        commit = told["revision"] if told["name"] == backbone else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None  # `refuse_changes` says what is wrong with it
    return commit if isinstance(commit, str) and COMMIT.fullmatch(commit) else None


@contextmanager
def locked(folder: Path) -> Generator[None]:
    """Hold a run's folder; RefusedError (exit 6) while another process does. A killed process's lock is no lock."""
    make_folder(folder)
    handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise OSError(error.errno, error.strerror, str(folder / ".lock")) from None
            raise RefusedError(
                f"{folder}: another fleetune command is working in it; wait for it, or give another --output-dir"
            ) from None
        yield
    finally:
        os.close(handle)


def refuse_foreign(folder: Path) -> None:
    """RefusedError for a folder that holds anything but a run, or the beginning of one that a cut left."""
    _refuse_no_place(folder)
    _refuse_links(folder)
    if not folder.exists() or (folder / STUDY).exists():
        return
    if (folder / journal.NAME).is_file():
        raise RefusedError(
            f"{folder / STUDY}: is missing, and without it nobody can say which run this is; restore it from a copy, or give "
            "another --output-dir"
        )
    for path in folder.iterdir():
        empty = path.name in (TRIALS, CHECKPOINTS) and path.is_dir() and not any(path.iterdir())
        own = path.name in (".lock", ENVIRONMENT, *GIVEN) or path.name.startswith(TEMPORARY)
        if not (empty or own):
            raise RefusedError(
                f"{folder}: not empty, and not a run of fleetune; give --output-dir a new folder"
            )


def _refuse_no_place(folder: Path) -> None:
    """RefusedError or EnvironmentProblem where no folder can be, before hours are spent that would end there."""
    if folder.exists() and not folder.is_dir():
        raise RefusedError(f"{folder}: is a file; give --output-dir a new folder")
    if folder.is_symlink() and not folder.exists():
        raise RefusedError(f"{folder}: is a link to nothing; give --output-dir a new folder")
    above = next((path for path in folder.absolute().parents if os.path.lexists(path)), None)
    if above is not None and not above.is_dir():
        raise EnvironmentProblem(f"{folder}: {above} is no folder; give --output-dir another place")
    try:
        os.fspath(folder.absolute()).encode()
    except UnicodeEncodeError:
        told = "its path is not UTF-8, and a model that is saved there could not be read back"
        raise RefusedError(f"{folder}: {told}; give another --output-dir") from None


def _refuse_links(folder: Path) -> None:
    """RefusedError where something of a run lies elsewhere: whoever made the link would choose what is overwritten there."""
    names = (".lock", STUDY, ENVIRONMENT, TRIALS, CHECKPOINTS, LOGS, journal.NAME, *GIVEN)
    inner = (folder / TRIALS, folder / CHECKPOINTS, folder / LOGS)
    places = [folder / name for name in names]
    places += [path for place in inner if place.is_dir() for path in place.iterdir()]
    for path in places:
        if path.is_symlink():
            raise RefusedError(
                f"{path}: is a link, and what belongs to a run must lie in its folder; put the file itself there, or give "
                "another --output-dir"
            )


def refuse_lost(folder: Path) -> None:
    """RefusedError for a run that has lost what says which trials have ended, and whether the test rows were opened."""
    path = folder / journal.NAME
    places = (folder / TRIALS, folder / CHECKPOINTS)
    begun = any(place.is_dir() and any(place.iterdir()) for place in places)
    if begun and not (path.exists() and path.stat().st_size):
        raise RefusedError(
            f"{path}: is missing or empty, but trials were trained here; restore it from a copy, or give another --output-dir"
        )


def refuse_changes(path: Path, text: str) -> None:
    """RefusedError with the difference where a run has other settings; DataError where they cannot be read."""
    try:
        old = _flat(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            str(path),
            [f"unreadable ({reason(error)}); restore it from a copy, or give another --output-dir"],
        ) from None
    new = _flat(tomllib.loads(text))
    changed = [
        f"  {key}: {old.get(key, 'unset')!r} there, {new.get(key, 'unset')!r} now{_hint(key, new)}"
        for key in sorted(old.keys() | new.keys(), key=lambda key: ("." in key, key))
        if old.get(key) != new.get(key)
        and not _is_of_one_alone(key, old, new)
        and not (_is_place(key) or (key == "backbone.name" and _is_moved(old.get(key), new[key])))
    ]
    if changed:
        listing = "\n".join(changed)
        raise RefusedError(
            f"{path.parent}: holds a run with other settings; give another --output-dir, or the same settings to go on\n{listing}"
        )


def _is_of_one_alone(key: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether a setting is of a method or task that stands on one side only, which the list of them says."""
    table, _, rest = key.partition(".")
    name = rest.partition(".")[0]
    return any(
        table in one and name in one[table] and name not in other.get(table, ())
        for one, other in ((old, new), (new, old))
        if isinstance(one.get(table), list) and isinstance(other.get(table), list)
    )


def _is_place(key: str) -> bool:
    # Other rows are refused by their checksum (machine.py).
    return key.startswith("data.") and key.rpartition(".")[2] in PLACES


def _is_moved(old: Any, new: str) -> bool:
    """Whether a backbone may be the same folder in another place; another one is refused by its checksum (machine.py)."""
    return isinstance(old, str) and Path(new).is_dir() and Path(old).name == Path(new).name


def _hint(key: str, new: Mapping[str, Any]) -> str:
    if key == "confirm.reference":
        return " (an earlier version took a rank study's first rank; --set confirm.reference=... goes on with what stands there)"
    named = key.startswith("data.") and key.endswith("task") and key[:-4] + "file" in new
    return " (own rows are called after their file)" if named else ""


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {
            k: v
            for key, inner in value.items()
            for k, v in _flat(inner, f"{prefix}.{key}".strip(".")).items()
        }
    if isinstance(value, list) and value and isinstance(value[0], dict):
        names = [str(v.get("name") or v.get("method") or v.get("task")) for v in value]
        if len(set(names)) < len(names):
            names = [str(i) for i in range(1, len(names) + 1)]
        found: dict[str, Any] = {prefix: names}
        for name, inner in zip(names, value, strict=True):
            found |= _flat(inner, f"{prefix}.{name}")
        return found
    return {prefix: value}
