"""The nine GLUE tasks, from small folders in GLUE's own layout that the tests write."""

from __future__ import annotations

from pathlib import Path

import pytest

from fleetune.data.base import Split
from fleetune.data.glue import GLUE, load_glue
from fleetune.data.metrics import METRICS
from fleetune.errors import DataError, SettingsError

REAL = Path(__file__).parents[3] / "shared" / "data" / "glue"

MNLI_HEADER = "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse "
MNLI_HEADER += "sentence1_parse sentence2_parse sentence1 sentence2 label1 "
DEV_LABELS = "label2 label3 label4 label5 "

STSB_HEADER = ["index", "genre", "filename", "year", "old_index", "source1", "source2"]
STSB_HEADER += ["sentence1", "sentence2", "score"]


def mnli(index: int, first: str, second: str, label: str, votes: int) -> list[str]:
    return [str(index), *["x"] * 7, first, second, *[label] * (votes + 1)]


# Folder: file: lines of cells, header first where there is one.
FOLDERS: dict[str, dict[str, list[list[str]]]] = {
    "CoLA": {
        "train.tsv": [["gj04", "1", "", 'One "more'], ["gj04", "0", "*", "They book ."]],
        "dev.tsv": [["gj04", "1", "", "The sailors rode ."]],
    },
    "SST-2": {
        "train.tsv": [["sentence", "label"], ['a " film ', "1"], ["dull ", "0"]],
        "dev.tsv": [["sentence", "label"], ["charming . ", "1"]],
    },
    "MRPC": {
        "train.tsv": [
            ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"],
            ["1", "7", "8", 'He said "x', "He said x"],
            ["0", "7", "9", "He said", "She said"],
        ],
        "dev.tsv": [
            ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"],
            ["1", "1", "2", "a", "b"],
        ],
    },
    "QQP": {
        "train.tsv": [
            ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"],
            ["133273", "1", "2", 'How "is', "Why is", "0"],
            ["402555", "3", "4", "What is", "What's", "1"],
        ],
        "dev.tsv": [
            ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"],
            ["5", "1", "2", "a", "b", "1"],
        ],
    },
    "STS-B": {
        "train.tsv": [
            STSB_HEADER,
            ["0", "g", "f", "2012", "1", "n", "n", 'A "plane', "An air plane", "5.000"],
            ["1", "g", "f", "2012", "4", "n", "n", "A man", "A flute", "3.8"],
        ],
        "dev.tsv": [
            STSB_HEADER,
            ["0", "g", "f", "2012", "1", "n", "n", "A", "B", "0.25"],
        ],
    },
    "MNLI": {
        "train.tsv": [
            [*MNLI_HEADER.split(), "gold_label"],
            mnli(0, 'Conceptually "', "Product", "neutral", 1),
            mnli(1, "you know", "You lose", "entailment", 1),
            mnli(2, "Fun", "Not fun", "contradiction", 1),
        ],
        "dev_matched.tsv": [
            [*(MNLI_HEADER + DEV_LABELS).split(), "gold_label"],
            mnli(0, "The new rights", "Everyone", "neutral", 5),
        ],
        "dev_mismatched.tsv": [
            [*(MNLI_HEADER + DEV_LABELS).split(), "gold_label"],
            mnli(0, "Your gift", "Gifts", "contradiction", 5),
            mnli(1, "Not", "Is", "entailment", 5),
        ],
    },
    "QNLI": {
        "train.tsv": [
            ["index", "question", "sentence", "label"],
            ["0", 'When "did', "Then", "entailment"],
            ["1", "Which", "Missing", "not_entailment"],
        ],
        "dev.tsv": [["index", "question", "sentence", "label"], ["0", "q", "s", "entailment"]],
    },
    "RTE": {
        "train.tsv": [
            ["index", "sentence1", "sentence2", "label"],
            ["0", 'No "weapons', "Weapons", "not_entailment"],
            ["1", "A place", "A church", "entailment"],
        ],
        "dev.tsv": [["index", "sentence1", "sentence2", "label"], ["0", "a", "b", "entailment"]],
    },
    "WNLI": {
        "train.tsv": [
            ["index", "sentence1", "sentence2", "label"],
            ["0", 'I stuck "a', "The pin", "1"],
            ["1", "I could", "It was", "0"],
        ],
        "dev.tsv": [["index", "sentence1", "sentence2", "label"], ["0", "a", "b", "0"]],
    },
}

# Task: labels of train, first texts of train, ids of train, names of the reported sets.
EXPECTED: dict[str, tuple[list[float], list[str], list[str], list[str]]] = {
    "cola": ([1, 0], ['One "more', "They book ."], ["0", "1"], ["test"]),
    "sst2": ([1, 0], ['a " film ', "dull "], ["0", "1"], ["test"]),
    "mrpc": ([1, 0], ['He said "x', "He said"], ["0", "1"], ["test"]),
    "qqp": ([0, 1], ['How "is', "What is"], ["133273", "402555"], ["test"]),
    "stsb": ([5.0, 3.8], ['A "plane', "A man"], ["0", "1"], ["test"]),
    "mnli": (
        [1, 0, 2],
        ['Conceptually "', "you know", "Fun"],
        ["0", "1", "2"],
        ["test_matched", "test_mismatched"],
    ),
    "qnli": ([0, 1], ['When "did', "Which"], ["0", "1"], ["test"]),
    "rte": ([1, 0], ['No "weapons', "A place"], ["0", "1"], ["test"]),
    "wnli": ([1, 0], ['I stuck "a', "I could"], ["0", "1"], ["test"]),
}


def write(folder: Path, files: dict[str, list[list[str]]], end: str = "\n") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        text = "".join("\t".join(row) + end for row in rows)
        (folder / name).write_bytes(text.encode())
    return folder


def labels(split: Split) -> list[float]:
    assert split.labels is not None
    return split.labels.tolist()


@pytest.mark.parametrize("name", GLUE)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_small_folders(tmp_path: Path, name: str, end: str) -> None:
    row = GLUE[name]
    folder = write(tmp_path / row.folder, FOLDERS[row.folder], end)
    dataset = load_glue(name, folder)
    wanted_labels, wanted_texts, wanted_ids, wanted_sets = EXPECTED[name]
    assert labels(dataset.train) == wanted_labels
    assert list(dataset.train.first) == wanted_texts
    assert list(dataset.train.ids) == wanted_ids
    assert list(dataset.tests) == wanted_sets
    assert (dataset.train.second is None) == (len(dataset.task.columns) == 1)
    assert dataset.source == row.folder
    assert load_glue(name, tmp_path).checksum == dataset.checksum


def test_the_two_sets_of_mnli_are_not_taken_for_one_another(tmp_path: Path) -> None:
    found = load_glue("mnli", write(tmp_path / "MNLI", FOLDERS["MNLI"])).tests
    assert found["test_matched"].first == ("The new rights",)
    assert found["test_mismatched"].first == ("Your gift", "Not")
    on_hub = {"test_matched": "validation_matched", "test_mismatched": "validation_mismatched"}
    assert GLUE["mnli"].hub_splits == on_hub


@pytest.mark.parametrize("mark", ["\u2028", "\u0085", "\x0b", "\x0c"])
def test_only_a_line_feed_ends_a_row(tmp_path: Path, mark: str) -> None:
    rows = [["sentence", "label"], [f"one{mark}text", "1"], ["other", "0"]]
    folder = write(tmp_path / "SST-2", {"train.tsv": rows, "dev.tsv": rows})
    assert load_glue("sst2", folder).train.first == (f"one{mark}text", "other")


@pytest.mark.parametrize("name", GLUE)
def test_table(name: str) -> None:
    row = GLUE[name]
    assert row.task.name == name
    assert len(row.labels) == len(row.task.label_names)
    assert len(row.texts) == len(row.task.columns)
    assert set(row.task.metrics) <= set(METRICS)
    assert row.task.regression == (name == "stsb") == (not row.task.label_names)
    assert list(row.dev_files) == list(row.hub_splits)
    assert row.task.citation


def test_class_numbers_are_those_of_the_hub() -> None:
    names = {name: row.task.label_names for name, row in GLUE.items()}
    assert names["rte"] == names["qnli"] == ("entailment", "not_entailment")
    assert names["wnli"] == ("not_entailment", "entailment")
    assert names["mnli"] == ("entailment", "neutral", "contradiction")
    assert names["sst2"] == ("negative", "positive")
    assert names["cola"] == ("unacceptable", "acceptable")
    assert names["mrpc"] == ("not_equivalent", "equivalent")
    assert names["qqp"] == ("not_duplicate", "duplicate")


def test_msr_layout(tmp_path: Path) -> None:
    rows = FOLDERS["MRPC"]
    files = {
        "msr_paraphrase_train.txt": rows["train.tsv"],
        "msr_paraphrase_test.txt": rows["dev.tsv"],
    }
    folder = write(tmp_path / "MRPC", files, "\r\n")
    train = folder / "msr_paraphrase_train.txt"
    train.write_bytes(b"\xef\xbb\xbf" + train.read_bytes())
    dataset = load_glue("mrpc", folder)
    assert labels(dataset.train) == [1, 0]
    assert dataset.source == "MRPC (tested on msr_paraphrase_test.txt)"
    write(folder, rows)
    assert load_glue("mrpc", folder).source == "MRPC"


def test_all_problems_of_all_files_at_once(tmp_path: Path) -> None:
    header = FOLDERS["RTE"]["train.tsv"][0]
    files = {
        "train.tsv": [
            header,
            ["0", "a", "b", "maybe"],
            ["1", "a", "b"],
            ["2", "a", "b", "x", "entailment"],
        ],
        "dev.tsv": [header, ["0", "a", "b", "entailment"], ["1", "a", "b", ""]],
    }
    with pytest.raises(DataError) as caught:
        load_glue("rte", write(tmp_path / "RTE", files))
    message = str(caught.value)
    assert (
        'train.tsv, line 2, column label: "maybe" is not one of entailment, not_entailment'
        in message
    )
    assert "train.tsv, line 3: 3 cells for 4 columns" in message
    assert "train.tsv, line 4: 5 cells for 4 columns" in message
    assert 'dev.tsv, line 3, column label: "" is not one of' in message
    assert len(caught.value.problems) == 4


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "train.tsv: the file is empty"),
        (b"index\tsentence1\tsentence2\tlabel\n", "train.tsv: there are no rows"),
        (
            b"index\tsentence1\tsentence\tlabel\n0\ta\tb\tc\n",
            'column sentence2: missing, did you mean "sentence',
        ),
        (
            b"index\tsentence1\tsentence2\tlabel\tlabel\n",
            "line 1, column label: this name stands twice",
        ),
        (b"sentence\tlabel\na\t1\n", "train.tsv, line 1, column sentence1: missing"),
        (
            b"index\tsentence1\tsentence2\tlabel\n0\ta\xff\tb\tc\n",
            "train.tsv, line 2, byte 35: not UTF-8",
        ),
        (
            b"index\tsentence1\tsentence2\tlabel\n0\ta\0\tb\tc\n",
            "train.tsv, line 2, byte 35: a NUL byte",
        ),
    ],
)
def test_broken_files(tmp_path: Path, content: bytes, said: str) -> None:
    folder = write(tmp_path / "RTE", FOLDERS["RTE"])
    (folder / "train.tsv").write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_glue("rte", folder)
    assert said in str(caught.value)


@pytest.mark.parametrize("score", ["nan", "inf", "", "five"])
def test_scores_are_numbers(tmp_path: Path, score: str) -> None:
    rows = FOLDERS["STS-B"]
    bad = [*rows["dev.tsv"][1][:-1], score]
    folder = write(tmp_path, {**rows, "dev.tsv": [rows["dev.tsv"][0], bad]})
    with pytest.raises(DataError, match=r"dev\.tsv, line 2, column score: .* is not a number"):
        load_glue("stsb", folder)


def test_known_broken_rows_of_qqp(tmp_path: Path) -> None:
    rows = FOLDERS["QQP"]
    cut = [["9", "1", "2", "How do"], ["I do it", "so", "1"]]
    folder = write(
        tmp_path, {**rows, "train.tsv": rows["train.tsv"][:2] + cut + rows["train.tsv"][2:]}
    )
    assert load_glue("qqp", folder).train.ids == ("133273", "402555")
    write(folder, {"train.tsv": rows["train.tsv"] + cut * 20})
    with pytest.raises(DataError) as caught:
        load_glue("qqp", folder)
    assert len(caught.value.problems) == 40


def test_an_index_that_repeats_gives_way_to_row_numbers(tmp_path: Path) -> None:
    rows = FOLDERS["RTE"]
    again = [*rows["train.tsv"], ["1", "c", "d", "entailment"]]
    assert load_glue("rte", write(tmp_path, {**rows, "train.tsv": again})).train.ids == (
        "0",
        "1",
        "2",
    )


def test_missing_files_and_names(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        load_glue("rte", tmp_path / "nothing")
    with pytest.raises(DataError, match=r"dev_matched.tsv: missing; mnli needs train.tsv, dev_"):
        load_glue("mnli", tmp_path)
    with pytest.raises(SettingsError, match='did you mean "sst2"'):
        load_glue("sst-2", None)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "train", "test"), [("rte", 2490, 277), ("sst2", 67_349, 872)])
def test_real_counts(name: str, train: int, test: int) -> None:
    if not (REAL / GLUE[name].folder).is_dir():
        pytest.skip(f"no {REAL / GLUE[name].folder}")
    dataset = load_glue(name, REAL)
    assert (len(dataset.train), len(dataset.tests["test"])) == (train, test)
    assert len(set(dataset.train.ids)) == train
