"""`fleetune predict`, `evaluate` and `export`, in this process, on finished runs."""

from __future__ import annotations

import csv
import json
import resource
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fleetune.errors import DataError, safe_text
from fleetune.report.facts import run_facts
from fleetune.report.model_facts import seen_by
from fleetune.report.winner import winner
from fleetune.serve.predictor import Predictor
from fleetune.study.prepare import DataSettings
from tests import runs
from tests.runs import Made, run_cli, settings, train, tree, write_csv, write_glue

TEXTS = runs.texts(12, seed=9)


@pytest.fixture(scope="module")
def expected(made: Made) -> list[dict]:
    """Predictions of one trial for TEXTS, from Python."""
    found = Predictor(made.run / "trials/lora-s0").predict(TEXTS)
    return [p.as_json() for p in found]


@pytest.fixture(scope="module")
def pairs(made: Made, tmp_path_factory) -> Path:
    """A run on pairs of texts."""
    from dataclasses import replace

    folder = tmp_path_factory.mktemp("pairs")
    file = write_csv(folder / "pairs.csv", 60, pairs=True)
    data = DataSettings(file=str(file), text_columns=("first", "second"), label_column="label")
    given = settings(made.folder, made.backbone, ["head"], seeds=[0], num_train_epochs=1)
    train(folder / "run", replace(given, data=data))
    return folder / "run"


def write_rows(path: Path, texts: list[str]) -> Path:
    """One column `text` in the format of the extension."""
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"text": texts}), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    else:
        with path.open("w", newline="") as file:
            rows = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            rows.writerows([["text"], *([t] for t in texts)])
    return path


def test_json_is_a_list_in_input_order(made: Made, expected: list[dict]) -> None:
    words = [word for text in TEXTS for word in ("--text", text)]
    found = run_cli("predict", made.run / "trials/lora-s0", *words, "--json")
    assert found.code == 0 and json.loads(found.out) == expected
    for one in expected:
        assert list(one) == ["label", "probabilities"]
        assert list(one["probabilities"]) == ["bad", "good"]
        assert sum(one["probabilities"].values()) == pytest.approx(1, abs=1e-9)
        assert one["label"] == max(one["probabilities"], key=one["probabilities"].__getitem__)
    assert {one["label"] for one in expected} == {"bad", "good"}


def test_texts_on_stdin(made: Made, expected: list[dict]) -> None:
    trial = made.run / "trials/lora-s0"
    found = run_cli("predict", trial, "--json", stdin="\n".join(TEXTS) + "\n\n")
    assert json.loads(found.out) == expected
    # A blank line between would shift every answer after it.
    gap = run_cli("predict", trial, "--json", stdin="w1\n\nw2\n")
    assert (gap.code, gap.out) == (4, "") and "line 2: empty" in gap.err
    empty = run_cli("predict", trial, "--text", "w1", "--text", " ")
    assert (empty.code, empty.out) == (4, "") and "text 2: empty" in empty.err


def test_what_is_not_utf8_is_told_with_its_place(made: Made) -> None:
    trial = made.run / "trials/lora-s0"
    for wrong, told in (
        (b"w1\ncaf\xe9 w2\n", "line 2, byte 6: not UTF-8 (0xe9)"),
        ("w1\n".encode("utf-16"), "this is UTF-16"),
        (b"w1\nw\0\n", "line 2, byte 4: a NUL byte"),
    ):
        found = run_cli("predict", trial, stdin=wrong)
        assert (found.code, found.out) == (4, "") and f"stdin: 1 problem\n  - {told}" in (
            found.err.replace("line 1, byte 0: ", "")
        )
    # A byte of the command line that is not UTF-8 arrives as half of a surrogate pair.
    found = run_cli("predict", trial, "--text", "w1", "--text", "caf\udce9")
    assert (found.code, found.out) == (4, "") and "text 2: not UTF-8" in found.err
    marked = run_cli("predict", trial, "--json", stdin=b"\xef\xbb\xbfw1 w2\r\nw80\r\n")
    plain = run_cli("predict", trial, "--json", "--text", "w1 w2", "--text", "w80")
    assert marked.code == 0 and marked.out == plain.out


def test_texts_that_are_cut_are_counted(made: Made, tmp_path: Path) -> None:
    most = Predictor(made.run).record.max_length
    long = "w1 " * (most + 1)
    found = run_cli("predict", made.run, "--text", "w1", "--text", long)
    assert (
        found.code == 0
        and f"1 row of the input is longer than {most} tokens and was cut" in found.err
    )
    assert "cut" not in run_cli("predict", made.run, "--text", "w1").err
    rows = tmp_path / "long.csv"
    rows.write_text(f"text,label\n{long},bad\n{long},good\nw80,good\n")
    found = run_cli("evaluate", made.run, "--data", rows, "--json")
    assert f"2 rows of long.csv are longer than {most} tokens and were cut" in found.err
    assert json.loads(found.out)["sets"][0]["truncated"] == 2


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_files_in_and_out(made: Made, tmp_path: Path, expected: list[dict], kind: str) -> None:
    rows = write_rows(tmp_path / f"in.{kind}", TEXTS)
    output = tmp_path / "new" / "out.jsonl"
    trial = made.run / "trials/lora-s0"
    found = run_cli("predict", trial, "--input", rows, "--output", output)
    assert (found.code, found.out) == (0, "") and "12 predictions written" in found.err
    assert [json.loads(line) for line in output.read_text().splitlines()] == expected
    assert [p.name for p in output.parent.iterdir()] == ["out.jsonl"]


def test_columns_of_the_input_go_along(made: Made, tmp_path: Path) -> None:
    rows = tmp_path / "in.csv"
    ids = ["007", "", "=1+1", *(f"r{i}" for i in range(3, 12))]
    cells = zip(ids, TEXTS, range(12), strict=True)
    rows.write_text("id,text,n\n" + "".join(f"{i},{t},{n}\n" for i, t, n in cells))
    words = ("predict", made.run / "trials/lora-s0", "--input", rows)
    plain = json.loads(run_cli(*words, "--json").out)
    keep = ("--keep-column", "id", "--keep-column", "text")

    assert run_cli(*words, *keep, "--output", tmp_path / "out.jsonl").code == 0
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    beside = [{"id": i, "text": t} for i, t in zip(ids, TEXTS, strict=True)]
    assert lines == [a | b for a, b in zip(beside, plain, strict=True)]
    assert json.loads(run_cli(*words, *keep, "--json").out) == lines

    assert run_cli(*words, *keep, "--output", tmp_path / "out.csv").code == 0
    with (tmp_path / "out.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert list(found[0]) == ["id", "text", "label", "probability"]
    assert [row["id"] for row in found] == ["007", "", "'=1+1", *ids[3:]]
    assert [row["label"] for row in found] == [one["label"] for one in plain]
    shown = run_cli(*words, "--keep-column", "n").out.splitlines()
    assert shown[0].split() == ["n", "label", "probability", "text"]
    assert [line.split()[0] for line in shown[2:]] == [str(n) for n in range(12)]


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_kept_cells_are_of_the_kind_that_they_were(made: Made, tmp_path: Path, form: str) -> None:
    """Ids are joined by later, and texts in a CSV are themselves: joiners, hard blanks and marks of direction too."""
    texts = ["Prix : 5\u00a0€", "m\u200cx", "👨\u200d👩\u200d👧", "\u200fy"]
    beside = [{"id": -i, "seen": i % 2 == 0, "note": t} for i, t in enumerate(texts)]
    rows = tmp_path / f"in.{form}"
    given = [{"text": "w1 w2", **one} for one in beside]
    if form == "jsonl":
        rows.write_text("".join(f"{json.dumps(one)}\n" for one in given))
    else:
        pq.write_table(pa.Table.from_pylist(given), rows)
    keep = [w for name in beside[0] for w in ("--keep-column", name)]
    words = ("predict", made.run, "--input", rows, *keep)
    found = json.loads(run_cli(*words, "--json").out)
    assert [{k: one[k] for k in beside[0]} for one in found] == beside
    assert found[0]["seen"] is True and type(found[1]["id"]) is int
    assert "false" in run_cli(*words).out
    assert run_cli(*words, "--output", tmp_path / "out.csv").code == 0
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        written = list(csv.DictReader(file))
    assert [row["note"] for row in written] == texts
    assert [(row["id"], row["seen"]) for row in written[:2]] == [("0", "true"), ("-1", "false")]
    assert safe_text("a\u202eb\r\n\x1b[2J") == "a\\u202eb\\r\\n\\x1b[2J"


def test_what_cannot_be_kept_is_refused(made: Made, tmp_path: Path) -> None:
    rows = tmp_path / "in.jsonl"
    rows.write_text(json.dumps({"text": "w1", "label": "good", "score": 0.5}) + "\n")
    words = ("predict", made.run, "--input", rows, "--keep-column")
    own, float_cell, missing = (run_cli(*words, name) for name in ("label", "score", "ident"))
    assert own.code == 2 and "predictions have a label of their own" in own.err
    assert float_cell.code == 4 and "line 1, column score: a float" in float_cell.err
    assert missing.code == 4 and "name another with --keep-column" in missing.err
    no_file = run_cli("predict", made.run, "--text", "w1", "--keep-column", "id")
    assert no_file.code == 2 and "give --input" in no_file.err


@contextmanager
def largest_file(size: int) -> Generator[None]:
    """No file of this process may grow beyond so many bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_output_is_written_whole_or_not_at_all(made: Made, tmp_path: Path) -> None:
    rows, output = write_rows(tmp_path / "in.csv", TEXTS), tmp_path / "out" / "out.jsonl"
    output.parent.mkdir()
    output.write_text("what was there before")
    words = ("predict", made.run / "trials/lora-s0", "--input", rows, "--output", output)
    with largest_file(200):
        found = run_cli(*words)
    assert found.code == 5 and "make room" in found.err and "Traceback" not in found.err
    assert str(output) in found.err and "bytes free" in found.err
    assert tree(output.parent) == {"out.jsonl": b"what was there before"}
    assert run_cli(*words).code == 0 and len(output.read_text().splitlines()) == 12


def test_a_full_disk_stops_a_training_that_can_go_on(made: Made, tmp_path: Path) -> None:
    words = (
        *("train", "--data", made.folder / "train.csv", "--test-data", made.folder / "test.csv"),
        *("--backbone", made.backbone, "--dtype", "float32", "--method", "lora", "--seed", 0),
        *("--num-train-epochs", 2),
    )
    with largest_file(9_000):  # room for the journal and not for a snapshot
        found = run_cli(*words, "--output-dir", tmp_path / "run")
    assert found.code == 5 and "bytes free" in found.err and "Traceback" not in found.err
    assert run_facts(tmp_path / "run")["study"]["status"] != "done"
    assert run_cli(*words, "--output-dir", tmp_path / "run").code == 0
    assert run_cli(*words, "--output-dir", tmp_path / "whole").code == 0
    a, b = (tree(tmp_path / name / "trials/lora-s0") for name in ("run", "whole"))
    name = "adapter_model.safetensors"
    assert a.keys() == b.keys() and a[name] == b[name]


def test_the_input_is_never_overwritten(made: Made, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", TEXTS)
    before = rows.read_bytes()
    found = run_cli("predict", made.run, "--input", rows, "--output", tmp_path / "." / "rows.jsonl")
    assert found.code == 6 and rows.read_bytes() == before


def test_files_of_a_run_or_a_model_are_never_overwritten(made: Made, tmp_path: Path) -> None:
    shutil.copytree(made.run, tmp_path / "run")
    (tmp_path / "run/checkpoints/s.json").write_text("a snapshot")
    before = tree(tmp_path)
    trial = tmp_path / "run/trials/lora-s0"
    for name in (
        "journal.jsonl",
        "study.toml",
        "trials/lora-s0/metrics.json",
        "checkpoints/s.json",
    ):
        words = ("--text", "w1", "--output", tmp_path / "run" / name)
        found = run_cli("predict", trial, *words)
        assert found.code == (6) and "exists, in the folder of a run or a model" in found.err
        assert tree(tmp_path) == before
    # A new file may stand there, and what predict wrote elsewhere is written anew.
    for _ in range(2):
        assert run_cli("predict", trial, "--text", "w1", "--output", tmp_path / "a.csv").code == 0
    assert (
        run_cli("predict", trial, "--text", "w1", "--output", tmp_path / "run/new.jsonl").code == 0
    )


def test_report_replaces_reports_and_nothing_else(made: Made, tmp_path: Path) -> None:
    shutil.copytree(made.run, tmp_path / "run")
    journal = (tmp_path / "run/journal.jsonl").read_bytes()
    (tmp_path / "thesis.tex").write_text("years of work")
    page = "<!doctype html>\n<html><head><title>years of work</title></head></html>"
    (tmp_path / "mine.html").write_text(page)
    for name in ("run/journal.jsonl", "thesis.tex", "mine.html"):
        found = run_cli("report", tmp_path / "run", "--output", tmp_path / name)
        assert found.code == 6 and "exists and is no report" in found.err
    assert (tmp_path / "run/journal.jsonl").read_bytes() == journal
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    assert (tmp_path / "mine.html").read_text() == page
    for earlier in (
        "<title>Which? - Fleetune</title>",
        '<meta name="generator" content="Fleetune">',
    ):
        (tmp_path / "r.html").write_text(f"<!doctype html>\n<head>{earlier}</head>an earlier one")
        assert run_cli("report", tmp_path / "run", "--output", tmp_path / "r.html").code == 0
        assert "an earlier one" not in (tmp_path / "r.html").read_text()
    assert run_cli("report", tmp_path / "run", "--output", tmp_path / "r.html").code == 0


def test_a_place_that_cannot_be_written_is_told_before_anything_is_predicted(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Predictor, "__init__", None)  # not even loaded
    (tmp_path / "file").touch()
    for name, code, told in (
        ("out.parquet", 2, "CSV (.csv) and JSON Lines (.jsonl) can be written"),
        ("out.TSV", 2, "CSV (.csv) and JSON Lines (.jsonl) can be written"),
        ("file/out.csv", 5, "Not a directory"),
        ("file/new/out.csv", 5, "Not a directory"),
        (".", 5, "Is a directory"),
    ):
        found = run_cli("predict", made.run, "--text", "w1", "--output", tmp_path / name)
        assert (found.code, found.out) == (code, "") and told in found.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


def test_the_next_command_of_a_model_of_pairs_has_two_texts(pairs: Path, tmp_path: Path) -> None:
    rows = write_csv(tmp_path / "rows.csv", 6, pairs=True)
    (trial,) = (pairs / "trials").iterdir()
    for words in (
        ("show", pairs),
        ("show", pairs, trial.name),
        ("evaluate", pairs, "--data", rows),
    ):
        found = run_cli(*words)
        assert found.code == 0 and '--text "..." --text "..."' in found.err
    page = run_cli("report", pairs, "--output", tmp_path / "r.html")
    assert page.code == 0
    assert "--text &#34;...&#34; --text &#34;...&#34;" in (tmp_path / "r.html").read_text()


def test_a_run_stands_for_its_winner(made: Made) -> None:
    best = winner(run_facts(made.run))
    assert best is not None
    by_run, by_trial = (
        run_cli("predict", path, "--text", "w1 w2", "--text", "w80", "--json")
        for path in (made.run, made.run / "trials" / best["id"])
    )
    assert by_run.code == 0 and by_run.out == by_trial.out


def test_pairs_are_given_two_by_two(pairs: Path, tmp_path: Path) -> None:
    found = run_cli("predict", pairs, "--text", "w1", "--text", "w2", "--json")
    assert found.code == 0 and len(json.loads(found.out)) == 1
    other = run_cli("predict", pairs, "--text", "w90", "--text", "w95 w80", "--json")
    texts = [word for text in ("w1", "w2", "w90", "w95 w80") for word in ("--text", text)]
    both = json.loads(run_cli("predict", pairs, *texts, "--json").out)
    for one, alone in zip(both, [*json.loads(found.out), *json.loads(other.out)], strict=True):
        assert one["probabilities"] == pytest.approx(alone["probabilities"], abs=1e-6)
    odd = run_cli("predict", pairs, "--text", "w1")
    assert odd.code == 2 and "reads pairs (first, second)" in odd.err
    rows = write_csv(tmp_path / "rows.csv", 6, pairs=True)
    named = run_cli(
        *("predict", pairs, "--input", rows, "--json"),
        *("--text-column", "first", "--text-column", "second"),
    )
    assert named.out == run_cli("predict", pairs, "--input", rows, "--json").out
    assert len(json.loads(named.out)) == 6
    one = run_cli("predict", pairs, "--input", rows, "--text-column", "first")
    assert one.code == 2 and "--text-column" in one.err
    exported = run_cli("export", pairs, "--output", tmp_path / "model")
    assert exported.code == 0, exported.err
    found = [
        json.loads(run_cli("predict", m, "--input", rows, "--json", "--dtype", "float32").out)
        for m in (pairs, tmp_path / "model")
    ]
    for a, b in zip(*found, strict=True):
        assert a["probabilities"] == pytest.approx(b["probabilities"], abs=1e-5)


def test_evaluate_a_file_gives_what_the_run_measured(made: Made) -> None:
    trial = made.run / "trials/bitfit-s1"
    found = run_cli("evaluate", trial, "--data", made.folder / "test.csv", "--json")
    assert found.code == 0, found.err
    facts = json.loads(found.out)
    assert list(facts) == ["model", "task", "sets"]
    (one,) = facts["sets"]
    assert one["set"] == "test.csv" and one["n"] == 24
    test = json.loads((trial / "metrics.json").read_bytes())["test"]
    assert {m: v["value"] for m, v in one["metrics"].items()} == pytest.approx(
        {m: test[m] for m in ("accuracy", "f1")}
    )
    for v in one["metrics"].values():
        assert v["low"] <= v["value"] <= v["high"] and v["n"] == 24 and v["seeds"] == 1
    table = run_cli("evaluate", trial, made.folder / "test.csv")
    assert f"{100 * test['accuracy']:.2f}" in table.out and "Wilson" in table.out


def test_evaluate_says_which_rows_the_model_was_trained_on(made: Made, tmp_path: Path) -> None:
    """Where the run's data are at hand; a model that was taken out of its run cannot tell."""
    trial = made.run / "trials/lora-s0"

    def seen(model: Path, rows: str) -> tuple[int | None, str]:
        found = run_cli("evaluate", model, "--data", made.folder / rows, "--json")
        assert found.code == 0, found.err
        return json.loads(found.out)["sets"][0]["in_train"], found.err

    count, told = seen(trial, "train.csv")
    assert count == 60 and "60 of the 60 rows of train.csv stand in train too" in told
    count, told = seen(made.run, "test.csv")
    assert count == 0 and "stand in train" not in told
    shutil.copytree(trial, tmp_path / "alone")
    assert seen(tmp_path / "alone", "train.csv")[0] is None
    shutil.copytree(made.run, tmp_path / "forged")
    (tmp_path / "forged/environment.json").write_text("{}")
    assert seen(tmp_path / "forged/trials/lora-s0", "train.csv")[0] is None


def test_the_rows_of_a_run_are_found_from_any_folder(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begun with a relative path, asked from elsewhere; not where other rows lie under that name."""
    (tmp_path / "work").mkdir()
    (tmp_path / "else").mkdir()
    shutil.copy(made.folder / "train.csv", tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    found = run_cli(
        *("train", "train.csv", "--backbone", made.backbone, "--method", "head", "--max-steps", 1),
        *("--dtype", "float32", "--output-dir", "runs/first"),
    )
    assert found.code == 0, found.err
    (trial,) = (tmp_path / "work/runs/first/trials").iterdir()
    monkeypatch.chdir(tmp_path / "else")
    seen = seen_by(trial, "train")
    assert seen is not None and len(seen.train) == 54 and not seen.chose
    shutil.copy(made.folder / "test.csv", "train.csv")
    again = seen_by(trial, "train")
    assert again is not None and again.train.first == seen.train.first
    shutil.copy(made.folder / "test.csv", tmp_path / "work/train.csv")
    assert seen_by(trial, "train") is None
    told = run_cli("evaluate", trial, "--data", made.folder / "test.csv", "--json")
    assert "are not at hand" in told.err and json.loads(told.out)["sets"][0]["in_train"] is None


def test_rows_that_chose_the_epoch_are_optimistic_in_evaluate_too(
    made: Made, tmp_path: Path
) -> None:
    found = run_cli(
        *("train", made.folder / "train.csv", "--test-data", made.folder / "test.csv"),
        *("--backbone", made.backbone, "--method", "head", "--max-steps", 1, "--protocol", "paper"),
        *("--dtype", "float32", "--output-dir", tmp_path / "run"),
    )
    assert found.code == 0, found.err
    chose, fresh = made.folder / "test.csv", tmp_path / "fresh.csv"
    fresh.write_text("text,label\nw1 w2 w3 w4 w5 w6 w7,good\nw7 w6 w5 w4 w3 w2 w1,bad\n")
    for rows, stamped in ((chose, True), (fresh, False)):
        told = run_cli("evaluate", tmp_path / "run", "--data", rows, "--json")
        metrics = json.loads(told.out)["sets"][0]["metrics"].values()
        assert {m["optimistic"] for m in metrics} == {stamped}
        assert ("chose this model's epoch" in told.err) == stamped
        assert ("accuracy (optimistic)" in run_cli("evaluate", tmp_path / "run", "--data", rows).out) == stamped  # fmt: skip
    # Away from its run a model knows the sets that chose, whole, and of other rows says that it does not know.
    assert run_cli("export", tmp_path / "run", "--output", tmp_path / "merged").code == 0
    (trial,) = (tmp_path / "run/trials").iterdir()
    for model in (tmp_path / "merged", shutil.copytree(trial, tmp_path / "alone/copy")):
        for rows, stamped in ((chose, True), (fresh, False)):
            told = run_cli("evaluate", model, "--data", rows, "--json")
            metrics = json.loads(told.out)["sets"][0]["metrics"].values()
            assert {m["optimistic"] for m in metrics} == {stamped}, told.err
            assert ("chose its epoch is not known" in told.err) != stamped


def test_evaluate_on_a_task(made: Made, tmp_path: Path) -> None:
    write_glue(tmp_path, "MNLI")
    given = settings(made.folder, made.backbone, ["head"], seeds=[0], num_train_epochs=1)
    train(tmp_path / "run", runs.on_task(given, "mnli", tmp_path))
    found = run_cli(
        "evaluate", tmp_path / "run", "--task", "mnli", "--data-dir", tmp_path, "--json"
    )
    facts = json.loads(found.out)
    assert facts["task"] == "mnli"
    assert [s["set"] for s in facts["sets"]] == ["test_matched", "test_mismatched"]
    assert [s["n"] for s in facts["sets"]] == [21, 22]
    other = run_cli("evaluate", made.run, "--task", "mnli", "--data-dir", tmp_path)
    assert other.code == 4 and "the model gives bad, good" in other.err


def test_of_several_test_sets_the_first_chose_the_epoch(made: Made, tmp_path: Path) -> None:
    write_glue(tmp_path, "MNLI")
    given = settings(made.folder, made.backbone, ["head"], seeds=[0], num_train_epochs=1)
    train(tmp_path / "run", runs.on_task(given, "mnli", tmp_path, protocol="paper"))
    away = shutil.copytree(tmp_path / "run/trials/head-s0", tmp_path / "alone/copy")
    for model in (tmp_path / "run", away):
        found = run_cli("evaluate", model, "--task", "mnli", "--data-dir", tmp_path, "--json")
        stamped = [
            {m["optimistic"] for m in s["metrics"].values()} for s in json.loads(found.out)["sets"]
        ]
        assert stamped == [{True}, {False}], found.err


def test_an_empty_text_of_a_task_is_evaluated_as_it_was_trained(made: Made, tmp_path: Path) -> None:
    """GLUE's files may hold one, and a training takes it; what a user types is refused where it is typed."""
    (tmp_path / "SST-2").mkdir()
    for name, n in (("train", 40), ("dev", 12)):
        lines = [f"{text}\t{i % 2}" for i, text in enumerate(runs.texts(n, seed=n))]
        lines[3] = "\t1"
        (tmp_path / f"SST-2/{name}.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
    given = settings(made.folder, Path("minilm"), ["head"], seeds=[0], num_train_epochs=1)
    train(tmp_path / "run", runs.on_task(given, "sst2", tmp_path))
    words = ("evaluate", tmp_path / "run", "--task", "sst2", "--data-dir", tmp_path, "--json")
    found = run_cli(*words)
    # A tokenizer that sets nothing around a text has no token for it.
    bare = runs.on_task(replace(given, backbone=str(made.backbone)), "sst2", tmp_path)
    with pytest.raises(DataError, match="row 3: no token comes of it"):
        train(tmp_path / "bare", bare)
    assert found.code == 0 and json.loads(found.out)["sets"][0]["n"] == 12, found.err


def test_labels_that_the_model_does_not_know_are_listed(made: Made, tmp_path: Path) -> None:
    rows = write_csv(tmp_path / "rows.csv", 4, labels=("bad", "awful"))
    found = run_cli("evaluate", made.run, "--data", rows)
    assert (found.code, found.out) == (4, "")
    assert "2 problems" in found.err and "line 3" in found.err and '"awful"' in found.err
    both = run_cli("evaluate", made.run, "--data", rows, "--task", "rte")
    twice = run_cli("evaluate", made.run, rows, "--data", rows)
    assert twice.code == 2 and "alone, or --task, or --data, and not both" in twice.err
    neither = run_cli("evaluate", made.run)
    assert both.code == neither.code == 2 and "either" in both.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("evaluate", "--task", "rte", "--label-column", "zzz"), "--label-column is for --data"),
        (("evaluate", "--task", "rte", "--text-column", "zzz"), "--text-column is for --data"),
        (("evaluate", "--data", "rows.csv", "--data-dir", "GLUE"), "--data-dir is for --task"),
        (("predict", "--text", "w1", "--text-column", "zzz"), "a column of --input"),
        (("predict", "--text", "w1", "--output", "x.csv", "--json"), "--json prints"),
    ],
)
def test_flags_that_would_change_nothing_are_refused(made: Made, words: tuple, told: str) -> None:
    command, *rest = words
    found = run_cli(command, made.run, *rest)
    assert (found.code, found.out) == (2, "") and told in found.err


def test_export_never_writes_into_what_is_there(made: Made, tmp_path: Path) -> None:
    trial = made.run / "trials/head-s0"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("mine")
    for name in ("mine", "file"):
        found = run_cli("export", trial, "--output", tmp_path / name)
        assert found.code == 6 and found.out == ""
    assert tree(tmp_path) == {"mine/thesis.tex": b"years of work", "file": b"mine"}
    (tmp_path / "empty").mkdir()
    assert run_cli("export", trial, "--output", tmp_path / "empty").code == 0
    twice = run_cli("export", trial, "--output", tmp_path / "empty")
    assert twice.code == 6
    wrong = run_cli("export", trial, "--output", tmp_path / "x", "--format", "hff")
    assert wrong.code == 2 and 'did you mean "hf"?' in wrong.err
    again = run_cli("export", tmp_path / "empty", "--output", tmp_path / "y")
    assert again.code == 2 and not (tmp_path / "y").exists()


def test_a_run_exports_its_winner(made: Made, tmp_path: Path) -> None:
    best = winner(run_facts(made.run))
    assert best is not None
    for path, name in ((made.run, "a"), (made.run / "trials" / best["id"], "b")):
        assert run_cli("export", path, "--output", tmp_path / name).code == 0
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_no_model_there(made: Made, tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", tmp_path, made.folder / "train.csv"):
        found = run_cli("predict", path, "--text", "w1")
        assert found.code == 2 and str(path) in found.err and "Traceback" not in found.err
        assert run_cli("show", path).code == 2
    missing = run_cli("predict", made.run, "--input", tmp_path / "none.csv")
    assert missing.code == 4 and "none.csv" in missing.err
    unknown = run_cli("predict", made.run, "--input", made.folder / "tiny/config.json")
    assert unknown.code == 4 and ".jsonl" in unknown.err


def test_a_backbone_folder_named_from_elsewhere_is_found(
    made: Made, tmp_path: Path, monkeypatch
) -> None:
    """Trained with a relative path in one folder, used in another."""
    shutil.copytree(made.backbone, tmp_path / "here" / "tiny")
    monkeypatch.chdir(tmp_path / "here")
    words = ("--data", made.folder / "train.csv", "--method", "head", "--max-steps", 1)
    assert run_cli("train", *words, "--backbone", "tiny", "--output-dir", "run").code == 0
    monkeypatch.chdir(tmp_path)
    found = run_cli("predict", "here/run", "--text", "w1", "--json")
    assert found.code == 0, found.err
    assert np.isfinite(list(json.loads(found.out)[0]["probabilities"].values())).all()


def test_a_backbone_that_python_named_by_a_relative_path_is_found_from_elsewhere(
    made: Made, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(made.folder)
    given = settings(made.folder, Path("tiny"), ["head"], seeds=[0], max_steps=1)
    train(tmp_path / "run", given)
    monkeypatch.chdir(tmp_path)
    assert len(Predictor(tmp_path / "run").predict(["w1"])) == 1


def test_evaluate_takes_the_columns_of_the_training(made: Made, tmp_path: Path) -> None:
    """A model remembers what its columns were called; flags name others, and an older model guesses by the names."""
    rows = [line.split(",") for line in (made.folder / "train.csv").read_text().splitlines()[1:]]

    def write(name: str, text: str, label: str) -> Path:
        lines = [f"note,{label},{text}", *(f"x{i},{b},{a}" for i, (a, b) in enumerate(rows))]
        path = tmp_path / name
        path.write_text("\n".join(lines) + "\n")
        return path

    file = write("stars.csv", "opinion", "stars")
    found = run_cli(
        *("train", "--data", file, "--text-column", "opinion", "--label-column", "stars"),
        *("--backbone", made.backbone, "--method", "head", "--max-steps", 1, "--dtype", "float32"),
        *("--output-dir", tmp_path / "run"),
    )
    assert found.code == 0, found.err
    own = run_cli("evaluate", tmp_path / "run", "--data", file, "--json")
    assert own.code == 0 and json.loads(own.out)["sets"][0]["n"] == 60, own.err
    other = write("other.csv", "body", "mark")
    words = ("evaluate", tmp_path / "run", "--data", other, "--json")
    missing = run_cli(*words)
    assert missing.code == 4 and "column opinion: missing" in missing.err
    named = run_cli(*words, "--text-column", "body", "--label-column", "mark")
    assert (
        named.code == 0
        and json.loads(named.out)["sets"][0]["metrics"] == json.loads(own.out)["sets"][0]["metrics"]
    )
    (trial,) = (tmp_path / "run/trials").iterdir()
    record = json.loads((trial / "fleetune.json").read_bytes())
    assert record.pop("label_column") == "stars"
    del record["sha256"]  # so old a record has none
    (trial / "fleetune.json").write_text(json.dumps(record))
    usual = write("usual.csv", "opinion", "target")
    assert run_cli("evaluate", trial, "--data", usual, "--json").code == 0
