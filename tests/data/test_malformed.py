"""Broken files of every kind end in one DataError that names file, line and column."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from fleetune.data.sources import dataset_from_files
from fleetune.errors import DataError

Case = tuple[bytes, list[str]]
GOOD = b"text,label\ngood film,pos\nbad film,neg\n"
LINE_3_TEXT, LINE_3_LABEL = "line 3, column text", "line 3, column label"

# Name: content, and what the message must say.
CSV_CASES: dict[str, Case] = {
    "empty file": (b"", ["empty"]),
    "only a BOM": (b"\xef\xbb\xbf", ["empty"]),
    "only blank lines": (b"\n\n\n", ["empty"]),
    "header only": (b"text,label\n", ["no rows"]),
    "header only without an end": (b"text,label", ["no rows"]),
    "header and blank lines": (b"text,label\n\n\n", ["no rows"]),
    "short row": (b"text,label\na,pos\nb\n", [LINE_3_LABEL, "missing"]),
    "short row at the end": (GOOD + b"c", ["line 4, column label", "missing"]),
    "long row": (b"text,label\na,pos\nb,neg,x\n", ["line 3, column 3", "too many"]),
    "unquoted comma": (b"text,label\na,pos\nwell, no,neg\n", ["line 3, column 3", "quotes"]),
    "two bad rows": (b"text,label\na\nb\nc,pos\nd,neg\n", ["2 problems", "line 2", "line 3"]),
    "short row after a cell of two lines": (
        b'text,label\n"a\nb",pos\nc\n',
        ["line 4, column label"],
    ),
    "duplicate column": (b"text,text,label\na,b,pos\n", ["line 1, column text", "twice"]),
    "duplicate label column": (b"text,label,label\na,x,y\n", ["line 1, column label", "twice"]),
    "two nameless columns": (b",,text,label\n1,2,a,pos\n", ["line 1, column", "twice"]),
    "missing text column": (
        b"body,label\na,pos\nb,neg\n",
        ["column text", "missing", "body, label"],
    ),
    "missing label column": (b"text,mark\na,pos\nb,neg\n", ["column label", "text, mark"]),
    "misspelt label column": (b"text,labell\na,pos\n", ["column label", 'did you mean "labell"']),
    "wrong case of a column": (b"Text,label\na,pos\n", ["column text", 'did you mean "Text"']),
    "space in a header": (b"text, label\na,pos\n", ["column label", 'did you mean " label"']),
    "no header": (b"good film,pos\nbad film,neg\n", ["line 1, column text", "missing"]),
    "semicolons": (b"text;label\na;pos\nb;neg\n", ["line 1, column text", "by commas"]),
    "tabs in a CSV": (b"text\tlabel\na\tpos\nb\tneg\n", ["line 1, column text", "by commas"]),
    "NUL in a text": (b"text,label\na,pos\nb\0b,neg\n", ["line 3, byte 18", "NUL"]),
    "NUL in the header": (b"te\0xt,label\na,pos\n", ["line 1, byte 2", "NUL"]),
    "zeros at the end": (GOOD + b"\0\0\0", ["line 4", "NUL"]),
    "latin-1": (b"text,label\na,pos\ncaf\xe9,neg\n", ["line 3, byte 20", "not UTF-8", "iconv"]),
    "latin-1 header": (b"t\xe9xt,label\na,pos\n", ["line 1, byte 1", "not UTF-8"]),
    "cut UTF-8 character": (GOOD + b"\xe2\x82", ["line 4, byte", "not UTF-8"]),
    "overlong UTF-8": (GOOD + b"\xc0\xaf,pos\n", ["line 4, byte", "not UTF-8"]),
    "encoded surrogate": (GOOD + b"\xed\xa0\x80,pos\n", ["line 4, byte", "not UTF-8"]),
    "UTF-16": ("text,label\na,pos\n".encode("utf-16"), ["UTF-16", "save it as UTF-8"]),
    "UTF-16 without a mark": ("text,label\na,pos\n".encode("utf-16-le"), ["NUL"]),
    "gzip": (b"\x1f\x8b\x08\x00\x00\x00\x00\x00", ["line 1"]),
    "unclosed quote": (b'text,label\na,pos\n"b,neg\nc,pos\n', ["line 3", "never closed"]),
    "unclosed quote in the last cell": (b'text,label\na,pos\nb,"neg\n', ["line 3", "never closed"]),
    "unclosed quote, closed by a later one": (
        b'text,label\n"a,pos\nb,neg\n"c",pos\n',
        ["line 2", "closing quote"],
    ),
    "unclosed quote in the header": (b'"text,label\na,pos\n', ["line 1", "never closed"]),
    "text after a quote": (b'text,label\na,pos\n"b"c,neg\n', ["line 3", "closing quote"]),
    "space after a quote": (b'text,label\na,pos\n"b" ,neg\n', ["line 3", "closing quote"]),
    "single quote in quotes": (b'text,label\na,pos\n"say "b" ",neg\n', ["line 3", "closing quote"]),
    "empty text": (b"text,label\na,pos\n,neg\n", [LINE_3_TEXT, "empty"]),
    "blank text": (b"text,label\na,pos\n  ,neg\n", [LINE_3_TEXT, "empty"]),
    "empty quoted text": (b'text,label\na,pos\n"",neg\n', [LINE_3_TEXT, "empty"]),
    "empty label": (b"text,label\na,pos\nb,\n", [LINE_3_LABEL, "empty"]),
    "blank label": (b'text,label\na,pos\nb," "\n', [LINE_3_LABEL, "empty"]),
    "row of commas": (b"text,label\na,pos\n,\n", [LINE_3_TEXT, LINE_3_LABEL]),
    "one class": (b"text,label\na,pos\nb,pos\n", ["column label", 'only one class, "pos"']),
    "one row": (b"text,label\na,pos\n", ["column label", "only one class"]),
    "CRLF and a short row": (b"text,label\r\na,pos\r\nb\r\n", [LINE_3_LABEL]),
    "CR and a short row": (b"text,label\ra,pos\rb\r", [LINE_3_LABEL]),
    "too many classes": (
        b"text,label\n" + b"".join(b"a%d,%d\n" % (i, i) for i in range(1001)),
        ["column label", "1001 different labels", "at most 1000"],
    ),
    "100,000 labels": (
        b"text,label\n" + b"".join(b"a,%d\n" % i for i in range(100_000)),
        ["column label", "100000 different labels"],
    ),
    "wrong everywhere": (b"text,label\n" + b"a\n" * 5000, ["line 2, column label", "more"]),
}


def check(path: Path, said: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        dataset_from_files(path, None, ["text"], "label")
    message = str(caught.value)
    assert caught.value.exit_code == 4
    assert message.startswith(str(path))
    for part in said:
        assert part in message


@pytest.mark.parametrize("name", CSV_CASES)
def test_malformed_csv(tmp_path: Path, name: str) -> None:
    content, said = CSV_CASES[name]
    path = tmp_path / "data.csv"
    path.write_bytes(content)
    check(path, said)


# What is about commas has no counterpart here; all else reads the same with tabs.
TSV_CASES = [name for name in CSV_CASES if not any(w in name for w in ("comma", "tabs", "semic"))]


@pytest.mark.parametrize("name", TSV_CASES)
def test_malformed_tsv(tmp_path: Path, name: str) -> None:
    content, said = CSV_CASES[name]
    path = tmp_path / "data.tsv"
    path.write_bytes(content.replace(b",", b"\t") if b"\xff" not in content else content)
    check(path, said)


def lines(*records: object) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


FIRST = lines({"text": "a", "label": "pos"})
GOOD_LINES = FIRST + lines({"text": "b", "label": "neg"})
LINE_2_TEXT, LINE_2_LABEL = "line 2, column text", "line 2, column label"

JSONL_CASES: dict[str, Case] = {
    "empty file": (b"", ["empty"]),
    "blank lines": (b"\n \n", ["empty"]),
    "cut in a string": (FIRST + b'{"text": "b', ["line 2, character", "JSON"]),
    "cut after a value": (FIRST + b'{"text": "b", "label": "neg"', ["line 2", "too early"]),
    "cut in the first line": (b'{"text": ', ["line 1", "JSON"]),
    "two objects in a line": (FIRST + b'{"text": "b"} {"label": 1}\n', ["line 2", "JSON"]),
    "trailing comma": (FIRST + b'{"text": "b", "label": "neg",}\n', ["line 2", "JSON"]),
    "single quotes": (FIRST + b"{'text': 'b', 'label': 'neg'}\n", ["line 2", "JSON"]),
    "plain text": (FIRST + b"hello\n", ["line 2", "JSON"]),
    "raw line break in a string": (FIRST + b'{"text": "b\nc", "label": 1}\n', ["line 2", "line 3"]),
    "raw tab in a string": (FIRST + b'{"text": "b\tc", "label": "neg"}\n', ["line 2", "JSON"]),
    "a list of objects": (b'[{"text": "a", "label": "pos"}]\n', ["line 1", "a list", "object"]),
    "a list in a line": (FIRST + lines(["b", "neg"]), ["line 2", "a list"]),
    "a number in a line": (FIRST + lines(5), ["line 2", "an integer"]),
    "null in a line": (FIRST + lines(None), ["line 2", "null"]),
    "an empty object": (FIRST + lines({}), [LINE_2_TEXT, "nothing", LINE_2_LABEL]),
    "text an integer": (FIRST + lines({"text": 5, "label": "neg"}), [LINE_2_TEXT, "an integer"]),
    "text a float": (FIRST + lines({"text": 5.5, "label": "neg"}), [LINE_2_TEXT, "a float"]),
    "text null": (FIRST + lines({"text": None, "label": "neg"}), [LINE_2_TEXT, "null"]),
    "text a list": (FIRST + lines({"text": ["b"], "label": "neg"}), [LINE_2_TEXT, "a list"]),
    "text an object": (FIRST + lines({"text": {}, "label": "neg"}), [LINE_2_TEXT, "an object"]),
    "text a boolean": (FIRST + lines({"text": True, "label": "neg"}), [LINE_2_TEXT, "a boolean"]),
    "text missing": (FIRST + lines({"label": "neg"}), [LINE_2_TEXT, "missing", "label"]),
    "label missing": (FIRST + lines({"text": "b"}), [LINE_2_LABEL, "missing"]),
    "label null": (FIRST + lines({"text": "b", "label": None}), [LINE_2_LABEL, "null"]),
    "label a float": (FIRST + lines({"text": "b", "label": 0.5}), [LINE_2_LABEL, "a float"]),
    "label a whole float": (FIRST + lines({"text": "b", "label": 1.0}), [LINE_2_LABEL, "a float"]),
    "label NaN": (FIRST + b'{"text": "b", "label": NaN}\n', ["line 2", "NaN"]),
    "label infinite": (FIRST + b'{"text": "b", "label": -Infinity}\n', ["line 2", "-Infinity"]),
    "label a list": (FIRST + lines({"text": "b", "label": ["x"]}), [LINE_2_LABEL, "a list"]),
    "label too long a number": (
        FIRST + b'{"text": "b", "label": ' + b"9" * 5000 + b"}\n",
        ["line 2"],
    ),
    "labels of two kinds": (
        FIRST + lines({"text": "b", "label": 1}),
        [LINE_2_LABEL, "an integer", "line 1", "a string"],
    ),
    "booleans and integers": (
        lines({"text": "a", "label": True}, {"text": "b", "label": 1}),
        [LINE_2_LABEL, "an integer", "a boolean"],
    ),
    "empty label": (FIRST + lines({"text": "b", "label": ""}), [LINE_2_LABEL, "empty"]),
    "empty text": (FIRST + lines({"text": "", "label": "neg"}), [LINE_2_TEXT, "empty"]),
    "blank text": (FIRST + lines({"text": " \n", "label": "neg"}), [LINE_2_TEXT, "empty"]),
    "high surrogate": (FIRST + b'{"text": "\\ud800", "label": "neg"}', [LINE_2_TEXT, "surrogate"]),
    "low surrogate": (FIRST + b'{"text": "x\\udc00y", "label": "neg"}', [LINE_2_TEXT, "surrogate"]),
    "surrogate in a label": (FIRST + b'{"text": "b", "label": "\\udfff"}', [LINE_2_LABEL]),
    "escaped NUL": (FIRST + b'{"text": "b\\u0000", "label": "neg"}', [LINE_2_TEXT, "NUL"]),
    "raw NUL": (FIRST + b'{"text": "b\0", "label": "neg"}', ["line 2, byte 41", "NUL"]),
    "latin-1": (FIRST + b'{"text": "caf\xe9", "label": "neg"}', ["line 2, byte", "not UTF-8"]),
    "UTF-16": ('{"text": "a"}'.encode("utf-16"), ["UTF-16"]),
    "a name twice": (FIRST + b'{"text": "b", "text": "c", "label": "x"}', ["line 2", "twice"]),
    "a name twice in the first line": (b'{"text": "b", "text": "c"}', ["column text", "twice"]),
    "misspelt column": (lines({"txt": "a", "label": "pos"}), ["column text", 'mean "txt"']),
    "deeply nested": (FIRST + b"[" * 200_000, ["line 2", "deeply"]),
    "one class": (FIRST + FIRST, ["only one class"]),
    "problem after blank lines": (FIRST + b"\n\n" + lines({"text": "b"}), ["line 4, column label"]),
    "problem after a BOM": (b"\xef\xbb\xbf" + FIRST + b"x\n", ["line 2"]),
}


@pytest.mark.parametrize("name", JSONL_CASES)
@pytest.mark.parametrize("extension", [".jsonl", ".ndjson"])
def test_malformed_jsonl(tmp_path: Path, name: str, extension: str) -> None:
    content, said = JSONL_CASES[name]
    path = tmp_path / f"data{extension}"
    path.write_bytes(content)
    check(path, said)


PARQUET_TABLES: dict[str, tuple[pa.Table, list[str]]] = {
    "no rows": (
        pa.table({"text": pa.array([], pa.string()), "label": pa.array([], pa.string())}),
        ["no rows"],
    ),
    "no columns": (pa.table({}), ["empty"]),
    "text integers": (pa.table({"text": [1, 2], "label": ["x", "y"]}), ["column text", "int64"]),
    "text floats": (pa.table({"text": [1.0, 2.0], "label": ["x", "y"]}), ["column text", "double"]),
    "text bytes": (
        pa.table({"text": [b"a", b"b"], "label": ["x", "y"]}),
        ["column text", "binary"],
    ),
    "text lists": (
        pa.table({"text": [["a"], ["b"]], "label": ["x", "y"]}),
        ["column text", "list"],
    ),
    "text all null": (
        pa.table({"text": pa.nulls(2), "label": ["x", "y"]}),
        ["column text", "null"],
    ),
    "text structs": (pa.table({"text": [{"a": "b"}], "label": ["x"]}), ["column text", "struct"]),
    "label floats": (
        pa.table({"text": ["a", "b"], "label": [0.0, 1.0]}),
        ["column label", "double"],
    ),
    "label NaN": (pa.table({"text": ["a", "b"], "label": [0.0, float("nan")]}), ["column label"]),
    "label lists": (pa.table({"text": ["a", "b"], "label": [[1], [2]]}), ["column label", "list"]),
    "label dates": (
        pa.table({"text": ["a"], "label": pa.array([1], pa.date32())}),
        ["column label"],
    ),
    "label decimals": (
        pa.table({"text": ["a"], "label": pa.array([1], pa.decimal128(20))}),
        ["column label", "decimal"],
    ),
    "text null": (
        pa.table({"text": ["a", None], "label": ["x", "y"]}),
        ["row 2, column text", "null"],
    ),
    "label null": (
        pa.table({"text": ["a", "b"], "label": ["x", None]}),
        ["row 2, column label", "null"],
    ),
    "integer label null": (
        pa.table({"text": ["a", "b"], "label": [1, None]}),
        ["row 2, column label"],
    ),
    "two nulls": (
        pa.table({"text": ["a", None], "label": [None, "y"]}),
        ["2 problems", "row 1, column label", "row 2, column text"],
    ),
    "dictionary null": (
        pa.table({"text": ["a", "b"], "label": pa.array(["x", None]).dictionary_encode()}),
        ["row 2, column label", "null"],
    ),
    "empty text": (
        pa.table({"text": ["a", ""], "label": ["x", "y"]}),
        ["row 2, column text", "empty"],
    ),
    "empty label": (
        pa.table({"text": ["a", "b"], "label": ["", "y"]}),
        ["row 1, column label", "empty"],
    ),
    "NUL": (pa.table({"text": ["a", "b\0"], "label": ["x", "y"]}), ["row 2, column text", "NUL"]),
    "not UTF-8": (
        pa.table(
            {
                "text": pa.Array.from_buffers(
                    pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")]
                ),
                "label": ["x"],
            }
        ),
        ["UTF"],
    ),
    "missing column": (pa.table({"texts": ["a"], "label": ["x"]}), ["column text", 'mean "texts"']),
    "missing label": (pa.table({"text": ["a"], "mark": ["x"]}), ["column label", "text, mark"]),
    "duplicate column": (
        pa.Table.from_arrays(
            [pa.array(["a"]), pa.array(["b"]), pa.array(["x"])], ["text", "text", "label"]
        ),
        ["column text", "twice"],
    ),
    "one class": (pa.table({"text": ["a", "b"], "label": [1, 1]}), ["column label", "one class"]),
    "too many classes": (
        pa.table({"text": [f"a{i}" for i in range(1001)], "label": list(range(1001))}),
        ["column label", "1001"],
    ),
}


@pytest.mark.parametrize("name", PARQUET_TABLES)
def test_malformed_parquet(tmp_path: Path, name: str) -> None:
    table, said = PARQUET_TABLES[name]
    path = tmp_path / "data.parquet"
    parquet.write_table(table, path)
    check(path, said)


def _whole(tmp_path: Path) -> bytes:
    path = tmp_path / "whole.parquet"
    rows = {"text": [f"text {i}" for i in range(100)], "label": [str(i % 2) for i in range(100)]}
    parquet.write_table(pa.table(rows), path)
    return path.read_bytes()


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"",
        lambda whole: b"text,label\na,pos\n",
        lambda whole: b"PAR1",
        lambda whole: b"PAR1PAR1",
        lambda whole: b"PAR1" + b"\xff" * 100 + b"PAR1",
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[:-4],
        lambda whole: whole[:-1],
        lambda whole: whole[10:],
        lambda whole: whole[:-8] + b"\xff\xff\xff\x7fPAR1",
        lambda whole: whole[:4] + b"\0" * 40 + whole[44:],
        lambda whole: b"PK\x03\x04" + whole,
    ],
)
def test_fake_and_cut_parquet(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "data.parquet"
    path.write_bytes(damage(_whole(tmp_path)))
    check(path, ["Parquet"])


def test_a_byte_that_changed_in_a_page_with_a_checksum_is_found(tmp_path: Path) -> None:
    """It would be another text, and as good a one as the first."""
    path = tmp_path / "data.parquet"
    table = pa.table({"text": [f"text {i}" for i in range(100)], "label": ["a", "b"] * 50})
    parquet.write_table(
        table, path, compression="none", use_dictionary=["label"], write_page_checksum=True
    )
    whole = path.read_bytes()
    assert whole.count(b"text 55") == 1
    path.write_bytes(whole.replace(b"text 55", b"text 56"))
    check(path, ["Parquet"])


def test_enough_cases() -> None:
    """The counts that the project promises."""
    assert len(CSV_CASES) + len(TSV_CASES) >= 40
    assert len(JSONL_CASES) >= 30
    assert len(PARQUET_TABLES) >= 20


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("data.xlsx", "not known; the file must end in one of .csv, .tsv, .jsonl, .ndjson"),
        ("data", 'the extension "" is not known'),
        ("data.csv.gz", '".gz" is not known'),
        ("dta.csv", 'no such file, did you mean "data.csv"'),
        ("nowhere/data.csv", "no such file"),
        ("folder.csv", "this is a folder"),
    ],
)
def test_no_file_to_read(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "data.csv").write_bytes(GOOD)
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError) as caught:
        dataset_from_files(tmp_path / name, None, ["text"], "label")
    assert said in str(caught.value)


def test_parquet_with_damaged_size_statistics_ends_no_process() -> None:
    """pyarrow 26 calls std::terminate where such a column's metadata is asked for; in a process of its own, in case."""
    file = Path(__file__).parent / "damaged" / "size_statistics.parquet"
    code = (
        "import sys; from pathlib import Path; from fleetune.data.sources import dataset_from_files\n"
        "dataset_from_files(Path(sys.argv[1]), None, None, None)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=False
    )
    assert found.returncode == 1 and "not a whole, valid Parquet file" in found.stderr
