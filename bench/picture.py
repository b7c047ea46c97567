"""The picture of bench.cohort: speed against the number of trials, with the peers and the limit, and cost per trial below."""

from __future__ import annotations

from pathlib import Path
from typing import Any

COLOURS = {
    "trainer": "#d55e00",
    "trainer-grouped": "#e69f00",
    "trainer-default": "#999999",
    "processes": "#cc79a7",
    "adapters": "#009e73",
}

WIDEST = 4
"""Groups beside one another; more begin a new band below."""


def draw(told: dict[str, Any], path: Path) -> Path | None:
    """Write the picture; None where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "fleetune"  # the same numbers give the same file
    from matplotlib import pyplot

    groups = list(dict.fromkeys(row["group"] for row in told["summary"]))
    wide = min(max(len(groups), 1), WIDEST)
    bands = -(-len(groups) // wide) or 1
    size = (3.6 * wide, 6.4 * bands)
    figure, axes = pyplot.subplots(2 * bands, wide, figsize=size, squeeze=False)
    for ax in axes.flat:
        ax.set_visible(False)
    lines: dict[str, Any] = {}
    for i, group in enumerate(groups):
        rows = [row for row in told["summary"] if row["group"] == group]
        band, column = divmod(i, wide)
        speed, cost = axes[2 * band][column], axes[2 * band + 1][column]
        _speed(speed, group, rows)
        _cost(cost, rows)
        for ax, unit in ((speed, "examples a second"), (cost, "seconds a trial and step")):
            ax.set_visible(True)
            ax.set_ylabel(unit if column == 0 else "")
        handles, names = speed.get_legend_handles_labels()
        lines |= dict(zip(names, handles, strict=True))
    figure.legend(
        lines.values(), lines.keys(), loc="upper center", ncols=3, fontsize=8, frameon=False
    )
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.07 / bands))
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return path


def _speed(ax: Any, group: str, rows: list[dict[str, Any]]) -> None:
    sizes = [row["trials"] for row in rows]
    figures = [row["examples_per_second"] for row in rows]
    middle = [f["median"] for f in figures]
    ends = [[f["median"] - f["low"] for f in figures], [f["high"] - f["median"] for f in figures]]
    ax.errorbar(sizes, middle, yerr=ends, marker="o", capsize=3, color="#0072b2", label="fleetune")
    for name in dict.fromkeys(n for row in rows for n in row["peers"]):
        told = [(row["trials"], row["peers"][name]) for row in rows if name in row["peers"]]
        ax.plot(
            [k for k, _ in told], [p["examples_per_second"]["median"] for _, p in told],
            linestyle="--", marker=".", color=COLOURS.get(name), label=name,
        )  # fmt: skip
    limits = [r["limit_examples_per_second"]["median"] for r in rows if "limit_examples_per_second" in r]  # fmt: skip
    if limits:
        ax.axhline(sum(limits) / len(limits), color="black", linewidth=0.8, label="limit")
        ax.set_yscale("log")
        for axis_labels in (ax.yaxis.set_major_formatter, ax.yaxis.set_minor_formatter):
            axis_labels(lambda value, _: f"{value:g}" if f"{value:g}"[0] in "125" else "")
    _axes(ax, sizes)
    ax.set_title(group, fontsize=9)


def _cost(ax: Any, rows: list[dict[str, Any]]) -> None:
    sizes = [row["trials"] for row in rows]
    seconds = [row["seconds_per_trial_step"]["median"] for row in rows]
    ax.plot(sizes, seconds, marker="o", color="#0072b2")
    _axes(ax, sizes)
    ax.set_ylim(0, 1.1 * max(seconds))
    ax.set_xlabel("trials in a cohort")


def _axes(ax: Any, sizes: list[int]) -> None:
    ax.set_xscale("log", base=2)
    ax.set_xticks(sizes, [str(k) for k in sizes])
    ax.grid(alpha=0.3)
