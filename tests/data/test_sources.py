"""Own files: what is read is what was written, in every format."""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from fleetune.data.sources import dataset_from_files, guess_columns, read_file
from fleetune.errors import DataError, SettingsError

# Texts that a reader must not touch. NUL, half surrogates and blank texts are problems.
ODD = ["None", "null", "NA", "nan", "001", "1e5", "-", "true", '"', "a,b", "a\tb", "a\nb", "a\r\nb"]
ODD += [" a ", "é\u2028ü\x85", "\U0001f600", "'", '""', "a\\nb", "=1+1", "\ufeffx", "x\x0by"]

characters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
texts = st.text(characters, min_size=1).filter(lambda text: not text.isspace())


def write(path: Path, rows: list[tuple[str, str]]) -> Path:
    """Write columns text and label, with the format's own, independent writer."""
    if path.suffix in (".csv", ".tsv"):
        with path.open("w", newline="", encoding="utf-8") as handle:
            separator = "," if path.suffix == ".csv" else "\t"
            # QUOTE_ALL, for before Python 3.13 a lone CR is not always put in quotes.
            writer = csv.writer(handle, delimiter=separator, quoting=csv.QUOTE_ALL)
            writer.writerows([("text", "label"), *rows])
    elif path.suffix == ".parquet":
        columns = {"text": [row[0] for row in rows], "label": [row[1] for row in rows]}
        parquet.write_table(pa.table(columns), path)
    else:
        records = [json.dumps({"text": text, "label": label}) for text, label in rows]
        path.write_text("\n".join(records), encoding="utf-8")
    return path


@pytest.mark.parametrize("extension", [".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".CSV"])
def test_odd_texts_stay_as_they_are(tmp_path: Path, extension: str) -> None:
    rows = [(text, "NA" if i % 2 else "001") for i, text in enumerate(ODD)]
    path = write(tmp_path / f"data{extension.lower()}", rows)
    path = path.rename(tmp_path / f"data{extension}")
    table = read_file(path, ["text"], "label")
    assert table.texts == (tuple(ODD),)
    assert table.labels == tuple(label for _, label in rows)
    dataset = dataset_from_files(path, None, None, None)
    assert dataset.task.label_names == ("001", "NA")
    assert dataset.train.first == tuple(ODD)


def test_columns_that_go_along_may_be_empty_or_be_a_text(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("id,label,group,text\n7,a,g,one\n,b,h,two\n")
    table = read_file(path, ["text"], "label", "group", kept=["id", "text", "group"])
    assert table.kept == {"id": ("7", ""), "text": ("one", "two"), "group": ("g", "h")}
    assert (table.texts, table.labels, table.groups) == ((("one", "two"),), ("a", "b"), ("g", "h"))


def test_of_names_that_differ_in_case_the_one_in_small_letters_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    for header in ("text,label,Text", "Text,label,text", "TEXT,label,Text,text"):
        path.write_text(
            f"{header}\n" + "a,b,c,d\n".replace(",d", "" if header.count(",") == 2 else ",d") * 3
        )
        assert guess_columns(path) == (("text",), "label")
    path.write_text("Text,label,TEXT\na,b,c\n")
    assert guess_columns(path) == (("Text",), "label")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(texts, texts), min_size=1), st.sampled_from([".csv", ".tsv", ".jsonl"]))
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], extension: str
) -> None:
    path = write(tmp_path_factory.mktemp("round") / f"data{extension}", rows)
    table = read_file(path, ["text"], "label")
    assert list(zip(table.texts[0], table.labels or (), strict=True)) == rows


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(texts, texts), min_size=1))
def test_csv_lines_are_where_rows_start(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    path = write(tmp_path_factory.mktemp("lines") / "data.csv", rows)
    breaks = [
        sum(cell.replace("\r\n", "\n").replace("\r", "\n").count("\n") for cell in row)
        for row in rows
    ]
    starts = 2 + np.arange(len(rows)) + np.concatenate([[0], np.cumsum(breaks)])[:-1]
    assert read_file(path, ["text"], "label").lines.tolist() == starts.tolist()


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=80), st.sampled_from([".csv", ".tsv", ".jsonl", ".parquet"]))
def test_any_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, extension: str
) -> None:
    """Nothing but DataError comes out, whatever is in the file."""
    path = tmp_path_factory.mktemp("bytes") / f"data{extension}"
    for start in (b"", b"text,label\n", b"text\tlabel\n", b'{"text": "a", "label": 1}\n', b"PAR1"):
        path.write_bytes(start + content)
        try:
            dataset_from_files(path, None, ["text"], "label")
        except DataError as error:
            assert error.problems


def test_blank_lines_and_bom(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes(b"\xef\xbb\xbftext,label\r\n\r\na,x\r\n\r\nb,y\r\n\r\n")
    table = read_file(path, ["text"], "label")
    assert table.texts == (("a", "b"),)
    assert table.lines.tolist() == [3, 5]


def test_pairs_groups_and_integers(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("who,premise,hypothesis,label\nann,a,b,10\nbob,c,d,9\nann,e,f,-1\n")
    dataset = dataset_from_files(path, None, None, None, groups_column="who")
    assert dataset.task.columns == ("premise", "hypothesis")
    assert dataset.task.label_names == ("-1", "9", "10")
    assert dataset.task.metrics == ("accuracy", "f1_macro")
    assert dataset.task.name == "pairs"
    assert dataset.source == "pairs.csv"
    assert dataset.tests == {}
    assert dataset.train.second == ("b", "d", "f")
    assert dataset.train.groups == ("ann", "bob", "ann")
    assert dataset.train.ids == ("1", "2", "3")
    assert dataset.train.labels is not None
    assert dataset.train.labels.tolist() == [2, 1, 0]


def test_json_labels(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    records = [{"text": f"t{i}", "label": i, "even": i % 2 == 0} for i in (10, 9, 2)]
    path.write_text("\n".join(map(json.dumps, records)))
    assert dataset_from_files(path, None, ["text"], "label").task.label_names == ("2", "9", "10")
    assert dataset_from_files(path, None, ["text"], "even").task.label_names == ("false", "true")


def test_parquet_column_types(tmp_path: Path) -> None:
    words = pa.array(["a", "b"])
    for i, text in enumerate(
        [
            words,
            words.cast(pa.large_string()),
            words.dictionary_encode(),
            words.cast(pa.string_view()),
        ]
    ):
        for label in (
            pa.array([1, 0], pa.uint8()),
            pa.array([True, False]),
            words.dictionary_encode(),
        ):
            path = tmp_path / f"x=1{i}.parquet"
            parquet.write_table(pa.table({"t.x": text, "label": label, "other": [0.5, 0.1]}), path)
            dataset = dataset_from_files(path, None, ["t.x"], "label")
            assert dataset.train.first == ("a", "b")
            assert len(dataset.task.label_names) == 2


def test_same_rows_same_checksum_in_every_format(tmp_path: Path) -> None:
    rows = [("a", "x"), ("b", "y"), ("c", "x")]
    sums = {
        dataset_from_files(write(tmp_path / f"d{ext}", rows), None, ["text"], "label").checksum
        for ext in (".csv", ".tsv", ".jsonl", ".parquet")
    }
    assert len(sums) == 1


def test_test_file(tmp_path: Path) -> None:
    train, test = tmp_path / "train.csv", tmp_path / "test.jsonl"
    write(train, [("a", "no"), ("b", "yes")])
    write(test, [("c", "yes")])
    dataset = dataset_from_files(train, test, None, None, name="mine")
    assert dataset.task.name == "mine"
    assert dataset.task.metrics == ("accuracy", "f1")
    assert list(dataset.tests) == ["test"]
    labels = dataset.tests["test"].labels
    assert labels is not None and labels.tolist() == [1]
    write(test, [("c", "yes"), ("d", "maybe")])
    with pytest.raises(DataError) as caught:
        dataset_from_files(train, test, None, None)
    assert "test.jsonl" in str(caught.value)
    assert 'line 2, column label: "maybe" is no label of train (no, yes)' in str(caught.value)


def test_unlabelled(tmp_path: Path) -> None:
    path = tmp_path / "new.csv"
    path.write_text("id,review\n1,fine\n")
    table = read_file(path, None, None)
    assert table.texts == (("fine",),)
    assert table.labels is None
    path.write_text("x,y\n1,fine\n")
    with pytest.raises(DataError, match="--text-column"):
        read_file(path, None, None)


def test_wrong_requests(tmp_path: Path) -> None:
    path = write(tmp_path / "data.csv", [("a", "x")])
    with pytest.raises(SettingsError, match='column "text" cannot be used twice'):
        read_file(path, ["text"], "text")
    with pytest.raises(SettingsError, match="one or two"):
        read_file(path, ["text", "label", "c"], None)


def test_a_large_cell(tmp_path: Path) -> None:
    path = write(tmp_path / "data.csv", [("x" * 10_000_000, "a"), ("y", "b")])
    assert len(read_file(path, ["text"], "label").texts[0][0]) == 10_000_000


@pytest.mark.slow
def test_a_large_file_in_seconds(tmp_path: Path) -> None:
    path = write(
        tmp_path / "data.csv", [(f"{i} " + "word, " * 20, str(i % 3)) for i in range(800_000)]
    )
    assert path.stat().st_size > 100_000_000
    start = time.perf_counter()
    assert len(dataset_from_files(path, None, None, None).train) == 800_000
    assert time.perf_counter() - start < 20


@pytest.mark.parametrize(
    ("content", "texts", "label"),
    [
        ("text,label\na,x\n", ("text",), "label"),
        ("Label,Sentence\nx,a\n", ("Sentence",), "Label"),
        ("sentence2,sentence1,label\nb,a,x\n", ("sentence1", "sentence2"), "label"),
        ("premise,hypothesis,target\na,b,x\n", ("premise", "hypothesis"), "target"),
        ("question,sentence,label\na,b,x\n", ("question", "sentence"), "label"),
        ("id,review,sentiment\n1,a,x\n", ("review",), "sentiment"),
        ("content,class\na,x\n", ("content",), "class"),
        ("labels,body\nx,a\n", ("body",), "labels"),
        (
            "id,what was said,mood\n1,a long one,x\n2,a longer one,y\n3,the end,x\n",
            ("what was said",),
            "mood",
        ),
        ("was,text\n0,same\n0,same\n1,other\n2,next\n", ("text",), "was"),
    ],
)
def test_guess(tmp_path: Path, content: str, texts: tuple[str, ...], label: str) -> None:
    path = tmp_path / "data.csv"
    path.write_text(content)
    assert guess_columns(path) == (texts, label)


@pytest.mark.parametrize(
    "content",
    [
        "a,b\n1,x\n2,y\n",
        "only\na\nb\n",
        "a,b,c\nx,p,long text\ny,q,long text\nx,p,longer text\n",
        "label,x,y\n0,aa,bb\n1,cc,dd\n",
        "label\na\n",
    ],
)
def test_guess_gives_up(tmp_path: Path, content: str) -> None:
    path = tmp_path / "data.csv"
    path.write_text(content)
    with pytest.raises(DataError) as caught:
        guess_columns(path)
    assert content.split("\n")[0].replace(",", ", ") in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("data.csv", "text\tlabel\nso good\tgood\nso bad\tbad\nso so\tbad\n"),
        ("data.csv", "text;label\nso good;good\nso bad;bad\nso so;bad\n"),
        ("data.csv", "text;label\nyes, so good;good\nno, bad;bad\n"),
        ("data.tsv", "text,label\nso good,good\nso bad,bad\nso so,bad\n"),
    ],
)
def test_another_separator_is_told(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    told = "the header is one cell: separate cells by commas in .csv, by tabs in .tsv"
    for read in (guess_columns, lambda path: read_file(path, None, None)):
        with pytest.raises(DataError, match=told):
            read(path)


@pytest.mark.parametrize("separator", [";", ","])
def test_a_note_for_excel_is_told(tmp_path: Path, separator: str) -> None:
    path = tmp_path / "data.csv"
    lines = [
        f"sep={separator}",
        *(f"{a}{separator}{b}" for a, b in [("text", "label"), ("a b", "x")]),
    ]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match="line 1 is a note for Excel; remove it"):
        guess_columns(path)


def test_a_file_without_a_header_loses_no_row(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    rows = [
        ("great product", "good"),
        ("broken on day one", "bad"),
        ("works", "good"),
        ("no", "bad"),
    ]
    path.write_text("".join(f"{a},{b}\n" for a, b in rows))
    with pytest.raises(DataError, match="line 1 looks like a row, not a header"):
        dataset_from_files(path, None, None, None)
    # Who names the columns means them; and keys of an object are no line that could be a row.
    found = dataset_from_files(path, None, ["great product"], "good")
    assert len(found.train) == 3
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"great product": a, "good": b}) + "\n" for a, b in rows))
    assert guess_columns(path) == (("great product",), "good")


@pytest.mark.parametrize(
    ("records", "told"),
    [
        ([{"text": "a b", "label": 0.5}, {"text": "c", "label": 1.0}], "line 1, column label: a float"),
        ([{"text": "a b", "label": None}, {"text": "c", "label": "x"}], "line 1, column label: null"),
        ([{"text": None, "label": "x", "id": "1"}], "line 1, column text: null"),
        ([{"sentence1": "a", "sentence2": None, "label": "x"}], "line 1, column sentence2: null"),
    ],
)  # fmt: skip
def test_a_column_of_a_wrong_kind_is_named_by_its_name(
    tmp_path: Path, records: list[dict], told: str
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.raises(DataError, match=told):
        dataset_from_files(path, None, None, None)


def test_columns_of_a_wrong_kind_in_parquet(tmp_path: Path) -> None:
    filled = "booleans; make whole numbers integers or strings, which needs that no cell is empty"
    for name, rule, table in (
        ("label", filled, {"text": ["a b", "c"], "label": [1.0, None], "id": ["1", "2"]}),
        ("text", "strings$", {"text": [b"a b", b"c"], "label": ["x", "y"], "id": ["1", "2"]}),
    ):
        path = tmp_path / f"{name}.parquet"
        parquet.write_table(pa.table(table), path)
        with pytest.raises(
            DataError, match=f"column {name}: holds (double|binary), but must hold .*{rule}"
        ):
            dataset_from_files(path, None, None, None)


def test_a_number_under_the_name_of_a_text_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    records = [{"document": i, "said": f"some words {i}", "mood": i % 2 == 0} for i in range(4)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert guess_columns(path) == (("said",), "mood")


def test_a_missing_column_names_the_flag(tmp_path: Path) -> None:
    path = write(tmp_path / "train.csv", [("a b", "x"), ("c d", "y")])
    for columns, told in (
        ((["body"], "label", None), "column body: missing; name another with --text-column"),
        ((["text"], "mark", None), "column mark: missing; name another with --label-column"),
        ((["text"], "label", "who"), "column who: missing; name another with --groups-column"),
    ):
        with pytest.raises(DataError, match=told):
            read_file(path, *columns)
    test = tmp_path / "test.csv"
    test.write_text("body,label\na,x\n")
    with pytest.raises(DataError, match=r"column text: missing; train\.csv calls it so"):
        dataset_from_files(path, test, None, None)


def test_guess_in_jsonl_by_type(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    rows = [{"score": i / 2, "said": f"some words {i}", "mood": i % 2 == 0} for i in range(4)]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert guess_columns(path) == (("said",), "mood")


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([f"{i / 7:.2f}" for i in range(100)] * 2, "100 different decimal numbers"),
        ([f"{i}" for i in range(99)] * 2 + ["1e3", "-.5"], "101 different decimal numbers"),
        ([f"name {i}" for i in range(40)] + ["name 0"] * 39, "79 rows of 40 classes"),
    ],
)
def test_labels_that_are_no_classes_are_refused(
    tmp_path: Path, labels: list[str], told: str
) -> None:
    path = write(tmp_path / "train.csv", [(f"text {i}", label) for i, label in enumerate(labels)])
    with pytest.raises(DataError, match=rf"column label: {told}.*--label-column"):
        dataset_from_files(path, None, None, None)


@pytest.mark.parametrize(
    "labels",
    [
        [f"{i / 2:.1f}" for i in range(1, 11)],  # stars
        [f"{i}" for i in range(150)],  # numbers of intents
        [f"v{i}.0" for i in range(30)],
    ],
)
def test_names_that_only_look_like_numbers_are_classes(tmp_path: Path, labels: list[str]) -> None:
    rows = [(f"text {i}", label) for i, label in enumerate(labels * 2)]
    found = dataset_from_files(write(tmp_path / "train.csv", rows), None, None, None)
    assert set(found.task.label_names) == set(labels)


def test_an_unknown_label_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\na,no\nb,yes\n")
    (tmp_path / "test.csv").write_text("text,label\nc,maybe\nd,no\ne,maybe\nf,never\n")
    with pytest.raises(DataError) as caught:
        dataset_from_files(tmp_path / "train.csv", tmp_path / "test.csv", None, None)
    assert caught.value.problems == (
        'line 2, column label: "maybe" is no label of train (no, yes); 2 rows have it',
        'line 5, column label: "never" is no label of train (no, yes)',
    )
