"""Help with examples, the right flag for a wrong one, completion, and what every command says at its end."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from fleetune.cli import shell
from fleetune.data.load import TASK_NAMES
from fleetune.methods.table import METHODS
from fleetune.study.prepare import DTYPES
from tests.runs import Made, run_cli

COMMANDS = (
    "demo", "train", "study", "show", "report", "predict", "evaluate", "export", "serve", "methods", "doctor",
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples_a_line_each(command: str) -> None:
    found = run_cli(command, "--help")
    assert found.code == 0
    _, told, rest = found.out.partition("\n  Example")
    assert told, f"{command} has no example"
    lines = rest.split("\n\n")[0].splitlines()[1:]
    assert lines and all(line.startswith(f"    fleetune {command}") for line in lines)


def test_all_commands_were_looked_at() -> None:
    told = run_cli("--help").out
    listed = re.findall(r"^  ([a-z]+)  ", told[told.index("Commands") :], re.M)
    assert set(listed) == set(COMMANDS)


@pytest.mark.parametrize(
    ("flag", "right"),
    [
        ("--lr", "--learning-rate"),
        ("--model_name_or_path", "--backbone"),
        ("--num_train_epochs", "--num-train-epochs"),
        ("--learning-rat", "--learning-rate"),
        ("--lora-r", "--set"),
        ("--weigth-decay", "--weight-decay"),
    ],
)
def test_a_wrong_flag_is_answered_with_the_right_one(flag: str, right: str) -> None:
    found = run_cli("train", "--output-dir", "x", flag, "1")
    assert found.code == 2 and found.out == ""
    last = found.err.splitlines()[-1]
    assert right in last and "--help" not in last


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("predict", "run", "a text"), "a text is given with --text, a file of texts with --input"),
        (("show", "run", "trial", "more"), "words that belong together stand in quotes"),
    ],
)
def test_a_word_too_many_is_told_where_it_belongs(words: tuple[str, ...], told: str) -> None:
    found = run_cli(*words)
    assert found.code == 2 and found.out == ""
    assert found.err.splitlines()[-1].endswith(told)


def test_every_other_name_leads_to_a_flag_that_there_is() -> None:
    known = run_cli("train", "--help").out + run_cli("export", "--help").out
    for other, own in shell.OTHER_NAMES.items():
        assert re.search(rf"{own}\b", known), f"{other} leads to {own}"
        assert not re.search(rf"(?<!\S){other}(?![\w-])", run_cli("train", "--help").out), other


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("trian",), "Did you mean 'train'?"),
        (("methods", "lorra"), 'did you mean "lora"?'),
        (("train", "--task", "rte", "--optim", "adam"), "there is none: AdamW, torch's own"),
        (("train", "--task", "rte", "--evaluation-strategy", "epoch"), "every epoch is evaluated"),
        (
            ("train", "--task", "rte", "--task", "cola", "--dry-run"),
            "several are trained by a study",
        ),
        (
            ("train", "--task", "demo-sentiment", "--data-dir", "d", "--dry-run"),
            "is embedded; leave it out",
        ),
        (("train", "--task", "sst-2", "--output-dir", "x"), 'did you mean "sst2"?'),
        (("train", "--task", "rte", "--method", "bitfti", "--output-dir", "x"), '"bitfit"?'),
        (("train", "--task", "rte", "--set", "lora_alhpa=1", "--output-dir", "x"), '"lora_alpha"?'),
        (("train", "--task", "rte", "--protocol", "holdot", "--output-dir", "x"), '"holdout"?'),
        (("train", "--task", "rte", "--dtype", "float23", "--output-dir", "x"), '"float32"?'),
        (("train", "--task", "rte", "--dtype", "int8", "--output-dir", "x"), "choose from auto, "),
        (("train", "--task", "rte", "--protocol", "x", "--output-dir", "x"), "from holdout, paper"),
        (
            (
                "train",
                "--task",
                "demo-sentiment",
                "--lr-scheduler-type",
                "linaer",
                "--output-dir",
                "x",
            ),
            '"linear"?',
        ),
        (("export", ".", "--format", "onxx", "--output", "x"), 'did you mean "onnx"?'),
    ],
)
def test_a_wrong_name_gets_the_nearest(words: tuple[str, ...], told: str) -> None:
    found = run_cli(*words)
    assert found.code == 2 and told in found.err


def complete(words: str) -> list[str]:
    """What bash would offer for the last word."""
    program = "import sys; sys.argv = ['fleetune']; from fleetune.cli.main import main; main()"
    asked = {
        "_FLEETUNE_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **asked},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.stdout.split()


def test_the_shell_completes_commands_flags_and_names() -> None:
    assert complete("fleetune me") == ["methods"]
    assert "--learning-rate" in complete("fleetune train --learning")
    assert complete("fleetune train --task demo-s") == ["demo-sentiment"]
    assert complete("fleetune train --method bitfit,lo") == ["bitfit,lora"]


def test_what_is_completed_is_what_there_is() -> None:
    assert set(shell.METHODS) == set(METHODS)
    assert set(shell.DTYPES) == {"auto", *DTYPES}
    assert shell.tasks("") == list(TASK_NAMES)
    assert shell.methods("head,b") == ["head,bitfit"]


def test_each_command_ends_with_the_next(made: Made) -> None:
    model = made.run / "trials" / "lora-s0"
    for words in (
        ("show", made.run),
        ("show", made.run, "lora-s0"),
        ("predict", model, "--text", "w1 w2"),
        ("methods",),
        ("methods", "lora"),
    ):
        last = run_cli(*words).err.splitlines()[-1]
        assert last.lstrip().startswith(("next: fleetune", "fleetune")), words
