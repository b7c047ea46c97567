"""Ctrl-C, SIGTERM and a closed pipe, in processes of their own: exit codes, what is said, and what is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fleetune.report.facts import run_facts
from fleetune.study import journal
from tests.runs import Made
from tests.study.test_run import assert_same_run

# Each process imports torch and transformers: seconds of processor time, on a busy machine many.
pytestmark = pytest.mark.slow
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
FLEETUNE = (sys.executable, "-m", "fleetune.cli.main")


def train_words(made: Made, folder: Path) -> list[str]:
    return [
        *(*FLEETUNE, "train", "--output-dir", str(folder)),
        *("--data", str(made.folder / "train.csv"), "--test-data", str(made.folder / "test.csv")),
        *("--backbone", str(made.backbone), "--methods", "bitfit,lora", "--seeds", "2"),
        *("--num-train-epochs", "12", "--per-device-train-batch-size", "4", "--dtype", "float32"),
        *("--set", "lora.lora_dropout=0.1", "--learning-rate", "1e-2"),
    ]


@pytest.fixture(scope="module")
def uncut(made: Made, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uncut") / "run"
    subprocess.run(train_words(made, folder), check=True, capture_output=True, env=ENVIRONMENT)
    return folder


@pytest.mark.parametrize(
    ("number", "code", "told"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_a_signal_in_training_leaves_a_run_that_goes_on_to_the_same_numbers(
    made: Made, uncut: Path, tmp_path: Path, number: signal.Signals, code: int, told: str
) -> None:
    folder = tmp_path / "run"
    started = subprocess.Popen(
        train_words(made, folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    path = folder / journal.NAME
    while started.poll() is None and not (
        path.exists() and sum(e["kind"] == "epoch" for e in journal.read(path)) >= 6
    ):
        time.sleep(0.02)
    started.send_signal(number)
    out, err = started.communicate(timeout=300)
    assert started.returncode == code, err
    assert out == "" and told in err and "goes on from here" in err and "Traceback" not in err
    facts = run_facts(folder)
    assert facts["study"]["status"] == "stopped"
    assert any(t["epochs"] for t in facts["trials"]) and list((folder / "checkpoints").iterdir())
    shown = subprocess.run(
        [*FLEETUNE, "show", str(folder)], capture_output=True, text=True, env=ENVIRONMENT
    )
    assert shown.returncode == 0 and "not finished" in shown.stderr
    again = subprocess.run(train_words(made, folder), capture_output=True, env=ENVIRONMENT)
    assert again.returncode == 0, again.stderr.decode()
    assert_same_run(folder, uncut)


def test_a_reader_that_has_gone_is_no_traceback(made: Made) -> None:
    words = [*FLEETUNE, "show", str(made.run), "--json"]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
    ) as shown:
        assert shown.stdout is not None and shown.stderr is not None
        shown.stdout.close()
        err = shown.stderr.read().decode()
        shown.wait(timeout=300)
    assert "Traceback" not in err and "BrokenPipe" not in err


def test_exit_codes_are_those_of_the_process(made: Made, tmp_path: Path) -> None:
    """What the other tests read in this process is what a shell sees."""
    for words, code in (
        (["show", str(made.run), "--json"], 0),
        (["show", str(tmp_path)], 2),
        (["evaluate", str(made.run), "--data", str(tmp_path / "none.csv")], 4),
        (["export", str(made.run), "--output", str(made.run)], 6),
    ):
        done = subprocess.run(
            [*FLEETUNE, *words], capture_output=True, text=True, env=ENVIRONMENT, timeout=300
        )
        assert done.returncode == code, done.stderr
        assert (done.stdout != "") == (code == 0) and "Traceback" not in done.stderr
        if code == 0:
            assert json.loads(done.stdout)["study"]["status"] == "done"


def test_an_interrupt_while_the_command_is_loaded_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fleetune.__main__ import main

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fleetune.cli.main.main", interrupted)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 130 and capsys.readouterr().err == "fleetune: interrupted\n"
