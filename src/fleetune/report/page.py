"""The HTML report: one file that asks for nothing, built from facts and page facts alone.

Every text passes through the template's escaping; only the pictures come in as markup, and their text is escaped by the
XML writer (svg.py). The policy in the page's head allows the one style sheet and the one script by their hashes and
nothing else, so what slipped through all the same could neither run nor ask for anything.
"""

from __future__ import annotations

import base64
import hashlib
import shlex
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from fleetune.durable import write_bytes
from fleetune.report import charts, model_charts, training_charts, words
from fleetune.report.facts import run_facts
from fleetune.report.page_facts import page_facts
from fleetune.report.svg import Picture, printable
from fleetune.report.tables import labels

NAME = "report.html"
Facts = dict[str, Any]
# A page lists so many trials; the rest is in results.parquet.
MOST_TRIALS = 500


def write_report(folder: Path, output: Path | None = None) -> Path:
    """Write the report of a run, by default as RUN/report.html; returns its path. Raises what `run_facts` raises."""
    facts = run_facts(folder)
    page = render(facts, page_facts(folder, facts))
    path = output or folder / NAME
    write_bytes(path, page.encode("utf-8", "backslashreplace"))
    return path


def render(facts: Facts, page: Facts) -> str:
    """The page as text; the same facts give the same bytes."""
    style, script = _asset("page.css"), _asset("page.js")
    names = labels(facts["estimates"])
    return _template().render(
        facts=facts,
        page=page,
        question=words.question(facts),
        answers=words.answers(facts),
        untold=words.untold(facts),
        verdicts=words.verdict_records(facts),
        estimates=list(zip(names, facts["estimates"], strict=True)),
        has_memory=any("memory_bytes" in e for e in facts["estimates"]),
        sections=pictures(facts, page),
        trials=facts["trials"][:MOST_TRIALS],
        commands=commands(page),
        style=Markup(style),  # ours, and allowed by its hash
        script=Markup(script),
        policy=policy(style, script),
        optimistic=words.OPTIMISTIC,
    )


def policy(style: str, script: str) -> str:
    """The content security policy: nothing from anywhere, but this style and this script."""
    return (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )


def pictures(facts: Facts, page: Facts) -> list[dict[str, Any]]:
    """The pictures by section: those for which there are facts."""
    verdicts = words.verdict_records(facts)
    compare: list[Picture | None] = []
    training: list[Picture | None] = []
    for i, task in enumerate(page["tasks"], start=1):
        mine = [v for v in verdicts if v["task"] in (None, task["task"])]
        found = [
            charts.differences(mine, f"differences{i}"),
            charts.seeds(task, f"seeds{i}"),
            charts.rank(task, f"rank{i}"),
            *(charts.cost(task, what, f"{what}{i}") for what in ("parameters", "time", "memory")),
        ]
        learned = [
            training_charts.curves(task, what, f"{what}{i}") for what in ("selection", "loss")
        ]
        several = len(page["tasks"]) > 1
        compare += [_named(p, task["task"]) if several else p for p in found]
        training += [_named(p, task["task"]) if several else p for p in learned]
    searched = page["search"]
    search = [
        training_charts.history(searched, "history"),
        training_charts.budget(searched, "budget"),
        *(training_charts.parallel(s, f"parallel{i}") for i, s in enumerate(searched)),
        *(training_charts.importance(s, f"importance{i}") for i, s in enumerate(searched)),
    ]
    model = (page["winner"] or {}).get("model") or {}
    winner = [
        model_charts.confusion(model, "confusion"),
        model_charts.calibration(model, "calibration"),
    ]
    inside = [
        model_charts.movement(page["movement"], "movement"),
        model_charts.singular_values(page["singular_values"], "spectrum"),
    ]
    training.append(training_charts.timeline(page["timeline"], "timeline"))
    sections = {
        "Methods compared": compare,
        "Training": training,
        "Search": search,
        "The winner's errors": winner,
        "What training changed": inside,
    }
    return [
        {"title": title, "pictures": [_inline(p) for p in found if p is not None]}
        for title, found in sections.items()
        if any(found)
    ]


def commands(page: Facts) -> list[tuple[str, str]]:
    """What to do next, as (purpose, command); run in the folder that holds the run."""
    run, best = shlex.quote(printable(page["run"])), page["winner"]
    if best is None:
        return []
    trial = shlex.quote(printable(f"{page['run']}/trials/{best['id']}"))
    return [
        ("label new texts", f'fleetune predict {run} --text "..."'),
        ("measure it on other rows", f"fleetune evaluate {trial} --data FILE"),
        (
            "write one plain transformers model",
            f"fleetune export {trial} --format hf --output my-model",
        ),
    ]


def _named(picture: Picture | None, task: str) -> Picture | None:
    """The picture of one task among several says which in its title."""
    if picture is None:
        return None
    title = f"{picture.title}: {task}"
    return Picture(picture.name, title, picture.about, picture.svg, picture.note)


def _inline(picture: Picture) -> dict[str, Any]:
    return {
        "name": picture.name,
        "title": picture.title,
        "about": picture.about,
        "note": picture.note,
        "svg": Markup(picture.svg),
    }


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    environment.filters.update(
        percent=words.percent,
        points=words.points,
        interval=words.interval,
        count=words.count,
        setting=words.setting,
        duration=words.duration,
        lines=_lines,
    )
    return environment.from_string(_asset("page.html"))


def _finalize(value: Any) -> Any:
    """Text that does not print shows as escapes: it may not reorder, hide or break what stands around it."""
    return printable(value) if type(value) is str else value


def _lines(text: str) -> Markup:
    """Text of several lines, each printable."""
    return Markup("\n").join(printable(line) for line in text.split("\n"))


def _asset(name: str) -> str:
    return (resources.files("fleetune.report") / "assets" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"sha256-{digest}"
