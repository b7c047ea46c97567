"""Pictures that compare methods: differences, seeds, rank, and score against cost. Facts in, pictures out.

Each function gives None where the facts for its picture are not there. Scores are drawn in percent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fleetune.report.svg import DASHES, INK, MARKERS, MUTED, SERIES, Picture, draw, short
from fleetune.report.words import count, duration, interval, percent, points, size

Facts = dict[str, Any]
# More methods than colours: then all settings of one method look alike.
_MOST_STYLES = len(SERIES)


def style(place: int) -> dict[str, Any]:
    """Colour, marker and dash of a series: never told apart by colour alone."""
    turn = place // len(SERIES)
    return {
        "color": SERIES[place % len(SERIES)],
        "marker": MARKERS[(place + turn) % len(MARKERS)],
        "linestyle": DASHES[(place + turn) % len(DASHES)],
    }


def styles(groups: Sequence[Facts]) -> list[tuple[str, dict[str, Any]]]:
    """The legend's name and the style of each group."""
    names = [g["name"] for g in groups]
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


def rows_under_names(axes: Any, names: Sequence[str]) -> None:
    """Make room for one row a name, each under its name: names at the side would take half of a phone."""
    for i, name in enumerate(names):
        axes.text(0, -i + 0.24, short(name), transform=axes.get_yaxis_transform(), va="bottom")
    axes.set_ylim(-len(names) + 0.55, 0.75)
    axes.set_yticks([])
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)


def differences(verdicts: Sequence[Facts], name: str) -> Picture | None:
    """Each method's difference to the reference, its interval, and the smallest difference that could be seen."""
    if not verdicts:
        return None

    def plot(axes: Any) -> None:
        for i, v in enumerate(verdicts):
            if v["detectable"] is not None:
                axes.plot(
                    [-100 * v["detectable"], 100 * v["detectable"]],
                    [-i, -i],
                    color=MUTED,
                    alpha=0.3,
                    linewidth=9,
                    solid_capstyle="butt",
                )
            axes.plot([100 * v["low"], 100 * v["high"]], [-i, -i], color=SERIES[0], linewidth=2)
            axes.plot([100 * v["difference"]], [-i], color=SERIES[0], marker="o", markersize=7)
        axes.axvline(0, color=INK, linewidth=1)
        rows_under_names(
            axes, [f"{v['name']} - {v['reference']}: {v['verdict']}" for v in verdicts]
        )
        axes.set_xlabel("difference in points")

    told = "; ".join(
        f"{v['name']} minus {v['reference']}: {points(v['difference'])} points, "
        f"95% interval {interval(v, signed=True)}, {v['verdict']}"
        for v in verdicts
    )
    return draw(
        name,
        "Differences to the reference",
        told,
        plot,
        height=75 + 44 * len(verdicts),
        note="Dot and line: the difference and its 95% interval. Grey: differences too small for this study to see. "
        "An interval that crosses zero leaves the direction open.",
    )


def seeds(task: Facts, name: str) -> Picture | None:
    """Every seed a dot, with mean and interval."""
    groups = [g for g in task["groups"] if g["seeds"]]
    if not groups:
        return None

    def plot(axes: Any) -> None:
        for i, g in enumerate(groups):
            e, colour = g["estimate"], SERIES[i % len(SERIES)]
            axes.plot([100 * e["low"], 100 * e["high"]], [-i, -i], color=colour, linewidth=2)
            axes.plot(
                [100 * s["score"] for s in g["seeds"]],
                [-i] * len(g["seeds"]),
                "o",
                color=colour,
                alpha=0.55,
                markersize=6,
                markeredgewidth=0,
            )
            axes.plot([100 * e["value"]], [-i], "|", color=INK, markersize=14, markeredgewidth=2)
        rows_under_names(axes, [g["name"] for g in groups])
        axes.set_xlabel(f"{task['metric']} on {short(task['set'])}, %")

    told = "; ".join(
        f"{g['name']}: mean {percent(g['estimate']['value'])}, seeds "
        + ", ".join(percent(s["score"]) for s in g["seeds"])
        for g in groups
    )
    return draw(
        name,
        "Every seed",
        told,
        plot,
        height=75 + 40 * len(groups),
        note="Dot: one training. Bar: their mean. Line: its 95% interval over new seeds and new examples.",
    )


def rank(task: Facts, name: str) -> Picture | None:
    """Score against rank, with the encoder's parameters under each rank."""
    groups = [g for g in task["groups"] if isinstance(_rank(g), int)]
    ranks = sorted({_rank(g) for g in groups})
    if len(ranks) < 2:
        return None

    def plot(axes: Any) -> None:
        for method in dict.fromkeys(g["estimate"]["method"] for g in groups):
            mine = [g for g in groups if g["estimate"]["method"] == method]
            _with_intervals(axes, [_rank(g) for g in mine], mine, short(method), style(0))
        axes.set_xscale("log", base=2)
        parameters = {_rank(g): g["estimate"]["trainable_parameters"]["encoder"] for g in groups}
        axes.set_xticks(ranks, [f"{r}\n{size(parameters[r])}" for r in ranks])
        axes.minorticks_off()
        axes.set_xlabel("rank r, and trainable parameters in the encoder")
        axes.set_ylabel(f"{task['metric']}, %")

    told = "; ".join(
        f"{g['name']}: {percent(g['estimate']['value'])} with {count(g['estimate']['trainable_parameters']['encoder'])} "
        "encoder parameters"
        for g in sorted(groups, key=_rank)
    )
    return draw(
        name,
        "Rank against score",
        told,
        plot,
        note="Lines: 95% intervals. Choosing the rank with the highest dot is choosing partly by luck.",
    )


def cost(task: Facts, what: str, name: str) -> Picture | None:
    """Score against `parameters`, `time` or `memory`, with the frontier: where nothing cheaper is as good."""
    groups = [g for g in task["groups"] if _cost(g, what)]
    if len(groups) < 2 or len({_cost(g, what) for g in groups}) < 2:
        return None
    ordered = sorted(groups, key=lambda g: (_cost(g, what) or 0, -g["estimate"]["value"]))
    best: list[Facts] = []
    for g in ordered:
        if not best or g["estimate"]["value"] > best[-1]["estimate"]["value"]:
            best.append(g)
    unit = {
        "parameters": "trainable parameters, encoder and head",
        "time": "seconds a training",
        "memory": "memory, GiB",
    }[what]

    def plot(axes: Any) -> None:
        at = [_cost(g, what) for g in best]
        axes.step(
            at,
            [100 * g["estimate"]["value"] for g in best],
            where="post",
            color=MUTED,
            linewidth=1,
            linestyle="--",
        )
        for g, (told, look) in zip(groups, styles(groups), strict=True):
            _with_intervals(axes, [_cost(g, what)], [g], short(told), look)
        costs = [_cost(g, what) or 0 for g in groups]
        if max(costs) >= 5 * min(costs):
            axes.set_xscale("log")
        axes.set_xlabel(unit)
        axes.set_ylabel(f"{task['metric']}, %")
        legend(axes, [told for told, _ in styles(groups)])

    told = "On the frontier: " + ", ".join(
        f"{g['name']} ({percent(g['estimate']['value'])} at {_told(g, what)})" for g in best
    )
    return draw(
        name,
        f"Score against {what}",
        told,
        plot,
        note="Broken line: the frontier, where nothing cheaper scored as high. Vertical lines: 95% intervals.",
    )


def _with_intervals(
    axes: Any, at: Sequence[Any], groups: Sequence[Facts], told: str, look: dict[str, Any]
) -> None:
    values = [100 * g["estimate"]["value"] for g in groups]
    below = [v - 100 * g["estimate"]["low"] for v, g in zip(values, groups, strict=True)]
    above = [100 * g["estimate"]["high"] - v for v, g in zip(values, groups, strict=True)]
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


def _rank(group: Facts) -> Any:
    return group["estimate"]["hyperparameters"].get("r")


def _cost(group: Facts, what: str) -> float | None:
    e = group["estimate"]
    if what == "parameters":
        return e["trainable_parameters"]["encoder"] + e["trainable_parameters"]["head"]
    if what == "time":
        return e["seconds"]
    memory = e.get("memory_bytes")
    return None if memory is None else memory / 2**30


def _told(group: Facts, what: str) -> str:
    value = _cost(group, what) or 0
    if what == "parameters":
        return count(int(value))
    return duration(value) if what == "time" else f"{value:.2f} GiB"
