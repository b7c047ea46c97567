"""Documents do not lie: generated pages are those of the code, links resolve, commands and flags that are shown exist.

What is compared with the pages comes from elsewhere than their generator where that is possible: the help of the real
commands, the fields of the settings, counts that were published.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from scripts import docs, page_methods, page_settings

from fleetune import __version__
from fleetune.backbone.load import config_only
from fleetune.backbone.sites import empty_model, site_map
from fleetune.cohort.engine import Engine
from fleetune.config import TrainingSettings
from fleetune.errors import SettingsError
from fleetune.methods.base import Method, count_parameters
from fleetune.methods.table import METHODS
from tests import runs
from tests.tiny import CONFIGS, tiny_model

REPO = Path(__file__).resolve().parents[1]
DOCS = REPO / "docs"
TOP = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")


def pages() -> list[Path]:
    """Every document of the project."""
    return [*(REPO / name for name in TOP), *sorted(DOCS.rglob("*.md"))]


def name_of(path: Path) -> str:
    return path.relative_to(REPO).as_posix()


# Pages that other parts bring and that may not be there yet.
AWAITED = frozenset({"docs/benchmarks.md", "docs/scaling.md"})


def is_there(path: Path) -> bool:
    return path.exists() or path.relative_to(REPO).as_posix() in AWAITED


PAGES = [name_of(path) for path in pages()]


def text_of(name: str) -> str:
    return (REPO / name).read_text(encoding="utf-8")


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """(language, content) of every fenced block."""
    for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield found[1], found[2]


def prose(text: str) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```\w*\n.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def section(text: str, heading: str) -> str:
    """What stands under a heading of the second level."""
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    found = dict(zip(parts[1::2], parts[2::2], strict=True))
    assert heading in found, f"no section {heading!r}; run `make docs`"
    return found[heading]


# --- pages that are written from the code


@pytest.mark.parametrize("name", docs.PAGES)
def test_generated_page_is_what_the_code_says(name: str) -> None:
    written = text_of(f"docs/{name}")
    assert docs.PAGES[name]() == written, f"docs/{name} is stale; run `make docs`"


def test_writing_and_checking_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(docs, "DOCS", tmp_path)
    assert docs.main(["--check"]) == 1
    assert not list(tmp_path.iterdir()), "--check writes nothing"
    assert docs.main([]) == 0
    assert docs.main(["--check"]) == 0
    (tmp_path / "cli.md").write_text("stale", encoding="utf-8")
    assert docs.main(["--check"]) == 1
    assert "docs/cli.md: stale; run make docs" in capsys.readouterr().err
    assert docs.main(["--wrong"]) == 2


@cache
def help_of(*words: str) -> str:
    found = runs.run_cli(*words, "--help")
    assert found.code == 0, found.err
    return found.out


@cache
def command_names() -> tuple[str, ...]:
    """The commands that the real command line offers."""
    listing = help_of().partition("Commands:")[2]
    return tuple(re.findall(r"^  ([a-z][\w-]*)", listing, re.MULTILINE))


@cache
def flags_of(command: str) -> frozenset[str]:
    """The flags of a command's own help: those that stand at the beginning of an entry."""
    entries = re.findall(r"^  (-.*)$", help_of(command), re.MULTILINE)
    heads = [re.split(r"\s{2,}|\s<", entry)[0] for entry in entries]
    return frozenset(flag for head in heads for flag in re.findall(r"--[\w-]+", head))


def test_every_command_and_flag_stands_in_the_documents() -> None:
    page = text_of("docs/cli.md")
    assert len(command_names()) >= 9
    missing = [
        f"fleetune {command} {flag}"
        for command in command_names()
        for flag in flags_of(command) - {"--help"}
        if f"`{flag}`" not in section(page, f"fleetune {command}")
    ]
    assert missing == []


def test_the_documents_name_no_command_that_there_is_not() -> None:
    headings = re.findall(r"^## fleetune (\S+)$", text_of("docs/cli.md"), re.MULTILINE)
    assert sorted(headings) == sorted(command_names())


def test_every_training_setting_stands_in_the_documents() -> None:
    page = text_of("docs/settings.md")
    rows = {row.split("`")[1]: row for row in page.splitlines() if row.startswith("| `")}
    for name, field in TrainingSettings.model_fields.items():
        assert name in rows, f"{name} is in no row of docs/settings.md; run `make docs`"
        assert field.description and field.description.replace("|", "\\|") in rows[name]
        if isinstance(field.default, int) and not isinstance(field.default, bool):
            assert f"`{field.default}`" in rows[name]
        assert f"`--{name.replace('_', '-')}`" in section(text_of("docs/cli.md"), "fleetune train")


@pytest.mark.parametrize("name", METHODS)
def test_every_hyperparameter_stands_in_the_documents(name: str) -> None:
    cls = METHODS[name]
    own = section(text_of("docs/methods.md"), name)
    assert cls.source in own
    for setting, field in cls.model_fields.items():
        assert field.description, f"{name}.{setting} has no description"
        row = next(line for line in own.splitlines() if line.startswith(f"| `{setting}` |"))
        assert " ".join(field.description.split()).replace("|", "\\|") in row


def test_counts_are_those_that_were_published() -> None:
    """roberta-base: BitFit 102,144 and LoRA r=2 on query and value 73,728, the head 592,130."""
    page = text_of("docs/methods.md")
    assert "| defaults | 102,144 | 592,130 |" in section(page, "bitfit")
    assert "| `r=2` | 73,728 | 592,130 |" in section(page, "lora")
    assert "| defaults | 294,912 | 592,130 |" in section(page, "lora")
    assert "| defaults | 0 | 592,130 |" in section(page, "head")


def test_minilm_is_counted_on_its_real_shape() -> None:
    real = site_map(empty_model(config_only("minilm")))
    assert page_methods.shapes()["MiniLM-L6"].parameters() == real.parameters()


def test_departures_come_from_the_module() -> None:
    lora, bitfit = (
        page_methods.departures(METHODS["lora"]),
        page_methods.departures(METHODS["bitfit"]),
    )
    assert len(lora) == 3 and lora[0].startswith("A starts from kaiming_uniform(a=sqrt(5))")
    assert len(bitfit) == 2


# Those that it had, and those that people try.
NOT_THEIRS = {
    *("batch_size", "epochs", "evaluation_strategy", "lr"),
    *("load_best_model_at_end", "warmup_ratio", "fp16", "bf16"),
}


def test_other_names_are_real_and_their_remedies_exist() -> None:
    theirs = page_settings.names_of_transformers()
    known = set(TrainingSettings.model_fields)
    for name, remedy in page_settings.instead().items():
        assert name not in known, f"{name} is a setting and needs no other"
        assert name in theirs or name in NOT_THEIRS, f"{name}: transformers has no such name"
        for flag in re.findall(r"`(--[\w-]+)", remedy):
            assert flag in flags_of("train"), f"{name}: there is no {flag}"
        for setting in re.findall(r"`([a-z]\w+)`", remedy):
            assert setting in known or setting == "dtype", f"{name}: there is no setting {setting}"


# --- links


def anchor(heading: str) -> str:
    """A heading as GitHub names it."""
    bare = re.sub(r"[`*]", "", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", bare).replace(" ", "-")


def links(text: str) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", prose(text))


@pytest.mark.parametrize("name", PAGES)
def test_links_resolve(name: str) -> None:
    broken: list[str] = []
    for link in links(text_of(name)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, part = link.partition("#")
        target = ((REPO / name).parent / path).resolve() if path else REPO / name
        if not is_there(target):
            broken.append(link)
        elif part and target.exists():
            headings = re.findall(r"^#+ (.+)$", target.read_text("utf-8"), re.MULTILINE)
            if part not in map(anchor, headings):
                broken.append(link)
    assert broken == []


def test_every_page_can_be_reached_from_the_index() -> None:
    reached = {
        (DOCS / link.partition("#")[0]).resolve() for link in links(text_of("docs/index.md"))
    }
    assert {name_of(page) for page in pages() if page not in reached} == {"docs/index.md"}


def test_documents_that_the_code_names_exist() -> None:
    missing: list[str] = []
    for folder in ("src", "tests", "bench", "scripts"):
        for path in (REPO / folder).rglob("*.py"):
            for named in re.findall(r"docs/(?:decisions/)?[\w-]+\.md", path.read_text("utf-8")):
                if not is_there(REPO / named):
                    missing.append(f"{name_of(path)}: {named}")
    assert missing == []


# --- decisions


DECISIONS = sorted((DOCS / "decisions").glob("*.md"))


def test_decisions_are_numbered_without_a_gap() -> None:
    numbers = [int(path.name[:4]) for path in DECISIONS]
    assert numbers == list(range(1, len(numbers) + 1))
    assert (DOCS / "decisions/0008-artifact-before-study.md").is_file()


@pytest.mark.parametrize("path", DECISIONS, ids=lambda path: path.stem)
def test_a_decision_says_what_was_rejected(path: Path) -> None:
    text = path.read_text("utf-8")
    assert text.startswith(f"# {int(path.name[:4])}. ")
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert headings == ["Context", "Decision", "Rejected", "Consequences"]
    assert 25 <= len(text.splitlines()) <= 65


# --- what the documents show


def shown_commands(name: str) -> list[list[str]]:
    """The words of every `fleetune` command in a page's blocks, variables and continuations resolved."""
    found: list[list[str]] = []
    for language, content in blocks(text_of(name)):
        if language in ("", "console", "text"):
            joined = re.sub(r"\\?\n {2,}(?=--)", " ", content)
            for line in joined.splitlines():
                bare = line.removeprefix("$ ")
                if bare.startswith("fleetune "):
                    found.append(shlex.split(bare, comments=True)[1:])
    return found


def problems_of(words: list[str]) -> list[str]:
    """What is wrong with a command that a page shows."""
    command, *rest = words
    if command.startswith("-"):
        return [] if command in ("--version", "--help") else [command]
    if command not in command_names():
        return [f"no command {command}"]
    known = flags_of(command)
    wrong = [w for w in rest if w.startswith("--") and w.partition("=")[0] not in known]
    methods = [
        method
        for flag, value in pairwise(rest)
        if flag in ("--method", "--methods")
        for method in value.split(",")
    ]
    wrong += [f"no method {method}" for method in methods if method not in METHODS]
    if command == "train" and not any(word.isupper() for word in rest):
        settings = {f for m in methods or ["lora"] if m in METHODS for f in METHODS[m].model_fields}
        keys = [
            value.partition("=")[0].rpartition(".")[2]
            for flag, value in pairwise(rest)
            if flag == "--set"
        ]
        wrong += [f"no setting {key}" for key in keys if key not in settings]
    return wrong


@pytest.mark.parametrize("name", PAGES)
def test_shown_commands_are_real(name: str) -> None:
    wrong = {
        " ".join(words): problems
        for words in shown_commands(name)
        if "[OPTIONS]" not in words and (problems := problems_of(words))
    }
    assert wrong == {}


def test_commands_are_found_in_the_pages() -> None:
    """So that the test above looks at something."""
    assert sum(len(shown_commands(name)) for name in PAGES) > 10
    assert problems_of(["train", "--task", "rte", "--methd", "lora"]) == ["--methd"]
    assert problems_of(["train", "--method", "lara", "--set", "lora.rank=2"]) == [
        "no method lara",
        "no setting rank",
    ]


@pytest.mark.parametrize("name", PAGES)
def test_python_in_the_pages_parses_and_imports_what_exists(name: str) -> None:
    for language, content in blocks(text_of(name)):
        if language != "python":
            continue
        tree = ast.parse(content.replace(", ...)", ")"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fleetune"):
                exec(compile(ast.Module([node], []), name, "exec"), {})


@pytest.mark.parametrize("name", PAGES)
def test_make_targets_in_the_pages_exist(name: str) -> None:
    targets = set(re.findall(r"^([\w-]+):", text_of("Makefile"), re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make ([a-z][\w-]*)", text_of(name), re.MULTILINE))
    assert named <= targets


def test_every_target_is_told_by_make_help() -> None:
    makefile = text_of("Makefile")
    (listed,) = re.findall(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)
    told = set(re.findall(r'@echo "make ([\w-]+)', makefile))
    assert set(listed.split()) - {"help", "clean"} == told


# Messages that other packages word.
_FOREIGN = ("No such option", "input should be")


@cache
def message_parts() -> frozenset[str]:
    """Every constant part of a string of the package that is long enough to be known again."""
    parts: set[str] = set()
    for path in (REPO / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value.strip(" ;:,(")
                if len(text) >= 8:
                    parts.add(text)
    return frozenset(parts)


def test_messages_in_troubleshooting_are_those_of_the_code() -> None:
    quoted = re.findall(r"\*\*`(.+?)`\*\*", prose(text_of("docs/troubleshooting.md")), re.DOTALL)
    assert len(quoted) > 25
    unknown: list[str] = []
    for message in (" ".join(q.split()) for q in quoted):
        pieces = [p.strip(" ;:,(") for p in message.split("...")]
        known = any(
            part in piece or (len(piece) >= 12 and piece in part)
            for piece in pieces
            for part in message_parts()
        )
        if not known and not any(words in message for words in _FOREIGN):
            unknown.append(message)
    assert unknown == []


@pytest.mark.parametrize("name", PAGES)
def test_no_page_shows_a_path_of_one_machine(name: str) -> None:
    assert re.findall(r"(?<![\w.])/(?:root|work|home|tmp)/\S*", text_of(name)) == []


# --- CONTRIBUTING and the project's files


@pytest.fixture(scope="module")
def example() -> type[Method]:
    """The method that CONTRIBUTING.md shows."""
    (content,) = [c for language, c in blocks(text_of("CONTRIBUTING.md")) if language == "python"]
    space: dict[str, Any] = {"__name__": "fleetune_example"}
    exec(compile(content, "CONTRIBUTING.md", "exec"), space)
    return space["QueryBias"]


def test_the_example_method_counts_query_biases(example: type[Method]) -> None:
    """roberta-base: 12 layers of 768."""
    count = count_parameters(example(), page_methods.shapes()["roberta-base"])
    assert (count.encoder, count.head) == (12 * 768, 592_130)


@pytest.mark.parametrize("family", CONFIGS)
def test_the_example_method_owns_what_an_engine_gives_it(
    example: type[Method], family: str
) -> None:
    model = tiny_model(family)
    head = {n for n, _ in model.named_parameters() if not n.startswith(model.base_model_prefix)}
    biases = {n for n, _ in model.named_parameters() if n not in head and n.endswith(".bias")}
    own = set(Engine(model).owned(example(), 0).tensors)
    assert own >= head
    assert own - head <= biases
    if biases and family not in ("modernbert", "eurobert", "nomic_bert"):
        assert own - head, f"{family} has query biases"


def test_the_version_has_its_place_in_the_changelog() -> None:
    versions = re.findall(r"^## (\S+)", text_of("CHANGELOG.md"), re.MULTILINE)
    assert versions and versions[0] == __version__
    assert len(set(versions)) == len(versions)


def test_the_changelog_names_every_method_and_command() -> None:
    text = text_of("CHANGELOG.md")
    assert [c for c in command_names() if f"`{c}" not in text] == []


def test_pre_commit_runs_local_tools_only() -> None:
    found = yaml.safe_load(text_of(".pre-commit-config.yaml"))
    assert found["fail_fast"] is True
    assert {repo["repo"] for repo in found["repos"]} == {"local"}
    hooks = {hook["id"]: hook["entry"].split() for repo in found["repos"] for hook in repo["hooks"]}
    assert {"ruff-check", "ruff-format", "pyright"} <= hooks.keys()
    lint = section_of_target(text_of("Makefile"), "lint").replace("$(BIN)", ".venv/bin")
    for name in ("ruff-check", "ruff-format", "pyright"):
        command = " ".join(word for word in hooks[name] if word != "--force-exclude")
        assert command in lint, f"{name} is not what `make lint` runs"


def section_of_target(makefile: str, target: str) -> str:
    found = re.search(rf"^{target}:.*\n((?:\t.+\n)+)", makefile, re.MULTILINE)
    assert found is not None
    return found[1]


def test_an_unknown_setting_tells_what_to_use_instead() -> None:
    """What docs/settings.md promises."""
    from fleetune.config import training_settings

    with pytest.raises(SettingsError, match="use warmup_steps"):
        training_settings({"warmup_ratio": 0.1})
