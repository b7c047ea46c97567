"""Where a cohort stands, on disk: one safetensors file a trial, and a manifest with the sha256 of each.

A snapshot is of all trials of a cohort at one round. Its files have new names; the manifest that lists them is written last,
and only then are those deleted that neither it nor the snapshot before needs: after a cut at any moment a whole snapshot is
there, and after damage to one file still the one before. Trials that have not changed share a file. Tensors are the trial's
parameters, AdamW's moments and the best weights so far; numbers (steps, results) travel in the file's header. Data order and
dropout need nothing, since they are named by seed and step.

What is damaged is set aside as NAME.damaged, never deleted and never read again.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from fleetune.durable import as_json, remove_leftovers, sha256, write_bytes
from fleetune.errors import DataError

KEPT = 2
"""Snapshots that are kept: the newest, and one to fall back to."""
_MANIFEST = re.compile(r"snapshot-(\d+)\.json")
# A trial's name is a plain one (events.py), and its file lies nowhere else.
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}\.(\d{1,15})\.safetensors")
State = tuple[dict[str, Tensor], dict[str, Any]]
"""Tensors by name, and numbers as JSON."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One whole snapshot, as its manifest tells of it."""

    folder: Path
    number: int
    files: Mapping[str, Mapping[str, str]]
    """Name and sha256 of each trial's file."""
    note: Mapping[str, Any]
    """What else belongs to it."""

    def state(self, ident: str) -> State:
        """The state of one trial."""
        return _read(self.folder / self.files[ident]["name"])


class Damaged(Exception):
    """A file of a snapshot is not what its manifest says."""


def write_all(
    folder: Path,
    states: Mapping[str, State],
    *,
    note: Mapping[str, Any],
    keep: Collection[str] = (),
) -> None:
    """Write a snapshot of these trials' states.

    note: what else belongs to it, as JSON; its "stage" says which snapshots belong together. keep: trials whose state has not
    changed since the snapshot before.
    """
    before = [s for s in snapshots(folder) if s.note.get("stage") == note.get("stage")]
    number = 1 + max(_numbers(folder), default=0)
    files: dict[str, Mapping[str, str]] = {}
    for ident, state in states.items():
        content = _encoded(*state)
        name = f"{ident}.{number}.safetensors"
        write_bytes(folder / name, content, sync=False)
        files[ident] = {"name": name, "sha256": hashlib.sha256(content).hexdigest()}
    if before:
        files |= {ident: file for ident, file in before[0].files.items() if ident in keep}
    body: dict[str, Any] = {"number": number, "files": files, "note": dict(note)}
    write_bytes(folder / f"snapshot-{number}.json", as_json({**body, "sha256": _digest(body)}))
    needed = [Snapshot(folder, number, files, note), *before[: KEPT - 1]]
    _remove_others(folder, needed)


def newest(folder: Path, stage: str) -> Snapshot | None:
    """The newest whole snapshot of a stage; None where there is none. Changes nothing."""
    return next((s for s in snapshots(folder) if s.note.get("stage") == stage and _whole(s)), None)


def any_whole(folder: Path) -> bool:
    """Whether a snapshot of any stage is whole."""
    return any(_whole(s) for s in snapshots(folder))


def set_aside_damaged(folder: Path, events: int, run: str) -> list[str]:
    """Rename what cannot be used to NAME.damaged; one sentence for each file that is damaged, missing, or of no snapshot.

    events: how many the journal holds. A snapshot that rests on more would leave out what the journal has lost. run: what tells
    a run from others; a snapshot of another one is none of this.
    """
    told: dict[str, str] = {}
    whole: list[Snapshot] = []
    named: set[str] = set()
    for number, path in _manifests(folder):
        try:
            snapshot = _manifest(path, number)
        except Damaged:
            told[path.name] = _aside(path)
            continue
        broken = list(_broken(snapshot))
        known = snapshot.note.get("events", 0)
        # One of an earlier version does not say whose it is.
        foreign = snapshot.note.get("run", run) != run
        if foreign or known > events:
            why = (
                "is of another run"
                if foreign
                else f"rests on {known} events of the journal, which holds {events}"
            )
            told[path.name] = f"{path.name} {why}; it was set aside as {path.name}.damaged"
        told |= {file.name: _aside(file) for file in broken if file.name not in told}
        if broken or foreign or known > events:
            path.rename(path.with_name(f"{path.name}.damaged"))
        else:
            whole.append(snapshot)
        named |= {file["name"] for file in snapshot.files.values()}
    files = (m for p in folder.iterdir() if p.name not in named and (m := _FILE.fullmatch(p.name)))
    for number in sorted({int(match[1]) for match in files}):
        told[f"snapshot {number}"] = (
            f"snapshot {number} has no whole manifest: it was cut while it was written, or its manifest is damaged"
        )
    _remove_others(folder, whole)
    return list(told.values())


def clear(folder: Path) -> None:
    """Delete all snapshots, when nothing is left to go on with; what was set aside stays."""
    for _, path in _manifests(folder):
        path.unlink(missing_ok=True)
    _remove_others(folder, [])
    remove_leftovers(folder)


def snapshots(folder: Path) -> list[Snapshot]:
    """Those with a whole manifest, the newest first; their files may be damaged."""
    found: list[Snapshot] = []
    for number, path in _manifests(folder):
        try:
            found.append(_manifest(path, number))
        except Damaged:
            continue
    return found


def _manifests(folder: Path) -> list[tuple[int, Path]]:
    """Manifests by number, the newest first."""
    found = [(int(m[1]), p) for p in folder.iterdir() if (m := _MANIFEST.fullmatch(p.name))]
    return sorted(found, reverse=True)


def _manifest(path: Path, number: int) -> Snapshot:
    """Damaged where it is not, to the last bit, what was written."""
    try:
        content = path.read_bytes()
        found = json.loads(content)
        digest = found.pop("sha256")
        if content != as_json({**found, "sha256": digest}) or digest != _digest(found):
            raise Damaged(path.name)
        if not _is_manifest(found):
            raise Damaged(path.name)
        return Snapshot(path.parent, number, found["files"], found["note"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Damaged(path.name) from None


def _is_manifest(found: Any) -> bool:
    """Whether its parts are of the kinds that are read later. Names from a file lead nowhere else."""
    return isinstance(found["note"].get("events", 0), int) and all(
        _FILE.fullmatch(file["name"]) and isinstance(file["sha256"], str)
        for file in found["files"].values()
    )


def _whole(snapshot: Snapshot) -> bool:
    return next(_broken(snapshot), None) is None


def _broken(snapshot: Snapshot) -> Iterator[Path]:
    """Files of a snapshot that are missing or not what the manifest says."""
    for file in snapshot.files.values():
        path = snapshot.folder / file["name"]
        if not path.is_file() or sha256(path) != file["sha256"]:
            yield path


def _aside(path: Path) -> str:
    if not path.exists():
        return f"{path.name} is missing"
    path.rename(path.with_name(f"{path.name}.damaged"))
    return f"{path.name} is damaged (its sha256 does not match) and was set aside as {path.name}.damaged"


def _numbers(folder: Path) -> Iterator[int]:
    """Numbers that names have taken, damaged ones too: none is used twice."""
    for path in folder.iterdir():
        name = path.name.removesuffix(".damaged")
        match = _MANIFEST.fullmatch(name) or _FILE.fullmatch(name)
        if match:
            yield int(match[1])


def _remove_others(folder: Path, needed: Collection[Snapshot]) -> None:
    """Delete manifests first: what they name may go once nobody asks for it."""
    numbers = {s.number for s in needed}
    for number, path in _manifests(folder):
        if number not in numbers:
            path.unlink(missing_ok=True)
    names = {file["name"] for s in needed for file in s.files.values()}
    for path in folder.glob("*.safetensors"):
        if path.name not in names:
            path.unlink(missing_ok=True)


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(as_json(body)).hexdigest()


def _encoded(tensors: dict[str, Tensor], numbers: dict[str, Any]) -> bytes:
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {"numbers": json.dumps(numbers, allow_nan=False)}
    return safetensors.torch.save(contiguous, metadata=header)


def _read(path: Path) -> State:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            return tensors, json.loads((file.metadata() or {})["numbers"])
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        # Its sha256 fitted: somebody wrote both.
        problem = f"no state of a trial ({error}); restore the run from a copy"
        raise DataError(str(path), [problem]) from None
