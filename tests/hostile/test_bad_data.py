"""Broken data files given to the real command: exit 4, the file and the place, no traceback, nothing written, no hang.

What each message must say is checked by tests/data/test_malformed.py, whose files these are; here they go through the command
line, with more that only a whole command can get wrong: huge cells, labels of a test file, rows of test that train holds.
"""

from __future__ import annotations

import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from fleetune.data.sources import read_file
from tests.data.test_malformed import CSV_CASES, JSONL_CASES, PARQUET_TABLES, TSV_CASES
from tests.runs import Made, Result, run_cli, tree

# A place in a text file, a row of a Parquet file, or what is wrong with the file or a column as a whole.
PLACE = re.compile(
    r"line \d+|row \d+|column \w+|the file is empty|no rows|UTF-16|Parquet file|unpack to"
)
MOST_SECONDS = 5.0


def files(kind: str) -> dict[str, bytes]:
    """Content of every broken file of one format."""
    if kind == "csv":
        return {name: content for name, (content, _) in CSV_CASES.items()}
    if kind == "tsv":
        return {name: CSV_CASES[name][0].replace(b",", b"\t") for name in TSV_CASES}
    return {name: content for name, (content, _) in JSONL_CASES.items()}


def train(data: Path, *words: object) -> Result:
    """The command; it must end in bad data long before the backbone, which is none, is looked for."""
    return run_cli(
        *("train", "--data", data, "--text-column", "text", "--label-column", "label"),
        *("--backbone", "./none", "--output-dir", data.parent / "run", *words),
    )


def check_refused(path: Path, found: Result, seconds: float) -> None:
    assert (found.code, found.out) == (4, ""), (path, found)
    first, *problems = found.err.splitlines()
    assert re.fullmatch(rf"fleetune: {re.escape(str(path))}: \d+ problems?", first), found.err
    assert problems and all(PLACE.search(p) or p.startswith("  ... and") for p in problems), (
        problems
    )
    assert "Traceback" not in found.err and len(found.err) < 10_000
    assert seconds < MOST_SECONDS


@pytest.mark.parametrize(
    "kind", ["csv", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("tsv", "jsonl"))]
)
def test_broken_text_files_through_the_command(tmp_path: Path, kind: str) -> None:
    cases = files(kind)
    assert len(cases) >= {"csv": 40, "tsv": 30, "jsonl": 30}[kind]
    for content in cases.values():
        path = tmp_path / f"rows.{kind}"
        path.write_bytes(content)
        began = time.monotonic()
        check_refused(path, train(path), time.monotonic() - began)
        assert tree(tmp_path) == {path.name: content}


def test_broken_parquet_files_through_the_command(tmp_path: Path) -> None:
    assert len(PARQUET_TABLES) >= 20
    for table, _ in PARQUET_TABLES.values():
        path = tmp_path / "rows.parquet"
        parquet.write_table(table, path)
        began = time.monotonic()
        check_refused(path, train(path), time.monotonic() - began)
        assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("rows.csv", b'text,label\n"a\nb",pos\n"c,neg\n', "line 4: a quote is opened"),
        ("rows.jsonl", b'{"text": "a", "label": NaN}\n', "line 1: NaN is no JSON value"),
        ("rows.parquet", b"PAR1" + b"\xff" * 64 + b"PAR1", "not a whole, valid Parquet file"),
    ],
)
def test_through_a_process_of_its_own(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    words = ["train", "--data", str(path), "--output-dir", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "-m", "fleetune.cli.main", *words],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (4, "")
    assert str(path) in done.stderr and said in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_label_that_only_the_test_file_has(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\na,pos\nb,neg\n")
    (tmp_path / "test.csv").write_text("text,label\nc,pos\nd,neutral\n")
    found = train(tmp_path / "train.csv", "--test-data", tmp_path / "test.csv")
    assert found.code == 4 and f"{tmp_path}/test.csv: 1 problem" in found.err
    assert 'line 3, column label: "neutral" is no label of train (neg, pos)' in found.err


def test_a_problem_does_not_quote_a_cell_of_ten_megabytes(tmp_path: Path) -> None:
    """A file of one huge cell is refused in its place, fast, and in a message that a terminal can show."""
    huge = b"x" * 10_000_000
    cases = {
        "text.csv": b"text,label\n" + huge + b"\nb,pos\n",
        "label.csv": b"text,label\na," + huge + b"\nb,\n",
        "unclosed.csv": b'text,label\na,pos\n"' + huge + b",neg\n",
        "header.csv": huge + b",label\na,pos\n",
        "key.jsonl": b'{"' + huge + b'": "a", "label": "pos"}\n',
        "label.jsonl": b'{"text": "a", "label": "' + huge + b'"}\n{"text": "b", "label": null}\n',
        "number.jsonl": b'{"text": "a", "label": ' + b"9" * 10_000_000 + b"}\n",
        "word.jsonl": huge + b"\n",
    }
    for name, content in cases.items():
        path = tmp_path / name
        path.write_bytes(content)
        began = time.monotonic()
        check_refused(path, train(path), time.monotonic() - began)
        path.unlink()


def test_huge_labels_and_columns_are_shortened_in_messages(tmp_path: Path) -> None:
    huge = "x" * 100_000
    path = tmp_path / "rows.csv"
    for content in (
        f"text,label\na,{huge}\nb,{huge}\n",  # one class
        f"{huge},{huge}\na,pos\n",  # a column twice
        f"text,label,{huge}\na,pos\n",  # a short row, where the missing column is named
    ):
        path.write_text(content)
        check_refused(path, train(path), 0)


def test_texts_of_every_kind_are_kept_as_they_are(made: Made, tmp_path: Path) -> None:
    """A cell of 1 MB, and classes called nan, None and 1.5, are rows like others: trained on, and predicted."""
    path = tmp_path / "rows.csv"
    rows = [f"w{i} w{i + 1},{label}" for i in range(20) for label in ("nan", "None", "1.5")]
    path.write_text("\n".join(["text,label", *rows, "w1 " * 330_000 + ",nan"]) + "\n")
    found = run_cli(
        *(
            "train",
            "--data",
            path,
            "--backbone",
            made.backbone,
            "--method",
            "head",
            "--max-steps",
            1,
        ),
        *("--dtype", "float32", "--output-dir", tmp_path / "run"),
    )
    assert found.code == 0 and "label with 3 classes, 1.5, None, nan" in found.err
    assert "1 row of train is longer than 40 tokens" in found.err
    said = run_cli("predict", tmp_path / "run", "--text", "w1", "--json")
    assert '"1.5"' in said.out and '"None"' in said.out and '"nan"' in said.out


def test_rows_of_test_that_train_holds_are_told(made: Made, tmp_path: Path) -> None:
    train_rows = [f"w{i},{('bad', 'good')[i % 2]}" for i in range(40)]
    test_rows = ["w0,bad", "w1,good", "w2,good", "w80,bad", "w81,good"]
    for name, rows in (("train", train_rows), ("test", test_rows)):
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    words = (
        *("train", "--data", tmp_path / "train.csv", "--backbone", made.backbone),
        *("--method", "head", "--max-steps", 1, "--dtype", "float32"),
    )
    found = run_cli(*words, "--test-data", tmp_path / "test.csv", "--output-dir", tmp_path / "a")
    assert found.code == 0
    assert "3 of the 5 rows of test stand in train too, 1 of them under another label" in found.err
    assert '"in_train": {\n      "test": 3' in (tmp_path / "a/environment.json").read_text()
    # A tenth that is held out of train shares no text with the rest.
    (tmp_path / "train.csv").write_text("\n".join(["text,label", *train_rows, *train_rows]) + "\n")
    alone = run_cli(*words, "--output-dir", tmp_path / "b")
    assert alone.code == 0 and "stand in train too" not in alone.err


def _repeated(text: str, rows: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([text]))


@pytest.mark.parametrize("schema", [True, False], ids=["dictionary", "plain"])
@pytest.mark.parametrize(
    ("text", "rows"), [("x" * 1_000_000, 20_000), ("x", 6_000_000)], ids=["long", "many"]
)
def test_a_parquet_file_that_unpacks_to_gigabytes_is_refused(
    tmp_path: Path, text: str, rows: int, schema: bool
) -> None:
    """Of 50 kB to 100 kB; unpacked they are 20 GB of text, and 6 million rows."""
    path = tmp_path / "rows.parquet"
    labels = pa.DictionaryArray.from_arrays(
        pa.array(np.arange(rows, dtype=np.int32) % 2), pa.array(["a", "b"])
    )
    table = pa.table({"text": _repeated(text, rows), "label": labels})
    parquet.write_table(table, path, store_schema=schema, dictionary_pagesize_limit=10**7)
    assert path.stat().st_size < 500_000
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    found = train(path)
    check_refused(path, found, time.monotonic() - began)
    assert "unpack to more than 100 times as much" in found.err
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 300_000  # kB


def test_a_repetitive_parquet_file_of_ordinary_size_is_read(tmp_path: Path) -> None:
    """Twenty thousand equal labels and texts are no bomb, in whichever way they are stored."""
    for i, text in enumerate((_repeated("It works.", 20_000), pa.array(["It works."] * 20_000))):
        table = pa.table({"text": text, "label": [["a", "b"][i % 2] for i in range(20_000)]})
        path = tmp_path / f"{i}.parquet"
        parquet.write_table(table, path, compression="zstd")
        rows = read_file(path, ["text"], "label")
        assert rows.texts == (("It works.",) * 20_000,) and set(rows.labels or ()) == {"a", "b"}
