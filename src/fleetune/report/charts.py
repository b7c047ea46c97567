"""Pictures that compare methods: differences, seeds, and score against cost. Facts in, pictures out.

A function whose facts are not there says what is missing (`Absent`). Scores are drawn in percent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fleetune.report.svg import (
    DASHES,
    INK,
    MARKERS,
    MUTED,
    SERIES,
    Absent,
    Drawn,
    draw,
    short,
)
from fleetune.report.words import (
    axis_name,
    count,
    duration,
    interval,
    percent,
    plural,
    points,
    size,
)

Facts = dict[str, Any]
# More methods than colours: then all settings of one method look alike.
_MOST_STYLES = len(SERIES)
# A picture with more rows than this is no picture; the table has them all.
_MOST_ROWS = 24
_LOG_FROM = 5
"""Costs so many times apart are drawn on a logarithmic axis."""


def style(place: int) -> dict[str, Any]:
    """Colour, marker and dash of a series: never told apart by colour alone."""
    turn = place // len(SERIES)
    return {
        "color": SERIES[place % len(SERIES)],
        "marker": MARKERS[(place + turn) % len(MARKERS)],
        "linestyle": DASHES[(place + turn) % len(DASHES)],
    }


def styles(groups: Sequence[Facts], every: Sequence[Facts]) -> list[tuple[str, dict[str, Any]]]:
    """The legend's name and the style of each drawn group: a method looks the same in every picture of its task."""
    names, order = [g["name"] for g in groups], [g["name"] for g in every]
    if len(every) > _MOST_STYLES:
        order = names
    if len(groups) > _MOST_STYLES:
        names = [g["estimate"]["method"] for g in groups]
        order = list(dict.fromkeys(names))
    return [(name, style(order.index(name))) for name in names]


def legend(axes: Any, names: Sequence[str]) -> None:
    """One entry a name, above the axes, in as many columns as fit."""
    handles, told = axes.get_legend_handles_labels()
    kept = dict(zip(told, handles, strict=True))
    longest = max((len(short(name)) for name in names), default=0)
    columns = 4 if longest <= 8 else 2 if longest <= 20 else 1
    axes.legend(
        kept.values(),
        kept.keys(),
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=columns,
        borderaxespad=0.2,
        handlelength=2.6,
        columnspacing=1.2,
    )


def log_ticks(axis: Any, values: Sequence[float], told: Any = size) -> None:
    """Ticks of a logarithmic axis as plain numbers: matplotlib writes powers in a notation that the page has no use for."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    wide = max(values) / min(values) > 200
    axis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: told(value)))


def rows_under_names(axes: Any, names: Sequence[str]) -> None:
    """Make room for one row a name, each under its name: names at the side would take half of a phone."""
    for i, name in enumerate(names):
        axes.text(0, -i + 0.24, short(name, 52), transform=axes.get_yaxis_transform(), va="bottom")
    axes.set_ylim(-len(names) + 0.55, 0.75)
    axes.set_yticks([])
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)


def differences(verdicts: Sequence[Facts], name: str) -> Drawn:
    """Each method's difference to the reference, its interval, and the smallest difference that could be seen."""
    title = "Differences to the reference"
    shown = [v for v in verdicts if _finite(v["difference"])]
    shown = shown[:_MOST_ROWS]
    if not shown:
        return Absent(title, "no verdicts: they take a reference and others of five seeds")
    kinds = {(v["set"], v["metric"]) for v in shown}

    def row(v: Facts) -> str:
        where = f", {v['metric']} on {v['set']}" if len(kinds) > 1 else ""
        return f"{v['method']} against {v['reference']}{where}: {v['verdict']}"

    def plot(axes: Any) -> None:
        for i, v in enumerate(shown):
            if v["detectable"] is not None and _finite(v["detectable"]):
                axes.plot(
                    [-100 * v["detectable"], 100 * v["detectable"]],
                    [-i, -i],
                    color=MUTED,
                    alpha=0.28,
                    linewidth=10,
                    solid_capstyle="butt",
                )
            if _finite(v["low"]) and _finite(v["high"]):
                axes.plot([100 * v["low"], 100 * v["high"]], [-i, -i], color=SERIES[0], linewidth=2)
            axes.plot([100 * v["difference"]], [-i], color=SERIES[0], marker="o", markersize=7)
        axes.axvline(0, color=INK, linewidth=1)
        rows_under_names(axes, [row(v) for v in shown])
        axes.set_xlabel("difference in points; right of 0: better than the reference")

    told = "; ".join(
        f"{row(v)}, {points(v['difference'])} points, 95% interval {interval(v, signed=True)}"
        for v in shown
    )
    several = any(v["comparisons"] > 1 for v in shown)
    both = ", simultaneous over all verdicts" if several else ""
    return draw(
        name,
        title,
        told,
        plot,
        height=75 + 44 * len(shown),
        note=f"Dot and line: the difference and its 95% interval{both}. "
        "Grey bar: up to the difference that such a study finds four times out of five. "
        "A line that crosses 0 leaves the direction open.",
    )


def seeds(task: Facts, name: str) -> Drawn:
    """Every seed a dot, with mean and interval."""
    groups = [g for g in task["groups"] if g["seeds"] or g["estimate"]["failed_seeds"]]
    if not groups:
        return Absent("Every seed", "no trial has ended well yet")
    left = max(len(groups) - _MOST_ROWS, 0)
    groups = sorted(groups, key=lambda g: -g["estimate"]["value"])[:_MOST_ROWS]

    def plot(axes: Any) -> None:
        for i, g in enumerate(groups):
            e, colour = g["estimate"], SERIES[0]
            if e["low"] is not None:
                axes.plot([100 * e["low"], 100 * e["high"]], [-i, -i], color=colour, linewidth=2)
            axes.plot(
                [100 * s["score"] for s in g["seeds"]],
                [-i] * len(g["seeds"]),
                "o",
                color=SERIES[1],
                alpha=0.6,
                markersize=6.5,
                markeredgewidth=0,
            )
            if e["failed_seeds"]:
                axes.plot([100 * e["failed_score"]], [-i], "x", color=SERIES[1], markersize=7)
            axes.plot([100 * e["value"]], [-i], "|", color=INK, markersize=15, markeredgewidth=2)
        rows_under_names(axes, [f"{g['name']}: {percent(g['estimate']['value'])}%" for g in groups])
        axes.set_xlabel(axis_name(task["metric"], f" on {short(task['set'])}"))

    told = "; ".join(
        f"{g['name']}: mean {percent(g['estimate']['value'])}, 95% interval {interval(g['estimate'])}, seeds "
        + (", ".join(percent(s["score"]) for s in g["seeds"]) or "none")
        + _failed(g["estimate"])
        for g in groups
    )
    note = "Dot: one training. Bar: their mean. Line: the mean's 95% interval over new seeds and new examples."
    if any(g["estimate"]["failed_seeds"] for g in groups):
        note += " Cross: trainings that failed, each counted as one that learned nothing."
    if left:
        note += f" {plural(left, 'setting')} with lower means are not drawn."
    return draw(name, "Every seed", told, plot, height=75 + 40 * len(groups), note=note)


def _failed(e: Facts) -> str:
    if not e["failed_seeds"]:
        return ""
    return f", and {plural(e['failed_seeds'], 'failed training')} at {percent(e['failed_score'])}"


_COSTS = {
    "parameters": (
        "trainable parameters, encoder and head",
        "all of them train the same number of parameters",
    ),
    "time": ("seconds a training", "all of them took the same time"),
    "memory": ("memory of a trial's own training, MiB", "all of them hold the same"),
}


def cost(task: Facts, what: str, name: str) -> Drawn:
    """Score against `parameters`, `time` or `memory`, with the frontier: where nothing cheaper is as good."""
    title, (unit, missing) = f"Score against {what}", _COSTS[what]
    # A method that never ended well stands for a constant answer, and no score of its own.
    groups = [g for g in task["groups"] if _cost(g, what) and g["estimate"]["trials"]]
    if len(task["groups"]) < 2:
        return Absent(title, "it takes two methods or settings that have ended")
    if len({_cost(g, what) for g in groups}) < 2:
        return Absent(title, missing)
    looks = styles(groups, task["groups"])
    ordered = sorted(groups, key=lambda g: (_cost(g, what) or 0, -g["estimate"]["value"]))
    best: list[Facts] = []
    for g in ordered:
        if not best or g["estimate"]["value"] > best[-1]["estimate"]["value"]:
            best.append(g)

    def plot(axes: Any) -> None:
        costs = [_cost(g, what) or 0 for g in groups]
        axes.step(
            [*(_cost(g, what) for g in best), max(costs)],
            [100 * g["estimate"]["value"] for g in (*best, best[-1])],
            where="post",
            color=MUTED,
            linewidth=1,
            linestyle="--",
        )
        for g, (told, look) in zip(groups, looks, strict=True):
            with_intervals(axes, [_cost(g, what)], [g], short(told), look)
        if max(costs) >= _LOG_FROM * min(costs):
            axes.set_xscale("log")
            axes.set_xlim(min(costs) / 1.5, max(costs) * 1.5)
            log_ticks(axes.xaxis, costs)
        axes.set_xlabel(unit)
        axes.set_ylabel(axis_name(task["metric"]))
        legend(axes, [told for told, _ in looks])

    told = "On the frontier: " + ", ".join(
        f"{g['name']} ({percent(g['estimate']['value'])} at {_told(g, what)})" for g in best
    )
    told += (
        ". Behind it: "
        + ", ".join(
            f"{g['name']} ({percent(g['estimate']['value'])} at {_told(g, what)})"
            for g in ordered
            if g not in best
        )
        if len(best) < len(groups)
        else ""
    )
    note = "Broken line: the frontier, where nothing cheaper scored as high. Vertical lines: 95% intervals."
    if what == "memory":
        note += " Parameters, gradients and optimizer of one trial; encoder and activations are shared by a cohort."
    if what == "time":
        note += " A pass's time is divided among its trials by their tokens."
    return draw(name, title, told, plot, note=note)


def with_intervals(
    axes: Any, at: Sequence[Any], groups: Sequence[Facts], told: str, look: dict[str, Any]
) -> None:
    """Scores as points with their intervals, in percent."""
    values = [100 * g["estimate"]["value"] for g in groups]
    below, above = (
        [
            0 if g["estimate"][end] is None else max(sign * (100 * g["estimate"][end] - v), 0)
            for v, g in zip(values, groups, strict=True)
        ]
        for end, sign in (("low", -1), ("high", 1))
    )
    axes.errorbar(
        at,
        values,
        yerr=[below, above],
        label=told,
        color=look["color"],
        marker=look["marker"],
        linestyle="none",
        markersize=7,
    )


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < float("inf")


def _cost(group: Facts, what: str) -> float | None:
    e = group["estimate"]
    if what == "parameters":
        return group["parameters"]
    if what == "time":
        return e["seconds"]
    memory = e.get("memory_bytes")
    return None if memory is None else memory / 2**20


def _told(group: Facts, what: str) -> str:
    value = _cost(group, what) or 0
    if what == "parameters":
        return f"{count(int(value))} parameters"
    return duration(value) if what == "time" else f"{value:.3g} MiB"
