"""Texts to token numbers, once for each split, tokenizer and length; kept in a cache by content.

Notation: n rows, T tokens in all. A row is `ids[offsets[i]:offsets[i + 1]]`, special tokens
included, without padding. The cache holds safetensors files, named by what they were made from and
checked when read; a damaged one is made anew. Not covered: packing rows into batches (packing.py);
tokenizers without the `tokenizers` library ("slow" ones).
"""

# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false
# (pyproject.toml turns these off for packages that ship no types, but `strict` there overrides it)

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fleetune.data.base import Split
from fleetune.durable import STALE, make_folder, remove_leftovers, write_bytes
from fleetune.errors import DataError, SettingsError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHUNK = 1000
# Part of every cache name: raise it when the layout of the files changes.
_LAYOUT = "tokens 1"


@dataclass(frozen=True, eq=False)
class TokenTable:
    """The tokens of a split."""

    ids: np.ndarray
    """int32 [T]"""
    offsets: np.ndarray
    """int64 [n + 1]"""
    type_ids: np.ndarray | None
    """uint8 [T]: 0 in the first text, 1 in the second, where the tokenizer tells them apart."""
    truncated: int
    """Rows that were cut to max_length."""
    max_length: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, i: int) -> np.ndarray:
        """The tokens of row i, int32 [length], a view."""
        return self.ids[self.offsets[i] : self.offsets[i + 1]]

    def row_types(self, i: int) -> np.ndarray | None:
        """The type ids of row i, uint8 [length], a view."""
        if self.type_ids is None:
            return None
        return self.type_ids[self.offsets[i] : self.offsets[i + 1]]

    @cached_property
    def lengths(self) -> np.ndarray:
        """int64 [n]: tokens of each row."""
        return np.diff(self.offsets)


def tokenize(
    split: Split,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    cache_dir: Path | None,
    fingerprint: str,
) -> TokenTable:
    """The tokens of a split, from the cache where it has them; of a pair the longer is cut.

    fingerprint: tokenizer_fingerprint(tokenizer). cache_dir: None for no cache; a folder that
    cannot be written to is as good as none. Raises ValueError for a slow tokenizer, SettingsError for a
    max_length that has no place for a token of text, and DataError for rows that give no token.
    """
    if not tokenizer.is_fast:
        raise ValueError(f"a fast tokenizer is needed, but {type(tokenizer).__name__} is not one.")
    special = tokenizer.num_special_tokens_to_add(pair=split.second is not None)
    if max_length <= special:
        rule = f"`max_length > {special}` must hold, since a row has so many special tokens"
        raise SettingsError("settings", [f"{rule}, but got {max_length}"])
    if cache_dir is None:
        return _make(split, tokenizer, max_length)
    key = json.dumps([_LAYOUT, version("tokenizers"), split.checksum, fingerprint, max_length])
    path = cache_dir / f"{hashlib.sha256(key.encode()).hexdigest()}.safetensors"
    found = _read(path, len(split), max_length)
    if found is None:
        found = _make(split, tokenizer, max_length)
        _write(path, found)
    return found


def joined(tables: Sequence[TokenTable]) -> TokenTable:
    """The rows of one or more tables of one tokenizer and length, one table after the other."""
    types = [table.type_ids for table in tables if table.type_ids is not None]
    return TokenTable(
        ids=np.concatenate([table.ids for table in tables]),
        offsets=np.concatenate([[0], *(table.lengths for table in tables)]).cumsum(),
        type_ids=np.concatenate(types) if types else None,
        truncated=sum(table.truncated for table in tables),
        max_length=tables[0].max_length,
    )


def default_cache_dir() -> Path:
    """$FLEETUNE_CACHE, else $XDG_CACHE_HOME/fleetune, else ~/.cache/fleetune."""
    own = os.environ.get("FLEETUNE_CACHE")
    if own:
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "fleetune"


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 (hex) of all that decides which tokens come out."""
    state = json.loads(_backend(tokenizer).to_str())
    # Both are set by every call, from its arguments: left in, the fingerprint would change with
    # use.
    state["truncation"] = state["padding"] = None
    told = {
        "backend": state,
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "inputs": list(tokenizer.model_input_names),
        "side": tokenizer.truncation_side,
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _backend(tokenizer: Any) -> Any:
    return tokenizer.backend_tokenizer


def _make(split: Split, tokenizer: Any, max_length: int) -> TokenTable:
    with_types = "token_type_ids" in tokenizer.model_input_names
    ids: list[np.ndarray] = [np.zeros(0, dtype=np.int32)]
    types: list[np.ndarray] = [np.zeros(0, dtype=np.uint8)]
    lengths: list[int] = []
    truncated = 0
    for start in range(0, len(split), _CHUNK):
        part = slice(start, start + _CHUNK)
        batch = tokenizer(
            list(split.first[part]),
            None if split.second is None else list(split.second[part]),
            add_special_tokens=True,
            truncation="longest_first",
            max_length=max_length,
            padding=False,
            return_attention_mask=False,
        )
        lengths.extend(len(row) for row in batch["input_ids"])
        ids.extend(np.array(row, dtype=np.int32) for row in batch["input_ids"])
        if with_types:
            types.extend(np.array(row, dtype=np.uint8) for row in batch["token_type_ids"])
        truncated += sum(bool(encoding.overflowing) for encoding in batch.encodings)
    if not all(lengths):
        told = "no token comes of it, since this backbone's tokenizer sets none around a text; leave the row out"
        empty = (ident for ident, n in zip(split.ids, lengths, strict=True) if not n)
        raise DataError("rows", [f"row {ident}: {told}" for ident in empty])
    return TokenTable(
        ids=np.concatenate(ids),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        type_ids=np.concatenate(types) if with_types else None,
        truncated=truncated,
        max_length=max_length,
    )


def _arrays(table: TokenTable) -> dict[str, np.ndarray]:
    arrays = {"ids": table.ids, "offsets": table.offsets}
    return arrays if table.type_ids is None else {**arrays, "type_ids": table.type_ids}


def _checksum(arrays: dict[str, np.ndarray], truncated: str) -> str:
    found = hashlib.sha256(truncated.encode())
    for name in sorted(arrays):
        array = arrays[name]
        found.update(f"{name} {array.dtype.str} {array.shape};".encode())
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def _write(path: Path, table: TokenTable) -> None:
    """Put a table into the cache, where that is possible."""
    from safetensors.numpy import save

    arrays = _arrays(table)
    truncated = str(table.truncated)
    metadata = {"truncated": truncated, "sha256": _checksum(arrays, truncated)}
    # Without a cache all works, only slower: a full or read-only disk must not end a training here.
    with contextlib.suppress(OSError):
        make_folder(path.parent)
        remove_leftovers(path.parent, older_than=STALE)
        write_bytes(path, save(arrays, metadata=metadata))


def _read(path: Path, n: int, max_length: int) -> TokenTable | None:
    """The table in the cache, or None; a damaged file is removed."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        whole = metadata["sha256"] == _checksum(arrays, metadata["truncated"])
        if whole and len(arrays["offsets"]) == n + 1:
            return TokenTable(
                ids=arrays["ids"],
                offsets=arrays["offsets"],
                type_ids=arrays.get("type_ids"),
                truncated=int(metadata["truncated"]),
                max_length=max_length,
            )
    except (OSError, SafetensorError, KeyError, ValueError):
        pass
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
    return None
