"""The HTML report: one file that asks for nothing, built from facts and page facts alone.

Every text passes through the template's escaping; only the pictures come in as markup, and their text is escaped by the
XML writer (svg.py). The policy in the page's head allows the one style sheet and the one script by their hashes and
nothing else, so what slipped through all the same could neither run nor ask for anything.
"""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from fleetune.durable import write_bytes
from fleetune.errors import RefusedError, printable
from fleetune.report import sections, words
from fleetune.report.facts import run_facts
from fleetune.report.model_facts import datasets, tables
from fleetune.report.page_facts import page_facts
from fleetune.report.stored import damage_told
from fleetune.report.study_tables import chosen
from fleetune.report.tables import floors, lost_told, named, texts_of

NAME = "report.html"
# What says that a page is ours: the second in those of earlier versions.
_MARKS = (b'<meta name="generator" content="Fleetune">', b" - Fleetune</title>")
_HEAD = 16_384
Facts = dict[str, Any]
# A page lists so many trials; the rest is in results.parquet.
MOST_TRIALS = 500
MOST_COHORTS = 50
_LOST = [
    {
        "verdict": None,
        "text": "The predictions of this run are lost, and without them there is no answer; the scores of its trials are below.",
        "optimistic": False,
    }
]
PROTOCOLS = {
    "holdout": "epochs and settings are chosen on rows held out of train; the test set is opened once a trial, at its end",
    "cv": "settings are chosen by cross-validation within train; the test set is opened once a trial, at its end",
    "paper": "the epoch is chosen on the test set itself",
}


def write_report(folder: Path, output: Path | None = None) -> Path:
    """Write the report of a run, by default as RUN/report.html; returns its path.

    An earlier report is replaced; RefusedError for any other file. Raises what `run_facts` raises.
    """
    _refuse_other(output or folder / NAME)
    facts = run_facts(folder)
    page = page_facts(folder, facts)
    with damage_told(folder):
        try:
            text = render(facts, page)
        except jinja2.UndefinedError as error:
            raise LookupError(str(error)) from error
    path = output or folder / NAME
    write_bytes(path, text.encode("utf-8", "backslashreplace"))
    return path


def _refuse_other(path: Path) -> None:
    """RefusedError for a file that is no page of ours; an empty one holds nothing to lose."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        start = file.read(_HEAD)
    if start and not any(mark in start for mark in _MARKS):
        raise RefusedError(f"{path}: exists and is no report; give --output another file")


def render(facts: Facts, page: Facts) -> str:
    """The page as text; the same facts give the same bytes."""
    style, script = _asset("page.css"), _asset("page.js")
    trials, estimates, verdicts = facts["trials"], facts["estimates"], words.verdicts(facts)
    lost = [lost_told(record) for record in facts["lost"]]
    return _template().render(
        facts=facts,
        page=page,
        question=words.question(facts),
        scope=words.scope(facts, page["tasks"]),
        ended=sum(t["status"] != "unfinished" for t in trials),
        answers=_LOST if lost and not estimates else words.answers(facts),
        untold=[*(f"{told[0].upper()}{told[1:]}." for told in lost), *words.untold(facts)],
        lead=sections.lead(facts, page),
        verdicts=verdicts,
        over_tasks=facts.get("over_tasks", []),
        estimates=named(facts["estimates"]),
        sets=list(dict.fromkeys(e["set"] for e in estimates)),
        metrics=list(dict.fromkeys(v["metric"] for v in verdicts)),
        phases=list(dict.fromkeys(t["phase"] for t in trials)),
        floors=floors(estimates),
        has_memory=any(e.get("memory_bytes") is not None for e in estimates),
        ranks=facts.get("rank", []),
        compared={(v["task"], v["method"], v["reference"]) for v in verdicts},
        arms=_arms(facts),
        cohorts=facts["cohorts"][:MOST_COHORTS],
        sections=sections.sections(facts, page),
        trials=[(t, *_scores(t)) for t in trials[:MOST_TRIALS]],
        datasets=datasets(facts),
        protocol=next((d.get("protocol") for d in tables(facts)), "holdout"),
        protocols=PROTOCOLS,
        seeds=ranges(t["seed"] for t in trials),
        commands=[] if _is_lost(page["winner"], facts) else commands(facts, page),
        style=Markup(style),  # ours, and allowed by its hash
        script=Markup(script),
        policy=policy(style, script),
        optimistic=words.OPTIMISTIC,
    )


def _is_lost(winner: Facts | None, facts: Facts) -> bool:
    """Whether the winner's folder is not what it was, so that nothing can be done with it."""
    return winner is not None and any(
        name.startswith(f"trials/{winner['id']}/")
        for record in facts["lost"]
        for name in record["files"]
    )


def policy(style: str, script: str) -> str:
    """The content security policy: nothing from anywhere, but this style and this script."""
    return (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )


def commands(facts: Facts, page: Facts) -> list[tuple[str, str]]:
    """What to do next, as (purpose, command); run in the folder that holds the run."""
    run, best = shlex.quote(printable(page["run"])), page["winner"]
    if best is None:
        return []
    trial = shlex.quote(printable(f"{page['run']}/trials/{best['id']}"))
    return [
        ("Label new texts", f"fleetune predict {run} {texts_of(facts, best)}"),
        ("Measure it on other rows", f"fleetune evaluate {trial} --data FILE"),
        (
            "Write one plain transformers model",
            f"fleetune export {trial} --format hf --output my-model",
        ),
    ]


def _arms(facts: Facts) -> list[tuple[Facts, str, str]]:
    """Each arm that was searched, what it chose in words, and the metric that chose it."""
    trials = {t["id"]: t for t in facts["trials"]}
    ends = {ident: t["status"] for ident, t in trials.items()}
    found: list[tuple[Facts, str, str]] = []
    for arm in (a for a in facts.get("arms", []) if a["search"]["tried"]):
        own = (*arm["search"]["trials"], *arm["confirm"]["trials"], *trials)
        metrics = (trials[i]["training"]["metric_for_best_model"] for i in own if i in trials)
        told = chosen(arm, words.settings(arm["chosen"] or {}), ends)
        found.append((arm, told, next(metrics, "")))
    return found


def _scores(trial: Facts) -> tuple[float | None, float | None]:
    """A trial's selection score at its best epoch, and its score on the main test set."""
    metric = trial["training"]["metric_for_best_model"]
    chosen = (e["selection"] for e in trial["epochs"] if e["epoch"] == trial["best_epoch"])
    tested = (v for k, v in (trial["test"] or {}).items() if k not in ("n", "loss"))
    return next((s.get(metric) for s in chosen), None), next(tested, None)


def ranges(numbers: Iterable[int]) -> str:
    """Whole numbers in short: `0, 42 to 44`."""
    found: list[list[int]] = []
    for number in sorted(set(numbers)):
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in found) or "none"


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    names = ("percent", "points", "score", "interval", "p_value", "count", "setting", "settings")
    filters: dict[str, Any] = {
        **{name: getattr(words, name) for name in (*names, "duration", "mib", "signed")},
        "lines": _lines,
        "markup": Markup,  # for pictures, which svg.py has cleaned
    }
    environment.filters.update(filters)
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
