"""The picture of a rank study: score against rank, one line a study."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fleetune.report.charts import legend, style, with_intervals
from fleetune.report.svg import MUTED, Absent, Drawn, draw, short
from fleetune.report.words import axis_name, count, interval, percent, size
from fleetune.study.settings import names_of

Facts = dict[str, Any]


def rank(task: Facts, name: str, studied: Sequence[Facts] = ()) -> Drawn:
    """Score against rank, with the encoder's parameters under each rank.

    studied: the task's rank studies, whose scores on the training rows show where a rank fits more than it learns.
    """
    groups = [g for g in task["groups"] if isinstance(_rank(g), int)]
    ranks = sorted({_rank(g) for g in groups})
    if len(ranks) < 2:
        return Absent("Rank against score", "it takes a low-rank method with two ranks or more")

    lines = _rank_lines(groups, studied)

    def plot(axes: Any) -> None:
        for i, (told, mine, fitted) in enumerate(lines):
            look, at = style(i), [_rank(g) for g in mine]
            with_intervals(axes, at, mine, short(told), look)
            if len(at) == len(set(at)):
                scores = [100 * g["estimate"]["value"] for g in mine]
                axes.plot(at, scores, color=look["color"], linewidth=1, alpha=0.6)
            if fitted:
                axes.plot(
                    [r for r, _ in fitted],
                    [100 * v for _, v in fitted],
                    color=look["color"] if len(studied) > 1 else MUTED,
                    linestyle="--",
                    marker="s",
                    markerfacecolor="none",
                    markersize=5,
                    linewidth=1,
                    label="on train",
                )
        axes.set_xscale("log", base=2)
        axes.set_xticks(ranks, [f"{r}\n{_sizes(groups, r)}" for r in ranks])
        axes.minorticks_off()
        axes.set_xlabel("rank r, and trainable parameters in the encoder")
        axes.set_ylabel(axis_name(task["metric"]))
        if len(lines) > 1 or studied:
            legend(axes, [*(told for told, *_ in lines), "on train"])

    told = "; ".join(
        f"{g['name']}: {percent(g['estimate']['value'])} {interval(g['estimate'])} with "
        f"{count(g['estimate']['trainable_parameters']['encoder'])} encoder parameters"
        for g in sorted(groups, key=_rank)
    )
    return draw(
        name,
        "Rank against score",
        told,
        plot,
        note="Vertical lines: 95% intervals. To choose the rank with the highest dot is to choose partly by luck."
        + (
            " On train: the score on the training rows; the gap is what a rank memorises."
            if studied
            else ""
        ),
    )


def _rank_lines(
    groups: Sequence[Facts], studied: Sequence[Facts]
) -> list[tuple[str, list[Facts], list[tuple[int, float]]]]:
    """One line a rank study, and one for what else a method trained: name, groups by rank, (rank, score on train)."""
    of = {r["label"]: i for i, study in enumerate(studied) for r in study["ranks"]}
    lines: dict[tuple[str, str | None, int], list[Facts]] = {}
    for g in sorted(groups, key=_rank):
        method, place = g["estimate"]["method"], of.get(g["name"], -1)
        named = studied[place]["name"] if place >= 0 else None
        lines.setdefault((method, named, place), []).append(g)
    names = names_of((method, named) for method, named, _ in lines)
    fitted = [
        [(r["r"], r["train"]) for r in studied[place]["ranks"] if r["train"] is not None]
        if place >= 0
        else []
        for *_, place in lines
    ]
    return list(zip(names, lines.values(), fitted, strict=True))


def _sizes(groups: Sequence[Facts], rank: int) -> str:
    """The encoder's parameters under a rank: a range, on two lines, where methods train different places."""
    found = [g["estimate"]["trainable_parameters"]["encoder"] for g in groups if _rank(g) == rank]
    return " to\n".join(dict.fromkeys(size(n) for n in (min(found), max(found))))


def _rank(group: Facts) -> Any:
    return group["estimate"]["hyperparameters"].get("r")
