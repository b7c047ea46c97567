"""Which pictures the page holds, in which section, and what stands in the place of those that cannot be drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fleetune.report import charts, model_charts, rank_chart, training_charts, words
from fleetune.report.svg import Absent, Drawn, Picture
from fleetune.report.training_charts import NO_SEARCH

Facts = dict[str, Any]

# A page has room for so many tasks, searched methods and settings of BitFit in full.
_MOST_TASKS = 9
_MOST_SEARCHED = 8
_MOST_MOVED = 6


def lead(facts: Facts, page: Facts) -> Picture | None:
    """The picture of the first screen: differences where there are verdicts, every seed otherwise; of the first task."""
    if not page["tasks"]:
        return None
    drawn = _first(facts, page)
    return _named(drawn, page["tasks"][0]["task"], page) if isinstance(drawn, Picture) else None


def _first(facts: Facts, page: Facts) -> Drawn:
    task = page["tasks"][0]
    found = charts.differences(_of_task(facts, task), "lead")
    return found if isinstance(found, Picture) else charts.seeds(task, "lead")


def _of_task(facts: Facts, task: Facts) -> list[Facts]:
    return [v for v in words.verdicts(facts) if v["task"] == task["task"]]


def sections(facts: Facts, page: Facts) -> list[dict[str, Any]]:
    """title, key, pictures, and absent: (titles, why) of those that are not there."""
    led = _first(facts, page) if page["tasks"] else None
    compare: list[Drawn] = []
    training: list[Drawn] = []
    for i, task in enumerate(page["tasks"][:_MOST_TASKS], start=1):
        found = [
            charts.differences(_of_task(facts, task), f"differences{i}"),
            charts.seeds(task, f"seeds{i}"),
            rank_chart.rank(
                task, f"rank{i}", [s for s in facts.get("rank", []) if s["task"] == task["task"]]
            ),
            *(charts.cost(task, what, f"{what}{i}") for what in ("parameters", "time", "memory")),
        ]
        # The first task's lead stands on the first screen already.
        found = [p for p in found if i > 1 or not isinstance(led, Picture) or p.title != led.title]
        learned = [
            training_charts.curves(task, what, f"{what}{i}") for what in ("selection", "loss")
        ]
        compare += [_named(p, task["task"], page) for p in found]
        training += [_named(p, task["task"], page) for p in learned]
    training.append(training_charts.timeline(page["timeline"], "timeline"))
    found = {
        "compared": ("Methods compared", compare),
        "training": ("Training", training),
        "search": ("Search", _search(page["search"])),
        "errors": ("The winner's errors", _errors(page)),
        "inside": ("What training changed", _inside(page)),
    }
    return [_section(key, title, drawn) for key, (title, drawn) in found.items()]


def _search(searched: Sequence[Facts]) -> list[Drawn]:
    several = len({s["task"] for s in searched}) > 1
    found = [
        training_charts.history(searched, "history"),
        training_charts.budget(searched, "budget"),
    ]
    for i, s in enumerate(searched[:_MOST_SEARCHED], start=1):
        found.append(training_charts.parallel(s, f"parallel{i}", several))
        found.append(training_charts.importance(s, f"importance{i}", several))
    if not searched:
        found += [Absent("Parallel coordinates", NO_SEARCH), Absent("What mattered", NO_SEARCH)]
    return found


def _errors(page: Facts) -> list[Drawn]:
    why = page["why"].get("model")
    model = (page["winner"] or {}).get("model") or {"no_confusion": why, "no_calibration": why}
    return [
        model_charts.confusion(model, "confusion"),
        model_charts.calibration(model, "calibration"),
    ]


def _inside(page: Facts) -> list[Drawn]:
    why, moved, spectra = page["why"], page["movement"], page["singular_values"]
    drawn: list[Drawn] = []
    for i, record in enumerate(moved[:_MOST_MOVED], start=1):
        picture: Drawn = model_charts.movement(record, f"movement{i}")
        if isinstance(picture, Picture) and len({r["name"] for r in moved}) > 1:
            picture = replace(picture, title=f"{picture.title}, {record['name']}")
        drawn.append(_named(picture, record["task"], page))
    if not moved:
        drawn.append(model_charts.movement(None, "movement", why.get("movement", "")))
    for i, task in enumerate(dict.fromkeys(r["task"] for r in spectra), start=1):
        mine = [r for r in spectra if r["task"] == task]
        drawn.append(_named(model_charts.singular_values(mine, f"spectrum{i}"), task, page))
    if not spectra:
        drawn.append(model_charts.singular_values([], "spectrum", why.get("singular_values", "")))
    return drawn


def _section(key: str, title: str, drawn: Sequence[Drawn]) -> dict[str, Any]:
    absent: dict[str, list[str]] = {}
    for one in drawn:
        if isinstance(one, Absent):
            absent.setdefault(one.why, []).append(one.title)
    return {
        "key": key,
        "title": title,
        "pictures": [p for p in drawn if isinstance(p, Picture)],
        "absent": [(words.joined(titles, "and"), why) for why, titles in absent.items()],
    }


def _named(drawn: Drawn, task: str, page: Facts) -> Any:
    """The picture of one task among several says which in its title."""
    return replace(drawn, title=f"{drawn.title}: {task}") if len(page["tasks"]) > 1 else drawn
