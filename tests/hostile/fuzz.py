"""Every reader of Fleetune on damaged input: what comes out is a value or one of our errors, soon, and in little memory.

A `Reader` makes a sound file once and then reads damaged ones. Rows of `make torture`; tests/torture/test_short.py runs a few
hundred cases of each. A case that failed is made again by its name: `python -m tests.hostile.fuzz csv 1234`.
"""

from __future__ import annotations

import json
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fleetune.errors import FleetuneError
from tests.hostile.mutations import case, damaged
from tests.torture.row import Row

MOST_SECONDS = 5.0
# Of this process beyond what it held before, Python, torch and transformers among it: they take 0.7 GB.
MOST_MEMORY = 1_000_000_000
CASES, SHORT = 10_000, 200


@dataclass(frozen=True, slots=True)
class Reader:
    """make: writes what is needed into a folder and gives the function that reads one damaged case there."""

    name: str
    make: Callable[[Path], Callable[[Any], object]]
    """The function takes the draws of a case, damages and reads."""


def attempts(reader: Reader, folder: Path, count: int) -> Iterator[str]:
    """What went wrong in each case; "" where nothing did."""
    read = reader.make(folder)
    for number in range(count):
        told = attempt(read, reader.name, number)
        yield f"{reader.name} {number}: {told}" if told else ""


def attempt(read: Callable[[Any], object], name: str, number: int) -> str:
    before, began = _peak(), time.process_time()
    told = ""
    try:
        read(case(name, number))
    except FleetuneError as error:
        told = _wrong_message(str(error))
    except RecursionError:
        told = "RecursionError"
    except Exception as error:
        told = f"{type(error).__name__}: {str(error)[:200]} at {_where(error)}"
    except BaseException as error:  # a Rust panic of a library is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        told = f"{type(error).__name__}: {str(error)[:200]} at {_where(error)}"
    if time.process_time() - began > MOST_SECONDS:
        told = f"took {time.process_time() - began:.1f} s; {told}"
    if _peak() - before > MOST_MEMORY:
        told = f"took {(_peak() - before) / 1e9:.1f} GB; {told}"
    return told


def _wrong_message(message: str) -> str:
    if not message.strip():
        return "an error without a message"
    if len(message) > 25_000:
        return f"a message of {len(message)} characters"
    return ""


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _where(error: BaseException) -> str:
    last = [f for f in traceback.extract_tb(error.__traceback__) if "fleetune" in f.filename][-1:]
    return "".join(f"{Path(f.filename).name}:{f.lineno}" for f in last)


def _file(
    name: str, content: bytes, read: Callable[[Path], object], words: tuple[bytes, ...] = ()
) -> Reader:
    """A reader of one file."""

    def make(folder: Path) -> Callable[[Any], object]:
        path = folder / name

        def one(draws: Any) -> object:
            path.write_bytes(damaged(content, draws, words))
            return read(path)

        return one

    return Reader(name.rpartition(".")[2], make)


# --- rows


_ROWS = [
    ("It works, they say", "good"),
    ('"No" and no', "bad"),
    ("a\nb", "good"),
    ("\u00e9\u4e2d", "bad"),
] * 4


def _delimited(separator: str) -> bytes:
    quoted = [[f'"{c}"'.replace('"No"', '""No""') for c in row] for row in _ROWS]
    return "\n".join(separator.join(row) for row in [["text", "label"], *quoted]).encode()


def _lines() -> bytes:
    rows = [{"text": t, "label": label, "more": [1, {"a": None}]} for t, label in _ROWS]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _dataset(path: Path) -> object:
    from fleetune.data.sources import dataset_from_files

    return dataset_from_files(path, None, None, None).checksum


def _glue(path: Path) -> object:
    from fleetune.data.glue import load_glue

    return load_glue("rte", path.parent).checksum


def _make_glue(folder: Path) -> Callable[[Any], object]:
    rows = [f"{i}\tA {i}.\tB {i}.\t{('entailment', 'not_entailment')[i % 2]}" for i in range(20)]
    content = ("\n".join(["index\tsentence1\tsentence2\tlabel", *rows]) + "\n").encode()
    (folder / "dev.tsv").write_bytes(content)

    def one(draws: Any) -> object:
        (folder / "train.tsv").write_bytes(damaged(content, draws))
        return _glue(folder / "train.tsv")

    return one


def _make_parquet(folder: Path) -> Callable[[Any], object]:
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.table(
        {"text": [t for t, _ in _ROWS * 8], "label": [label for _, label in _ROWS * 8]}
    )
    numbers = table.set_column(1, "label", pa.array([i % 3 for i in range(len(table))]))
    sound: list[bytes] = []
    for i, (rows, rest) in enumerate(
        [(table, {}), (table, {"compression": "none", "use_dictionary": False}), (numbers, {"compression": "gzip"}),
         (table, {"compression": "zstd", "version": "1.0", "row_group_size": 16, "write_page_checksum": True})]
    ):  # fmt: skip
        path = folder / f"sound-{i}.parquet"
        parquet.write_table(rows, path, **rest)
        sound.append(path.read_bytes())

    def one(draws: Any) -> object:
        (folder / "rows.parquet").write_bytes(damaged(draws.choice(sound), draws))
        return _dataset(folder / "rows.parquet")

    return one


DATA = (
    _file("rows.csv", _delimited(","), _dataset),
    _file("rows.tsv", _delimited("\t"), _dataset),
    Reader("glue tsv", _make_glue),
    _file("rows.jsonl", _lines(), _dataset),
    Reader("parquet", _make_parquet),
)


def readers() -> tuple[Reader, ...]:
    from tests.hostile.fuzz_runs import RUNS

    return (*DATA, *RUNS)


def fuzz_rows() -> list[Row]:
    """One row a reader. Those that load a model or work out a run's numbers take a tenth of a second a case."""
    fast = {reader.name for reader in DATA} | {"study file"}
    return [
        Row(
            f"B3 damaged {reader.name}",
            CASES,
            partial(attempts, reader),
            SHORT if reader.name in fast else SHORT // 5,
        )
        for reader in readers()
    ]


def main(name: str, number: str) -> None:
    """Run one case and let its error out."""
    import tempfile

    (reader,) = [r for r in readers() if r.name == name]
    with tempfile.TemporaryDirectory() as folder:
        print(reader.make(Path(folder))(case(name, int(number))))


if __name__ == "__main__":
    main(*sys.argv[1:])
