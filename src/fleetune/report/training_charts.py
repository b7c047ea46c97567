"""Pictures of training and search: learning curves, timeline, search history, parallel coordinates, importance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fleetune.report.charts import Facts, legend, style, styles
from fleetune.report.page_facts import axis
from fleetune.report.svg import INK, MUTED, SERIES, Picture, draw, short
from fleetune.report.words import duration, percent

_MOST_CURVES = 6
_BEST_SHARE = 4
"""Of the searched trials one in so many is drawn strong."""


def curves(task: Facts, what: str, name: str) -> Picture | None:
    """Learning curves: the median over the seeds, and a band from the lowest to the highest. what: selection or loss."""
    groups = [g for g in task["groups"] if len(g["curve"]) > 1]
    groups = sorted(groups, key=lambda g: -g["estimate"]["value"])[:_MOST_CURVES]
    if not groups:
        return None
    factor = 1 if what == "loss" else 100
    metric = "training loss" if what == "loss" else f"{groups[0]['curve'][0]['metric']}, %"

    def plot(axes: Any) -> None:
        for g, (told, look) in zip(groups, styles(groups), strict=True):
            at = [c["epoch"] for c in g["curve"]]
            low, middle, high = (
                [factor * c[what][key] for c in g["curve"]] for key in ("low", "median", "high")
            )
            axes.fill_between(at, low, high, color=look["color"], alpha=0.13, linewidth=0)
            axes.plot(at, middle, label=short(told), markersize=4.5, **look)
        axes.set_xlabel("epoch")
        axes.set_ylabel(metric)
        axes.xaxis.get_major_locator().set_params(integer=True)
        legend(axes, [g["name"] for g in groups])

    told = "; ".join(
        f"{g['name']}: median {factor * g['curve'][0][what]['median']:.2f} after epoch {g['curve'][0]['epoch']}, "
        f"{factor * g['curve'][-1][what]['median']:.2f} after epoch {g['curve'][-1]['epoch']}"
        for g in groups
    )
    left = len([g for g in task["groups"] if len(g["curve"]) > 1]) - len(groups)
    note = "Line: median over the seeds. Band: from the lowest seed to the highest." + (
        f" The {left} settings with lower estimates are not drawn." if left else ""
    )
    title = "Training loss" if what == "loss" else "Selection score"
    return draw(name, f"{title} by epoch", told, plot, note=note)


def timeline(rows: Sequence[Facts], name: str) -> Picture | None:
    """One line a trial, from its start to its end: trials of one cohort run side by side."""
    if not rows:
        return None
    methods = list(dict.fromkeys(r["method"] for r in rows))
    last = max(r["end"] for r in rows)
    unit, per = (
        ("hours", 3600) if last >= 7200 else ("minutes", 60) if last >= 120 else ("seconds", 1)
    )

    def plot(axes: Any) -> None:
        for i, r in enumerate(rows):
            look = style(methods.index(r["method"]))
            axes.plot(
                [r["start"] / per, r["end"] / per],
                [-i, -i],
                label=short(r["method"]),
                color=look["color"],
                linestyle=look["linestyle"],
                linewidth=3,
                solid_capstyle="butt",
            )
            if r["status"] != "done":
                axes.plot([r["end"] / per], [-i], marker="x", color=INK, markersize=6)
        axes.set_yticks([])
        axes.set_xlim(left=0)
        axes.set_xlabel(f"{unit} since the run began")
        legend(axes, methods)

    bad = sum(r["status"] != "done" for r in rows)
    told = f"{len(rows)} trials in {duration(last)}; {bad} did not end well."
    return draw(
        name,
        "Trials over time",
        told,
        plot,
        height=min(90 + 9 * len(rows), 620),
        note="One line a trial; lines above each other share a pass through the backbone. A cross: failed or not ended.",
    )


def history(search: Sequence[Facts], name: str) -> Picture | None:
    """Selection score of the searched trials in order, and the best so far."""
    if not search:
        return None

    def plot(axes: Any) -> None:
        for i, s in enumerate(search):
            look, values = style(i), [100 * t["score"] for t in s["trials"]]
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
                label=short(s["method"]),
                color=look["color"],
                linestyle=look["linestyle"],
            )
        axes.set_xlabel("trial of the method")
        axes.set_ylabel(f"selection {search[0]['metric']}, %")
        legend(axes, [s["method"] for s in search])

    told = "; ".join(
        f"{s['method']}: best {percent((max if s['greater_is_better'] else min)(t['score'] for t in s['trials']))} "
        f"in {len(s['trials'])} trials"
        for s in search
    )
    return draw(
        name,
        "Search history",
        told,
        plot,
        note="Mark: one trial. Line: the best so far. Selection scores are what the search chose by; they are not test scores.",
    )


def budget(search: Sequence[Facts], name: str) -> Picture | None:
    """Expected best selection score against the number of trials."""
    shown = [s for s in search if len(s["expected_best"]) > 1]
    if not shown:
        return None

    def plot(axes: Any) -> None:
        for i, s in enumerate(shown):
            at = range(1, len(s["expected_best"]) + 1)
            axes.plot(
                at,
                [100 * v for v in s["expected_best"]],
                label=short(s["method"]),
                markersize=4,
                **style(i),
            )
        axes.set_xlabel("trials spent on the method")
        axes.set_ylabel(f"expected best selection {shown[0]['metric']}, %")
        legend(axes, [s["method"] for s in shown])

    told = "; ".join(
        f"{s['method']}: {percent(s['expected_best'][0])} with one trial, {percent(s['expected_best'][-1])} "
        f"with {len(s['expected_best'])}"
        for s in shown
    )
    return draw(
        name,
        "Expected best against budget",
        told,
        plot,
        note="What the best of so many trials is expected to score (Dodge et al. 2019). A curve still rising says that "
        "the search was short.",
    )


def parallel(s: Facts, name: str) -> Picture | None:
    """Parallel coordinates: one line a trial through its settings to its score."""
    rows = s["trials"]
    names = list(rows[0]["settings"])
    if len(rows) < 3 or len(names) < 2:
        return None
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
                (min(places), percent(min(places))),
                (max(places), percent(max(places))),
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
        f"{len(rows)} trials over {', '.join(names)}; the best quarter is drawn strong. Best: "
        + ", ".join(
            f"{k} = {v:g}" if isinstance(v, float) else f"{k} = {v}"
            for k, v in rows[ranked[0]]["settings"].items()
        )
    )
    return draw(
        name,
        f"Settings of {s['method']}",
        told,
        plot,
        height=70 + 52 * len(columns),
        note="One line a trial, through its settings down to its score; the best quarter is drawn strong.",
    )


def importance(s: Facts, name: str) -> Picture | None:
    """How much each setting mattered."""
    shares = s["importance"]
    if not shares:
        return None
    ranked = sorted(shares.items(), key=lambda pair: pair[1])

    def plot(axes: Any) -> None:
        axes.barh([short(k)[:22] for k, _ in ranked], [100 * v for _, v in ranked], color=SERIES[0])
        axes.set_xlabel("share of what a forest explains, %")
        axes.grid(axis="y", visible=False)

    told = ", ".join(f"{k}: {percent(v)}%" for k, v in reversed(ranked))
    return draw(
        name,
        f"What mattered for {s['method']}",
        told,
        plot,
        height=80 + 26 * len(ranked),
        note=f"Permutation importance of a random forest over {len(s['trials'])} trials; it says nothing about ranges "
        "that were not searched.",
    )


def _running(values: Sequence[float], higher: bool) -> list[float]:
    best: list[float] = []
    for v in values:
        best.append(v if not best else max(best[-1], v) if higher else min(best[-1], v))
    return best


def _unit(places: Sequence[float]) -> list[float]:
    low, high = min(places), max(places)
    return [(p - low) / (high - low) if high > low else 0.5 for p in places]
