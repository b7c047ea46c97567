"""The weights of a backbone as files: which they are, whether they are whole, and their checksum.

Only safetensors are read. A model is one file, model.safetensors, or several that
model.safetensors.index.json lists.
Not covered: what the tensors are called and where they go (load.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError, safe_open

from fleetune.errors import DataError, RefusedError, reason

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
PICKLE_ENDINGS = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz")
_PROTOCOL, _ZIP, _NUMPY = b"\x80", b"PK\x03\x04", b"\x93NUMPY"


def weight_files(folder: Path) -> list[Path]:
    """The files that make up the weights, sorted; empty where there are none.

    Files that the index lists may be missing. Raises DataError for an index that cannot be used.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        return []
    places: Any = read_json(folder / INDEX).get("weight_map")
    names: set[Any] = set()
    if isinstance(places, dict):
        names = set(cast("dict[str, Any]", places).values())
    if not names or not all(_is_beside(name) for name in names):
        rule = "`weight_map` must give each tensor a .safetensors file beside it, but does not"
        raise DataError(str(folder / INDEX), [f"{rule}; download the model again"])
    return sorted(folder / name for name in names)


def _is_beside(name: Any) -> bool:
    return isinstance(name, str) and name.endswith(".safetensors") and Path(name).name == name


def refuse_pickle(where: str, names: Iterable[str]) -> None:
    """Raise RefusedError if, of the files called `names`, only pickles can hold weights."""
    present = sorted(set(names), key=lambda name: (name not in PICKLES, name))
    pickles = [name for name in present if name in PICKLES or name.endswith(PICKLE_ENDINGS)]
    if pickles and not any(name == INDEX or name.endswith(".safetensors") for name in present):
        raise RefusedError(
            f"{where}: the weights are in {pickles[0]} alone, and pickle is never read, since that "
            "can run code; convert them where you trust them, with "
            "`AutoModel.from_pretrained(...).save_pretrained(FOLDER)`, and give that folder"
        )


def refuse_pickled(file: Path) -> None:
    """Raise RefusedError if a file, whatever its name, begins as pickle does, or as what torch and numpy wrap it in."""
    try:
        with file.open("rb") as opened:
            head = opened.read(len(_NUMPY))
    except OSError:
        return
    if head.startswith((_NUMPY, _ZIP)) or (head[:1] == _PROTOCOL and head[1:2] <= b"\x05"):
        raise RefusedError(
            f"{file}: is a pickle or an archive of one, and pickle is never read, since that can run code; "
            "get the weights as safetensors from where you trust them"
        )


def checksum(files: list[Path]) -> str:
    """sha256 of the one file; of several, that of their sha256s in order of name, one a line.

    Raises DataError naming a file that is missing or damaged, RefusedError for one that is not
    what its name in the hub's cache says.
    """
    digests = [_digest(file) for file in files]
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def wrong_checksum(file: Path, found: str, wanted: str) -> RefusedError:
    """The error for a file that is not what was published."""
    rule = f"{file}: sha256 must be {wanted}, but is {found}"
    return RefusedError(f"{rule}; delete {_target(file)}, and install or download it again")


def _target(file: Path) -> str:
    """What to delete where a file is damaged. The hub's cache has links to its files: a link alone would come back."""
    return str(file.resolve()) if file.is_symlink() else "it"


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file; raises DataError for anything else."""
    try:
        read: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            str(file), [f"must be JSON, but: {reason(error)}; download it again"]
        ) from error
    if not isinstance(read, dict):
        raise DataError(str(file), ["must hold a JSON object, but does not; download it again"])
    return cast("dict[str, Any]", read)


def _digest(file: Path) -> str:
    try:
        state = file.stat()
        found = _digest_of_state(file, state.st_size, state.st_mtime_ns)
    except FileNotFoundError as error:
        raise DataError(str(file), ["is missing; download the model again"]) from error
    except (SafetensorError, OSError) as error:
        refuse_pickled(file)
        rule = f"must be a whole safetensors file, but is damaged or cut off ({error})"
        raise DataError(
            str(file), [f"{rule}; delete {_target(file)} and download it again"]
        ) from error
    # The hub's cache names a large file by its sha256: damage done since is found here.
    named = file.resolve().name
    if len(named) == len(found) and named != found:
        raise wrong_checksum(file, found, named)
    return found


@lru_cache(maxsize=64)
def _digest_of_state(file: Path, size: int, mtime_ns: int) -> str:
    """sha256 of a safetensors file with a sound header; size and time serve as key alone."""
    unused: Any = safe_open
    with unused(file, framework="numpy"):  # reads the header, and compares it with the length
        pass
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
