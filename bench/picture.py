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
    wide = max(len(groups), 1)
    figure, axes = pyplot.subplots(2, wide, figsize=(3.6 * wide, 6.4), squeeze=False)
    for i, group in enumerate(groups):
        rows = [row for row in told["summary"] if row["group"] == group]
        _speed(axes[0][i], group, rows)
        _cost(axes[1][i], rows)
    axes[0][0].set_ylabel("examples a second")
    axes[1][0].set_ylabel("seconds a trial and step")
    lines: dict[str, Any] = {}
    for ax in axes[0]:
        handles, names = ax.get_legend_handles_labels()
        lines |= dict(zip(names, handles, strict=True))
    figure.legend(
        lines.values(), lines.keys(), loc="upper center", ncols=3, fontsize=8, frameon=False
    )
    figure.tight_layout(rect=(0, 0, 1, 0.93))
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
    ax.plot(
        sizes, [row["seconds_per_trial_step"]["median"] for row in rows], marker="o", color="#0072b2"
    )  # fmt: skip
    _axes(ax, sizes)
    ax.set_ylim(bottom=0)
    ax.set_xlabel("trials in a cohort")


def _axes(ax: Any, sizes: list[int]) -> None:
    ax.set_xscale("log", base=2)
    ax.set_xticks(sizes, [str(k) for k in sizes])
    ax.grid(alpha=0.3)
