"""From cells to the numbers that are reported: speeds, ratios, shares of the limit, memory, cost of a trial.

A speed is examples a second. A ratio is taken within one repeat, by real tokens a second: where a peer trained the first
trials only, its rows are a little shorter or longer, and its tokens are not. Every figure is the median over the repeats,
with the smallest and the largest. The limit takes the highest matrix rate that any repeat measured (rate.py).
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

KEY = re.compile(r"(?P<group>.+)/(?P<side>[^/]+)/K(?P<trials>\d+)/r(?P<repeat>\d+)")
Found = dict[str, Any]
Spread = dict[str, float]


def summarise(results: Found) -> list[Found]:
    """One row a group and cohort size, in the order of the file.

    Each holds group, trials, examples_per_second, seconds_per_trial_step, share_of_limit, peak_mib, and for each peer
    examples_per_second, ratio, peak_mib (figures as {"median", "low", "high", "n"}).
    """
    cells = parsed(results["cells"])
    rates = best_rates(results["cells"])
    steps = results["setup"]["steps"]
    rows: list[Found] = []
    for group, trials in dict.fromkeys((g, k) for g, side, k, _ in cells if side == "fleetune"):
        own = {
            r: c for (g, s, k, r), c in cells.items() if (g, s, k) == (group, "fleetune", trials)
        }
        rate = rates.get(group.partition("/")[0], {})
        row: Found = {
            "group": group,
            "trials": trials,
            "examples_per_second": spread(c["examples"] / c["seconds"] for c in own.values()),
            "seconds_per_trial_step": spread(
                c["seconds"] / c["trials"] / steps for c in own.values()
            ),
            "peak_mib": spread(_memory(c) for c in own.values()),
            "peers": {},
        }
        if rate:
            row["share_of_limit"] = spread(
                c["frozen_operations"] / rate[c["dtype"]] / c["seconds"] for c in own.values()
            )
            row["limit_examples_per_second"] = spread(
                c["examples"] * rate[c["dtype"]] / c["frozen_operations"] for c in own.values()
            )
        for side in dict.fromkeys(s for g, s, _, _ in cells if g == group and s != "fleetune"):
            peer = _peer(cells, group, side, trials, own)
            if peer is not None:
                row["peers"][side] = peer
        rows.append(row)
    return sorted(rows, key=lambda row: (_first(cells, row["group"]), row["trials"]))


def parsed(cells: Found) -> dict[tuple[str, str, int, int], Found]:
    """The cells that were measured, by (group, side, K, repeat)."""
    found: dict[tuple[str, str, int, int], Found] = {}
    for key, cell in cells.items():
        match = KEY.fullmatch(key)
        if match and "failed" not in cell:
            place = match["group"], match["side"], int(match["trials"]), int(match["repeat"])
            found[place] = cell
    return found


def best_rates(cells: Found) -> dict[str, dict[str, float]]:
    """The highest matrix rate of any repeat, by backbone and dtype."""
    found: dict[str, dict[str, float]] = {}
    for key, cell in cells.items():
        match = re.fullmatch(r"(.+)/rate/r\d+", key)
        if match and "failed" not in cell:
            held = found.setdefault(match[1], {})
            for dtype in ("bfloat16", "float32"):
                held[dtype] = max(held.get(dtype, 0.0), cell[dtype])
    return found


def spread(values: Iterable[float]) -> Spread:
    """Median, smallest, largest and number of some values; of at least one."""
    every = list(values)
    return {
        "median": statistics.median(every),
        "low": min(every),
        "high": max(every),
        "n": len(every),
    }


def _peer(
    cells: dict[tuple[str, str, int, int], Found],
    group: str,
    side: str,
    trials: int,
    own: dict[int, Found],
) -> Found | None:
    """What a peer did in the repeats in which it was measured too; None where there is none."""
    theirs: dict[int, Found] = {}
    for (g, s, k, repeat), cell in cells.items():
        # AdapterHub trains so many at once; the others' speed does not depend on how many there are.
        if (g, s) == (group, side) and (side != "adapters" or k == trials):
            theirs[repeat] = _first_trials(cell, trials)
    common = sorted(theirs.keys() & own.keys())
    if not common:
        return None
    return {
        "examples_per_second": spread(theirs[r]["examples"] / theirs[r]["seconds"] for r in common),
        "ratio": spread(_speed(own[r]) / _speed(theirs[r]) for r in common),
        "peak_mib": spread(_memory(theirs[r]) for r in common),
    }


def _first_trials(cell: Found, trials: int) -> Found:
    """Of a loop, as many of its trials as the cohort has, so that a cohort of one meets the same trial."""
    each: Sequence[Found] = cell.get("each", ())
    if len(each) <= trials:
        return cell
    return {
        **cell,
        **{n: sum(e[n] for e in each[:trials]) for n in ("seconds", "examples", "tokens")},
    }


def _speed(cell: Found) -> float:
    return cell["tokens"] / cell["seconds"]


def _memory(cell: Found) -> float:
    """Of a GPU where one was used, else of the process."""
    return cell.get("device_mib") or cell["peak_mib"]


def _first(cells: dict[tuple[str, str, int, int], Found], group: str) -> int:
    return next(i for i, key in enumerate(cells) if key[0] == group)
