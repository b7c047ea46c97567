"""What a run ran on: versions, machine, commit, checksums. Compared when a run is resumed."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from fleetune import __version__
from fleetune.data.overlap import overlaps
from fleetune.data.tokens import tokenizer_fingerprint
from fleetune.errors import DataError, RefusedError
from fleetune.seeds import NUMERICS
from fleetune.study.prepare import Prepared, PreparedTask

PACKAGES = ("torch", "transformers", "tokenizers", "peft", "numpy", "safetensors", "pyarrow")


def describe(prepared: Prepared, device: str) -> dict[str, Any]:
    """The environment of a run, as written to environment.json."""
    backbone = prepared.backbone
    tasks = [_data(task) for task in prepared.tasks]
    return {
        "fleetune": __version__,
        "numerics": NUMERICS,
        "commit": commit(),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "machine": hardware(device),
        "data": tasks[0],
        **({"tasks": tasks} if len(tasks) > 1 else {}),
        "backbone": {
            "name": backbone.name,
            "source": backbone.source,
            "revision": backbone.revision,
            "checksum": backbone.checksum,
            "config": backbone.config_checksum,
            "tokenizer": tokenizer_fingerprint(backbone.tokenizer),
        },
    }


def _data(task: PreparedTask) -> dict[str, Any]:
    data = task.dataset
    return {
        "task": data.task.name,
        "source": data.source,
        "checksum": data.checksum,
        "rows": {"train": len(data.train), **{n: len(s) for n, s in data.tests.items()}},
        "truncated": dict(task.truncated),
        "in_train": {name: found.rows for name, found in overlaps(data).items()},
    }


def hardware(device: str) -> dict[str, Any]:
    """Processor, cores, memory and device of this machine."""
    page, pages = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_PHYS_PAGES")
    found: dict[str, Any] = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(page * pages / 2**30, 1),
        "device": device,
    }
    if device.startswith("cuda"):
        found["gpu"] = torch.cuda.get_device_name(torch.device(device))
    return found


def commit() -> str | None:
    """The git commit of the source that runs, with a mark where `src` was changed; None for an installed package."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "--short=12", "HEAD")
        return (
            f"{head}+changes"
            if _git(root, "status", "--porcelain", "--untracked-files=no", "--", "src")
            else head
        )
    except (OSError, subprocess.SubprocessError):
        return None


def refuse_changes(path: Path, found: dict[str, Any]) -> list[str]:
    """What has changed in the machine and may change the last digits of numbers.

    RefusedError where a resume would go on with other data, another backbone, or another major version; DataError where the
    file cannot be read.
    """
    try:
        before = json.loads(path.read_bytes())
        refused = [*_inputs(before, found), *_versions(before, found)]
        told = _rounding(before, found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            str(path),
            [
                f"unreadable or missing ({type(error).__name__}), and without it nobody can say whether data and backbone are "
                "the same; restore it from a copy, or give another --output-dir"
            ],
        ) from error
    if refused:
        listing = "\n".join(f"  {name}: {old} there, {new} now" for name, old, new in refused)
        raise RefusedError(
            f"{path.parent}: cannot be resumed, since its numbers would mix; give another --output-dir\n{listing}"
        )
    return [f"{name}: {old} there, {new} now" for name, old, new in told]


Change = tuple[str, Any, Any]
"""What, before, now."""


def _inputs(before: dict[str, Any], found: dict[str, Any]) -> list[Change]:
    old_data, new_data = (
        {d["task"]: d for d in e.get("tasks", [e["data"]])} for e in (before, found)
    )
    changed = [
        name
        for name in {**old_data, **new_data}
        if _checksum(old_data, name) != _checksum(new_data, name)
    ]
    pairs: list[Change] = [
        (
            f"data of {name}" if len(new_data) > 1 else "data",
            _rows_told(old_data.get(name)),
            _rows_told(new_data.get(name)),
        )
        for name in changed
    ]
    old, new = before["backbone"], found["backbone"]
    pairs.append(("backbone", old["checksum"], new["checksum"]))
    # A run that an earlier version began says nothing of these.
    pairs.append(("the backbone's config.json", old.get("config", new["config"]), new["config"]))
    pairs.append(("tokenizer", old.get("tokenizer", new["tokenizer"]), new["tokenizer"]))
    return [pair for pair in pairs if pair[1] != pair[2]]


def _checksum(tasks: dict[str, Any], name: str) -> Any:
    return tasks[name]["checksum"] if name in tasks else None


def _rows_told(data: dict[str, Any] | None) -> str:
    """How many rows a task has, and what tells them from others as many."""
    if data is None:
        return "none"
    rows = ", ".join(f"{count} {name}" for name, count in data["rows"].items())
    return f"{rows} rows (checksum {data['checksum'][:12]})"


def _versions(before: dict[str, Any], found: dict[str, Any]) -> list[Change]:
    old, new = before["packages"], found["packages"]
    majors = [
        (f"{name} (major version)", old[name].partition(".")[0], new[name].partition(".")[0])
        for name in ("torch", "transformers", "tokenizers", "numpy")
    ]
    majors.append(("fleetune (version)", _minor(before["fleetune"]), _minor(found["fleetune"])))
    majors.append(("what a seed means", before.get("numerics", 1), found["numerics"]))
    return [change for change in majors if change[1] != change[2]]


def _minor(version: str) -> str:
    """Before 1.0 a minor version may change what a seed means."""
    return ".".join(version.split(".")[:2])


def _rounding(before: dict[str, Any], found: dict[str, Any]) -> list[Change]:
    pairs = [(n, before["packages"].get(n), found["packages"][n]) for n in ("torch", "numpy")]
    # An installed version knows no commit.
    pairs.append(("fleetune's commit", before.get("commit") or found["commit"], found["commit"]))
    old, new = before["machine"], found["machine"]
    pairs += [(n, old.get(n), new.get(n)) for n in ("processor", "threads", "device", "gpu")]
    return [pair for pair in pairs if pair[1] != pair[2]]


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10, check=True
    )
    return done.stdout.strip()


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
