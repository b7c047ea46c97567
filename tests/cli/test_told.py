"""What commands say on stderr: of guesses and lengths, of being stopped, and with streams that are closed."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fleetune.cli import options
from fleetune.report import doctor
from fleetune.serve.predictor import Predictor
from fleetune.study.run import Run
from tests.runs import Made, run_cli, texts, write_csv

STUDY = """
[[data]]
file = "{first}"

[[data]]
file = "{second}"
text_columns = ["text"]
label_column = "label"

[backbone]
name = "{backbone}"
dtype = "float32"
max_length = 99999

[confirm]
seeds = 1

[training]
max_steps = 1

[[methods]]
method = "head"
"""


def long_rows(path: Path, words: int) -> Path:
    """Rows of the usual kind, two of them longer than the tiny backbone reads."""
    lines = write_csv(path, 40).read_text().splitlines()
    lines[1:3] = [f"{'w1 ' * words},bad", f"{'w90 ' * words},good"]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_study_tells_guesses_and_lengths(made: Made, tmp_path: Path) -> None:
    first = long_rows(tmp_path / "first.csv", 50)
    second = write_csv(tmp_path / "second.csv", 40, seed=3)
    file = tmp_path / "study.toml"
    text = STUDY.format(first=first, second=second, backbone=made.backbone)
    file.write_text(text, encoding="utf-8-sig")  # as Windows' editors write it
    planned = run_cli("study", file, "--dry-run")
    found = run_cli("study", file, "--output-dir", tmp_path / "run", "--json")
    assert found.code == planned.code == 0, found.err
    for line in found.err.splitlines():
        assert line in planned.err or not ("guessed" in line or "cut" in line)
    assert "guessed for first: text = text (data.text_columns); label = label with 2 classes" in (
        found.err
    )
    assert "guessed for second" not in found.err
    assert "backbone.max_length 99999 is more than the backbone reads: 40 tokens are used" in (
        found.err
    )
    cut = [line for line in found.err.splitlines() if "cut" in line]
    assert cut and all(
        "than 40 tokens" in line and " (first) are longer" in line.replace(" is ", " are ")
        for line in cut
    )


def test_train_tells_a_length_that_is_lowered(made: Made, tmp_path: Path) -> None:
    rows = long_rows(tmp_path / "rows.csv", 50)
    words = ("train", rows, "--backbone", made.backbone, "--method", "head", "--max-steps", 1)
    more = ("--test-data", made.folder / "test.csv", "--dtype", "float32")
    found = run_cli(*words, *more, "--output-dir", tmp_path / "run", "--max-length", 99999)
    assert found.code == 0, found.err
    assert "--max-length 99999 is more than the backbone reads: 40 tokens are used" in found.err
    assert "2 rows of train are longer than 40 tokens and were cut (--max-length)" in found.err
    exact = run_cli(*words, *more, "--output-dir", tmp_path / "exact", "--max-length", 40)
    assert "is more than" not in exact.err


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 75, "out of memory"),
        (OSError(errno.ENOSPC, "No space left on device", "x"), 5, "make room"),
    ],
)
def test_only_what_can_go_on_says_so(
    made: Made,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    told: str,
) -> None:
    def stop(*given: object, **named: object) -> None:
        raise error

    monkeypatch.setattr(Predictor, "predict", stop)
    monkeypatch.setattr(Run, "train", stop)
    predicted = run_cli("predict", made.run, "--text", "w1")
    trained = run_cli(
        *("train", made.folder / "train.csv", "--backbone", made.backbone, "--method", "head"),
        *("--dtype", "float32", "--output-dir", tmp_path / "run"),
    )
    for found in (predicted, trained):
        assert found.code == code and told in found.err and "Traceback" not in found.err
    assert "the same command goes on from here" in trained.err
    assert "goes on" not in predicted.err


def test_a_closed_stdout_is_no_traceback() -> None:
    command = f"{sys.executable} -m fleetune.cli.main --version >&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_closed_stdin_is_nothing_to_predict(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.runs.io.TextIOWrapper", lambda content: None)
    found = run_cli("predict", made.run)
    assert found.code == 2 and "nothing to predict" in found.err


def test_a_folder_in_place_of_rows_is_called_one(made: Made, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    found = run_cli("train", tmp_path / "data", "--output-dir", tmp_path / "run")
    assert found.code == 4 and "this is a folder, but a file is needed" in found.err


def test_doctor_shows_no_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(doctor, "matrix_rate", lambda *given: 100e9)
    monkeypatch.setenv("HF_ENDPOINT", "https://me:hunter2@hub.example/")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))

    def hub() -> str:
        found = run_cli("doctor", "--json")
        assert found.code == 0 and "hunter2" not in found.out + found.err
        assert "hf_mine" not in found.out + found.err
        return next(r["found"] for r in json.loads(found.out) if r["name"] == "hub")

    assert hub().startswith("https://hub.example/, ") and hub().endswith("no token")
    (tmp_path / "token").write_text("hf_mine")  # what `hf auth login` leaves
    assert hub().endswith("a token is set")


def test_doctor_names_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "matrix_rate", lambda *given: 100e9)
    monkeypatch.setattr(doctor, "PACKAGES", ("torch", "no-such-package"))
    found = run_cli("doctor")
    assert found.code == 5 and "no-such-package is missing" in found.out
    assert "install fleetune again" in found.err and "Traceback" not in found.err


def test_a_length_without_room_for_a_word_is_told(made: Made, tmp_path: Path) -> None:
    """A tokenizer that sets four tokens around a pair."""
    from tests.backbone.hub import save_tiny

    backbone = save_tiny(tmp_path / "tiny")
    path = backbone / "tokenizer.json"
    state = json.loads(path.read_text())
    special = {"SpecialToken": {"id": "w0", "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    state["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [special, first, special],
        "pair": [special, first, special, special, second, special],
        "special_tokens": {"w0": {"id": "w0", "ids": [state["model"]["vocab"]["w0"]], "tokens": ["w0"]}},
    }  # fmt: skip
    path.write_text(json.dumps(state))
    rows = tmp_path / "pairs.csv"
    lines = [
        f"{a},{b},{i % 2}" for i, (a, b) in enumerate(zip(texts(30), texts(30, 1), strict=True))
    ]
    rows.write_text("sentence1,sentence2,label\n" + "\n".join(lines) + "\n")
    found = run_cli(
        *(
            "train",
            rows,
            "--backbone",
            backbone,
            "--max-length",
            4,
            "--output-dir",
            tmp_path / "run",
        ),
        *("--method", "head", "--dtype", "float32"),
    )
    assert found.code == 2 and "`max_length > 4` must hold" in found.err and "got 4" in found.err
    assert not (tmp_path / "run").exists()


def test_a_label_that_no_test_row_has_is_told(made: Made, tmp_path: Path) -> None:
    """Scores say nothing of it, and a single row of it is easily a slip of the pen."""
    rows = write_csv(tmp_path / "train.csv", 40)
    with open(rows, "a", encoding="utf-8") as file:
        file.write("w3 w4 w5,legal\nw4 w5,Good \n")
    test = write_csv(tmp_path / "test.csv", 12, seed=7)
    words = ("--methods", "head", "--backbone", made.backbone, "--max-steps", 1)
    told = "no test row has the label Good , legal, so nothing will be known about it"
    alike = 'the labels "Good ", "good" differ in case or spaces alone'
    found = run_cli("train", rows, "--test-data", test, *words, "--output-dir", tmp_path / "run")
    assert found.code == 0 and told in found.err and alike in found.err
    again = run_cli("train", test, "--test-data", test, *words, "--output-dir", tmp_path / "two")
    assert again.code == 0 and "no test row has the label" not in again.err


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8"])
def test_what_a_terminal_cannot_show_is_escaped(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And JSON stays the same JSON."""
    told = {"label": "schlécht", "text": "世界 \N{GRINNING FACE}", "path": os.fsdecode(b"\xfc")}
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="\n")
    monkeypatch.setattr(sys, "stdout", stream)
    options.dump(told)
    options.out("schlécht 世界")
    stream.flush()
    written = stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    value, end = json.JSONDecoder().raw_decode(written)
    assert value == told
    assert (
        written[end:]
        == {
            "latin-1": "\nschlécht \\u4e16\\u754c\n",
            "ascii": "\nschl\\u00e9cht \\u4e16\\u754c\n",
            "utf-8": "\nschlécht 世界\n",
        }[encoding]
    )
