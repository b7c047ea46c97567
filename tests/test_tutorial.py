"""docs/tutorial.md and docs/python.md run as they stand, and print what they show.

Blocks run in the order of the page, in an empty folder: `console` as commands, `python` in one program per page. Of what a
page shows, each line must come out again; numbers, names of winners, labels, verdicts and the encoder may be others, since
they depend on the machine's arithmetic. `...` stands for lines that are left out.

The fast test puts a tiny encoder in MiniLM's place (all it says is noise); the slow one runs the tutorial with MiniLM.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from fleetune.backbone.load import find_backbone
from fleetune.data.demo import load_demo
from fleetune.study import prepare
from tests.runs import Made, run_cli

DOCS = Path(__file__).resolve().parents[1] / "docs"
# What a reader does once; the tests run where it is done.
SETUP = ("make ", "source ")


def blocks(page: str) -> Iterator[tuple[str, str]]:
    """(language, content) of every fenced block."""
    text = (DOCS / page).read_text(encoding="utf-8")
    for found in re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield found[1], found[2]


def masked(line: str) -> str:
    """A line without what another machine or encoder may print otherwise."""
    line = re.sub(r"B against A by accuracy: .*", "VERDICT", line)
    line = re.sub(r"\b(head|lora)-s\d+", "TRIAL", line)
    line = re.sub(r"^backbone \S+ in \w+", "backbone", line)
    line = re.sub(r"\b(positive|negative|ask a person)\b", "LABEL", line)
    line = re.sub(r"\b(better|worse|equivalent|cannot tell)$", "VERDICT", line)
    line = re.sub(r"[-+]?\d[\d.,:]*(e[-+]?\d+)?( (s|min|h)\b)?", "N", line)
    return " ".join(re.sub(r"-+", "-", line).split())


def missing(shown: str, printed: str) -> list[str]:
    """The lines that a page shows and that did not come out."""
    there = {masked(line) for line in printed.splitlines()}
    lines = [line for line in shown.splitlines() if line.strip() not in ("", "...")]
    return [line for line in lines if masked(line) not in there]


def commands(content: str) -> list[tuple[str, str]]:
    """(command, what the page shows beneath it) of a console block."""
    parts = re.split(r"^\$ (.*)$", content, flags=re.MULTILINE)[1:]
    return list(zip(parts[::2], parts[1::2], strict=True))


def run_command(command: str) -> str:
    """Standard output and error of one command of a page."""
    words = shlex.split(command)
    if words[0] == "fleetune":
        done = run_cli(*words[1:])
        assert done.code == 0, f"{command}: {done.err}"
        return done.out + done.err
    assert words[0] == "head", f"{command}: not a command that the pages may use"
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def run_page(page: str) -> dict[str, str]:
    """Run every block of a page; what each printed, by its source. Fails where a line that is shown did not come out."""
    space: dict[str, object] = {}
    printed: dict[str, str] = {}
    last = ""
    for language, content in blocks(page):
        if language == "python":
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(content, page, "exec"), space)
            last = printed[content] = out.getvalue()
        elif language == "console":
            for command, shown in commands(content):
                if not command.startswith(SETUP):
                    printed[command] = run_command(command)
                    assert missing(shown, printed[command]) == [], f"{command}:\n{printed[command]}"
        else:
            assert language == "text" and missing(content, last) == [], last
    return printed


@pytest.fixture
def tiny_everywhere(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, where "minilm" is the tiny encoder."""
    real = partial(find_backbone, str(made.backbone))
    monkeypatch.setattr(prepare, "find_backbone", lambda name, revision=None: real())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_tutorial_runs(tiny_everywhere: Path) -> None:
    printed = run_page("tutorial.md")
    assert sum(command.startswith("fleetune ") for command in printed) >= 4
    for made_by_the_page in ("reviews.csv", "runs/reviews/report.html", "my-model/model.safetensors"):  # fmt: skip
        assert (tiny_everywhere / made_by_the_page).is_file()


# The tiny encoder reads 40 tokens, so it cuts rows that the page's own does not.
@pytest.mark.filterwarnings("ignore:.*longer than 40 tokens and w")
@pytest.mark.slow
def test_the_python_page_runs(tiny_everywhere: Path) -> None:
    first = next(content for language, content in blocks("tutorial.md") if language == "python")
    exec(compile(first, "tutorial.md", "exec"), {})
    printed = run_page("python.md")
    (wrong,) = [out for source, out in printed.items() if "lara" in source]
    assert 'there is no "lara", did you mean "lora"' in wrong


def test_the_rows_of_the_tutorial_are_what_it_says() -> None:
    """The share of the larger class, which the text tells."""
    labels = load_demo("demo-sentiment").train.take(range(400)).labels
    share = max((labels == c).mean() for c in (0, 1))
    assert f"{100 * share:.0f} % of the rows" in (DOCS / "tutorial.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_tutorial_runs_with_minilm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(run_page("tutorial.md")) >= 8


def test_what_is_shown_and_not_printed_is_found() -> None:
    """So that the tests above can fail."""
    shown = "method  n\n------  -\nhead    7\n...\n"
    assert missing(shown, "method   n\n-------  --\nhead    12\nlora  3\n") == []
    assert missing(shown, "method   n\n-------  --\nlora    12\n") == ["head    7"]
    assert masked("0:12 left, 14 examples/s") == masked("1:02:03 left, 250.5 examples/s")
