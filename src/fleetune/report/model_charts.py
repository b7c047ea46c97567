"""Pictures of the winner and of what training changed inside: confusion, calibration, biases moved, singular values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fleetune.report.charts import Facts, legend, log_ticks, style
from fleetune.report.svg import INK, MUTED, SERIES, Absent, Drawn, draw, short
from fleetune.report.words import count, percent, plural

# The darkest cell still lets the ink of its number be read, in light and in dark.
_DARKEST = 0.6
_MOST_WITH_SHARES = 6
_MOST_RANKS = 6
NO_WINNER = "no trial has ended well yet"


def confusion(model: Facts, name: str) -> Drawn:
    """Counts and shares of each label."""
    counts = model.get("confusion")
    title = "Confusion of the winner"
    if not counts:
        return Absent(title, model.get("no_confusion") or NO_WINNER)
    names, totals, right = model["label_names"], model["totals"], model["right"]

    def plot(axes: Any) -> None:
        for i, row in enumerate(counts):
            for j, found in enumerate(row):
                share = found / totals[i] if totals[i] else 0.0
                _cell(axes, j, -i, share)
                told = (
                    f"{found}\n{100 * share:.0f}%"
                    if len(names) <= _MOST_WITH_SHARES
                    else str(found)
                )
                axes.text(j, -i, told, ha="center", va="center", fontsize=10)
        _frame(axes, [short(n)[:14] for n in names], [short(n)[:14] for n in names])
        axes.set_xlabel("predicted")
        axes.set_ylabel("label")

    told = f"{count(right)} of {plural(model['n'], 'example')} right. " + "; ".join(
        f"{names[i]}: {count(counts[i][i])} of {count(totals[i])} right" for i in range(len(names))
    )
    return draw(
        name,
        title,
        told,
        plot,
        height=110 + 46 * min(len(names), 8),
        note="Rows: the label. Columns: what this one model predicted."
        + (" Below each count: its share of the row." if len(names) <= _MOST_WITH_SHARES else ""),
    )


def calibration(model: Facts, name: str) -> Drawn:
    """Accuracy against confidence."""
    found = model.get("calibration")
    title = "Calibration of the winner"
    if not found:
        return Absent(title, model.get("no_calibration") or NO_WINNER)

    def plot(axes: Any) -> None:
        low = 100 * min(b["low"] for b in found["bins"])
        axes.plot([low, 100], [low, 100], color=MUTED, linestyle="--", linewidth=1)
        for b in found["bins"]:
            axes.plot(
                [100 * b["confidence"]] * 2,
                [100 * b["accuracy_low"], 100 * b["accuracy_high"]],
                color=SERIES[0],
                linewidth=1.5,
            )
            width = 4 + 14 * (b["n"] / found["n"]) ** 0.5
            axes.plot(
                [100 * b["confidence"]],
                [100 * b["accuracy"]],
                "o",
                color=SERIES[0],
                markersize=width,
                alpha=0.7,
            )
        axes.set_xlabel("confidence, %")
        axes.set_ylabel("accuracy, %")

    told = (
        f"Expected calibration error {percent(found['error'])} points over {plural(found['n'], 'example')}. "
        + "; ".join(
            f"confidence {percent(b['confidence'])}: accuracy {percent(b['accuracy'])} "
            f"[{percent(b['accuracy_low'])}, {percent(b['accuracy_high'])}] on {count(b['n'])}"
            for b in found["bins"]
        )
    )
    return draw(
        name,
        title,
        told,
        plot,
        note="On the broken line confidence is right; below it the model is too sure. Larger dots hold more examples; lines "
        f"are 95% intervals. Expected calibration error: {percent(found['error'])} points.",
    )


def movement(found: Facts | None, name: str, why: str = "") -> Drawn:
    """How far biases moved under one setting, by place and layer."""
    title = "How far BitFit moved the biases"
    if not found:
        return Absent(title, why or "it takes a trial of bitfit that has ended")
    layers, roles = found["layers"], found["roles"]
    most = max(c["change"] for c in found["cells"])

    def plot(axes: Any) -> None:
        for c in found["cells"]:
            share = c["change"] / most if most else 0.0
            _cell(axes, layers.index(c["layer"]), -roles.index(c["role"]), share)
        step = 1 if len(layers) <= 13 else 2
        told = ["emb" if layer == 0 else str(layer) for layer in layers]
        _frame(
            axes,
            [t if i % step == 0 else "" for i, t in enumerate(told)],
            [r[-26:] for r in map(short, roles)],
        )
        axes.tick_params(axis="y", labelsize=9)
        axes.set_xlabel("layer")

    top = sorted(found["cells"], key=lambda c: -c["change"])[:3]
    told = "Moved most: " + "; ".join(
        f"{c['role']} in {'the embeddings' if c['layer'] == 0 else 'layer ' + str(c['layer'])} by {c['change']:.2g}"
        for c in top
    )
    return draw(
        name,
        title,
        told,
        plot,
        height=70 + 24 * len(roles),
        note=f"Mean absolute change of a bias, over {_read(found)}. The darkest cell is {most:.2g}; no "
        "colour is no change. emb: the embeddings.",
    )


def singular_values(found: Sequence[Facts], name: str, why: str = "") -> Drawn:
    """Singular values of the updates on one task, one line a setting."""
    title = "Singular values of LoRA's updates"
    shown = list(found)[-_MOST_RANKS:]
    if not shown:
        return Absent(title, why or "it takes a trial of lora that has ended")
    apart = len({f["r"] for f in found}) == len(found)
    names = [f"r={f['r']}" if apart else f["name"] for f in shown]

    def plot(axes: Any) -> None:
        for i, f in enumerate(shown):
            at, look = range(1, f["r"] + 1), style(i)
            if min(f["low"]) > 0:
                axes.fill_between(
                    at, f["low"], f["high"], color=look["color"], alpha=0.13, linewidth=0
                )
            axes.plot(at, f["median"], label=short(names[i]), markersize=4.5, **look)
        if all(min(f["median"]) > 0 for f in shown):
            axes.set_yscale("log")
            drawn = [v for f in shown for key in ("low", "median", "high") for v in f[key] if v > 0]
            log_ticks(axes.yaxis, drawn, "{:g}".format)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel("place of the singular value")
        axes.set_ylabel("singular value")
        legend(axes, names)

    told = "; ".join(
        f"{named}: effective rank {f['effective_rank']:.2f} on average over {plural(f['updates'], 'update')} of {_read(f)}"
        for named, f in zip(names, shown, strict=True)
    )
    effective = "; ".join(
        f"{named}: {f['effective_rank']:.2f}" for named, f in zip(names, shown, strict=True)
    )
    left = f" Drawn: the {len(shown)} highest of {len(found)}." if len(shown) < len(found) else ""
    if any(f["trials"] < f["of"] for f in shown):
        left += f" Of each setting the first {plural(max(f['trials'] for f in shown), 'trial')} at most."
    return draw(
        name,
        title,
        told,
        plot,
        note="Of scale x B A: median over layers and trials, band from the 10th to the 90th percentile. Values that fall off "
        f"steeply say that a smaller rank would do. Effective rank: {effective}.{left}",
    )


def _read(found: Facts) -> str:
    """Of how many trials a record tells."""
    if found["trials"] < found["of"]:
        return f"the first {found['trials']} of {plural(found['of'], 'trial')}"
    return plural(found["trials"], "trial")


def _cell(axes: Any, x: float, y: float, share: float) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(
        Rectangle(
            (x - 0.48, y - 0.48),
            0.96,
            0.96,
            facecolor=SERIES[0],
            alpha=round(_DARKEST * share, 3),
            linewidth=0,
        )
    )


def _frame(axes: Any, across: Sequence[str], down: Sequence[str]) -> None:
    axes.set_xlim(-0.5, len(across) - 0.5)
    axes.set_ylim(-len(down) + 0.5, 0.5)
    axes.set_xticks(range(len(across)), across, color=INK)
    axes.set_yticks([-i for i in range(len(down))], down, color=INK)
    if sum(map(len, across)) > 40:
        axes.tick_params(axis="x", labelrotation=45)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
