"""Pictures of training and search: learning curves, timeline, search history, parallel coordinates, importance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fleetune.report.charts import Facts, legend, style, styles
from fleetune.report.page_facts import axis
from fleetune.report.svg import INK, MUTED, RULE, SERIES, Absent, Drawn, draw, short
from fleetune.report.words import axis_name, duration, percent, plural, scale, score, settings

NO_SEARCH = "no settings were searched in this run"
_MOST_CURVES = 6
_NAMED_BANDS = 14
_BEST_SHARE = 4
"""Of the searched trials one in so many is drawn strong."""


def curves(task: Facts, what: str, name: str) -> Drawn:
    """Learning curves: the median over the seeds, and a band from the lowest to the highest. what: selection or loss."""
    title = "Training loss by epoch" if what == "loss" else "Selection score by epoch"
    known = {g["name"]: [c for c in g["curve"] if c[what]] for g in task["groups"]}
    every = [g for g in task["groups"] if len(known[g["name"]]) > 1]
    groups = sorted(every, key=lambda g: -g["estimate"]["value"])[:_MOST_CURVES]
    if not groups:
        return Absent(title, "no trial behind the estimates has such numbers of two epochs or more")
    metric = "loss" if what == "loss" else groups[0]["curve"][0]["metric"]
    factor, looks = scale(metric), styles(groups, task["groups"])

    def plot(axes: Any) -> None:
        for g, (told, look) in zip(groups, looks, strict=True):
            rows = known[g["name"]]
            at = [c["epoch"] for c in rows]
            low, middle, high = (
                [factor * c[what][key] for c in rows] for key in ("low", "median", "high")
            )
            axes.fill_between(at, low, high, color=look["color"], alpha=0.13, linewidth=0)
            axes.plot(at, middle, label=short(told), markersize=4.5, **look)
        axes.set_xlabel("epoch")
        axes.set_ylabel("training loss" if what == "loss" else axis_name(metric))
        axes.xaxis.get_major_locator().set_params(integer=True)
        legend(axes, [g["name"] for g in groups])

    told = "; ".join(
        f"{g['name']}: median {score(first[what]['median'], metric)} after epoch {first['epoch']}, "
        f"{score(last[what]['median'], metric)} after epoch {last['epoch']}"
        for g in groups
        for first, last in [(known[g["name"]][0], known[g["name"]][-1])]
    )
    note = "Line: median over the seeds. Band: from the lowest seed to the highest."
    if left := len(every) - len(groups):
        note += f" {plural(left, 'setting')} with lower estimates are not drawn."
    return draw(name, title, told, plot, note=note)


def timeline(rows: Sequence[Facts], name: str) -> Drawn:
    """One line a trial, from its start to its end: trials of one cohort run side by side."""
    title = "Trials over time"
    if not rows:
        return Absent(title, "no trial has started")
    rows = sorted(rows, key=lambda r: (r["start"], r["end"]))
    methods = list(dict.fromkeys(r["method"] for r in rows))
    last = max(r["end"] for r in rows)
    unit, per = (
        ("hours", 3600) if last >= 7200 else ("minutes", 60) if last >= 120 else ("seconds", 1)
    )

    bands = _bands(rows)

    def plot(axes: Any) -> None:
        _draw_bands(axes, bands, len(rows))
        for i, r in enumerate(rows):
            look = style(methods.index(r["method"]))
            axes.plot(
                [r["start"] / per, r["end"] / per],
                [-i, -i],
                label=short(r["method"]),
                color=look["color"],
                linestyle=look["linestyle"],
                linewidth=max(1.5, min(4, 180 / len(rows))),
                solid_capstyle="butt",
            )
            if r["status"] != "done":
                axes.plot([r["end"] / per], [-i], marker="x", color=INK, markersize=6)
        axes.set_yticks([])
        axes.set_xlim(left=0)
        axes.margins(y=0.02)
        axes.set_xlabel(f"{unit} since the run began")
        legend(axes, methods)

    bad = [r for r in rows if r["status"] != "done"]
    told = f"{plural(len(rows), 'trial')} in {plural(len(bands), 'cohort')}, {duration(last)}"
    told += (
        f"; marked with a cross: {', '.join(r['id'] + ' ' + r['status'] for r in bad[:8])}"
        if bad
        else ""
    )
    return draw(
        name,
        title,
        told,
        plot,
        height=min(80 + 11 * len(rows), 440),
        note="One line a trial, in the order of their starts. Trials that run at the same time share a cohort: one pass through "
        "the backbone for all of them."
        + (" A band: a cohort, named by its phase." if len(bands) > 1 else "")
        + (" A cross: stopped early, failed, or not ended." if bad else ""),
    )


def _draw_bands(axes: Any, bands: Sequence[tuple[str, int, int]], rows: int) -> None:
    """Shade every other cohort, and name those that are high enough for a name."""
    for number, (told, first, end) in enumerate(bands):
        if number % 2:
            axes.axhspan(0.5 - first, 0.5 - end, color=RULE, alpha=0.35, linewidth=0)
        # Names of lower bands would stand on one another.
        if len(bands) > 1 and _NAMED_BANDS * (end - first) >= rows:
            axes.annotate(
                short(told), (1, 0.5 - first), xycoords=("axes fraction", "data"),
                xytext=(-2, -2), textcoords="offset points", ha="right", va="top",
                fontsize="small", color=MUTED,
            )  # fmt: skip


def _bands(rows: Sequence[Facts]) -> list[tuple[str, int, int]]:
    """(name, first row, row after the last) of each cohort, in the order of their starts; of each phase where none is known."""
    several = len({r["task"] for r in rows}) > 1
    found: list[tuple[tuple[str, str, str | None], int, int]] = []
    for i, r in enumerate(rows):
        key = (r["task"], r["phase"], r["cohort"])
        if found and found[-1][0] == key:
            found[-1] = (key, found[-1][1], i + 1)
        else:
            found.append((key, i, i + 1))
    return [
        (f"{task}, {phase}" if several else phase, first, end)
        for (task, phase, _), first, end in found
    ]


def _common_metric(search: Sequence[Facts]) -> str:
    """What the scores of some searches are, for their axis: tasks may have different metrics."""
    metrics = {s["metric"] for s in search}
    return metrics.pop() if len(metrics) == 1 else "score"


def history(search: Sequence[Facts], name: str) -> Drawn:
    """Selection score of the settings that were tried, in order, and the best so far."""
    if not search:
        return Absent("Search history", NO_SEARCH)
    metric, several = _common_metric(search), len({s["task"] for s in search}) > 1

    def plot(axes: Any) -> None:
        for i, s in enumerate(search):
            look, values = style(i), [scale(s["metric"]) * t["score"] for t in s["trials"]]
            at = list(range(1, len(values) + 1))
            axes.plot(
                at,
                values,
                color=look["color"],
                marker=look["marker"],
                linestyle="none",
                markersize=4,
                alpha=0.6,
            )
            axes.step(
                at,
                _running(values, s["greater_is_better"]),
                where="post",
                label=short(searched(s, several)),
                color=look["color"],
                linestyle=look["linestyle"],
            )
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlim(0.5, max(len(s["trials"]) for s in search) + 0.5)
        axes.set_xlabel("setting that the method tried")
        axes.set_ylabel(axis_name(f"selection {metric}") if metric != "loss" else "selection loss")
        legend(axes, [searched(s, several) for s in search])

    told = "; ".join(
        f"{searched(s, several)}: best {score(_best(s), s['metric'])} in {plural(len(s['trials']), 'setting')}"
        for s in search
    )
    return draw(
        name,
        "Search history",
        told,
        plot,
        note="Mark: one setting. Line: the best so far. The search chose by these selection scores; the best of many is high "
        "partly by luck, and the test scores stand in the table of methods."
        + (
            " Settings that were stopped early count with the best score they had."
            if any(s["stopped"] for s in search)
            else ""
        )
        + _unearned(search),
    )


def budget(search: Sequence[Facts], name: str) -> Drawn:
    """Expected best selection score against the number of settings tried."""
    shown = [s for s in search if len(s["expected_best"]["expected"]) > 1]
    title = "Expected best against budget"
    if not shown:
        return Absent(title, "it takes two settings that a method tried" if search else NO_SEARCH)
    metric, several = _common_metric(search), len({s["task"] for s in search}) > 1

    def plot(axes: Any) -> None:
        for i, s in enumerate(shown):
            best, low, high = (
                [scale(s["metric"]) * v for v in s["expected_best"][key]]
                for key in ("expected", "low", "high")
            )
            at, looks = range(1, len(best) + 1), style(i)
            axes.fill_between(at, low, high, color=looks["color"], alpha=0.12, linewidth=0)
            axes.plot(at, best, label=short(searched(s, several)), markersize=4, **looks)
        axes.set_xlim(0.5, max(len(s["expected_best"]["expected"]) for s in shown) + 0.5)
        axes.set_xlabel("settings tried with the method")
        axes.set_ylabel(axis_name(f"expected best {metric}"))
        axes.xaxis.get_major_locator().set_params(integer=True)
        legend(axes, [searched(s, several) for s in shown])

    told = "; ".join(
        f"{searched(s, several)}: {score(best[0], s['metric'])} with one setting, "
        f"{score(best[-1], s['metric'])} with {len(best)}"
        for s in shown
        for best in (s["expected_best"]["expected"],)
    )
    return draw(
        name,
        title,
        told,
        plot,
        note="What the best of so many trials is expected to score (Dodge et al. 2019), each budget with a 95% band by a "
        "bootstrap over the settings, too narrow at its right end, where all hangs on the few best ones. A curve still rising "
        "says that the search was short." + _unearned(shown),
    )


def searched(s: Facts, several: bool) -> str:
    """What was searched, by its arm, and its task where there are several."""
    return f"{s['arm']} on {s['task']}" if several else s["arm"]


def _unearned(search: Sequence[Facts]) -> str:
    """A sentence on the settings whose score is not their own."""
    count = sum(not t["earned"] for s in search for t in s["trials"])
    if not count:
        return ""
    return (
        f" {plural(count, 'setting')} failed before an epoch was over, and counted with the worst score of the method's "
        "others."
    )


def _best(s: Facts) -> float:
    return (max if s["greater_is_better"] else min)(t["score"] for t in s["trials"])


def parallel(s: Facts, name: str, several: bool = False) -> Drawn:
    """Parallel coordinates: one line through the values of each setting that was tried, to its score."""
    rows = [r for r in s["trials"] if r["earned"]]
    names = list(rows[0]["settings"])
    title = f"Settings of {searched(s, several)}"
    if len(rows) < 3 or len(names) < 2:
        return Absent(title, "it takes three that were tried, in which two values vary")
    columns = [axis([r["settings"][n] for r in rows]) for n in names]
    columns.append(([r["score"] for r in rows], []))
    ranked = sorted(
        range(len(rows)), key=lambda i: rows[i]["score"], reverse=s["greater_is_better"]
    )
    strong = set(ranked[: max(1, len(rows) // _BEST_SHARE)])

    def plot(axes: Any) -> None:
        for i in reversed(ranked):
            look = (
                {"color": SERIES[0], "linewidth": 1.8, "alpha": 0.9}
                if i in strong
                else {"color": MUTED, "linewidth": 0.8, "alpha": 0.5}
            )
            axes.plot([_unit(places)[i] for places, _ in columns], range(len(columns)), **look)
        for row, (places, ends) in enumerate(columns):
            axes.axhline(row, color=MUTED, linewidth=0.8)
            told = ends or [
                (min(places), score(min(places), s["metric"])),
                (max(places), score(max(places), s["metric"])),
            ]
            for place, text in told if len(told) <= 5 else (told[0], told[-1]):
                at = _unit([*places, place])[-1]
                side = "left" if at < 0.2 else "right" if at > 0.8 else "center"
                axes.text(at, row + 0.08, short(text), ha=side, fontsize=9, color=INK)
        axes.set_yticks(range(len(columns)), [short(n)[:18] for n in (*names, s["metric"])])
        axes.set_xticks([])
        axes.grid(visible=False)
        axes.spines[["left", "bottom"]].set_visible(False)

    told = (
        f"{len(rows)} settings of {', '.join(names)}. The best, with {score(rows[ranked[0]]['score'], s['metric'])}: "
        + settings(rows[ranked[0]]["settings"])
    )
    return draw(
        name,
        title,
        told,
        plot,
        height=70 + 52 * len(columns),
        note="One line for each setting that was tried, through its values down to its score; the best quarter is drawn strong.",
    )


def importance(s: Facts, name: str, several: bool = False) -> Drawn:
    """How much each setting mattered."""
    shares, had = s["importance"], sum(t["earned"] for t in s["trials"])
    title = f"What mattered for {searched(s, several)}"
    if not shares:
        needed = s["needed_for_importance"]
        return Absent(
            title,
            f"it takes {needed} settings that were tried, and there are {had}"
            if had < needed
            else "it takes two settings that vary",
        )
    ranked = sorted(shares.items(), key=lambda pair: pair[1])

    def plot(axes: Any) -> None:
        axes.barh(
            [short(k)[:22] for k, _ in ranked], [100 * v for _, v in ranked], 0.55, color=SERIES[0]
        )
        axes.set_xlabel("share of what a forest explains, %")
        axes.grid(axis="y", visible=False)

    told = ", ".join(f"{k}: {percent(v)}%" for k, v in reversed(ranked))
    return draw(
        name,
        title,
        told,
        plot,
        height=80 + 26 * len(ranked),
        note=f"Permutation importance of a random forest over {had} settings; it says nothing about ranges that "
        "were not searched.",
    )


def _running(values: Sequence[float], higher: bool) -> list[float]:
    best: list[float] = []
    for v in values:
        best.append(v if not best else max(best[-1], v) if higher else min(best[-1], v))
    return best


def _unit(places: Sequence[float]) -> list[float]:
    low, high = min(places), max(places)
    return [(p - low) / (high - low) if high > low else 0.5 for p in places]
