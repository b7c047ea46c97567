"""What is to be measured, in which order, and about how long it takes.

A cell is one measurement: one side on one group's trials, once. Within a repeat the sides of a group follow one another, large
and small cohorts with peers between them, and every other repeat goes through them backwards: a machine that changes its
speed meets all sides. Ratios are taken within a repeat.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

PEERS = ("trainer", "trainer-grouped", "trainer-default", "processes", "adapters")
# AdapterHub repeats each batch K times, padded, and keeps every activation in float32 or autocast: 32 times 16 rows of RTE
# take tens of GiB.
ADAPTERS_TRIALS = (1, 8)


@dataclass(frozen=True, slots=True)
class Group:
    """What all sides train."""

    backbone: str
    task: str
    mix: str
    trials: tuple[int, ...]
    """Sizes of Fleetune's cohorts."""

    @property
    def name(self) -> str:
        return f"{self.short}/{self.task}/{self.mix}"

    @property
    def short(self) -> str:
        """The backbone's part of a name: a shape without its prefix, a folder or hub id without slashes."""
        return self.backbone.removeprefix("shape:").strip("/").replace("/", "-")


@dataclass(frozen=True, slots=True)
class Cell:
    """One measurement."""

    group: Group
    side: str
    trials: int
    """K; for the loop and the processes, how many trials they take in turn or at once."""
    repeat: int

    @property
    def key(self) -> str:
        """Its name in the results, e.g. `minilm/rte/mixed/fleetune/K8/r0`."""
        if self.side == "rate":  # the same for every group of a backbone
            return f"{self.group.short}/rate/r{self.repeat}"
        return f"{self.group.name}/{self.side}/K{self.trials}/r{self.repeat}"


def plan(
    groups: Sequence[Group],
    repeats: int,
    *,
    sides: Sequence[str],
    loop_trials: int,
    processes: int,
    only: Sequence[str] = (),
) -> list[Cell]:
    """All cells in the order in which they are measured.

    sides: of `fleetune` and PEERS. only: patterns of which a cell's key must match one (`*` on both sides is understood);
    rates are always kept, since the limit is drawn from them.
    """
    found: dict[str, Cell] = {}
    for repeat in range(repeats):
        for group in groups:
            cells = _of_group(group, repeat, sides, loop_trials, processes)
            kept = [c for c in cells if not only or any(_matches(c.key, p) for p in only)]
            if kept:
                rate = Cell(group, "rate", 0, repeat)
                found.setdefault(rate.key, rate)
            found.update({c.key: c for c in (kept if repeat % 2 == 0 else reversed(kept))})
    return list(found.values())


def _of_group(
    group: Group, repeat: int, sides: Sequence[str], loop_trials: int, processes: int
) -> list[Cell]:
    own = [Cell(group, "fleetune", k, repeat) for k in group.trials] if "fleetune" in sides else []
    counts = {"processes": processes}
    peers: list[Cell] = []
    for side in PEERS:
        if side not in sides:
            continue
        if side == "adapters":
            if group.mix == "lora":  # it has no BitFit
                peers += [
                    Cell(group, side, k, repeat) for k in group.trials if k in ADAPTERS_TRIALS
                ]
        else:
            peers.append(Cell(group, side, counts.get(side, loop_trials), repeat))
    mixed: list[Cell] = []
    for i in range(max(len(own), len(peers))):
        mixed += peers[i : i + 1] + own[i : i + 1]
    return mixed


def _matches(key: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(key, f"*{pattern}*")


# --- an estimate, before anything is known of the machine

# Operations of the frozen products for one token, from the published shapes: 4 * layers * (4 D^2 + 2 D * F).
OPERATIONS = {"minilm": 42.5e6, "shape:roberta-base": 340e6, "shape:tiny": 0.1e6}
# Real tokens of a training row with MiniLM's tokenizer, roughly.
TOKENS = {"rte": 70.0, "sst2": 14.0, "demo-sentiment": 26.0, "demo-entailment": 30.0}
# Assumed shares of the matrix rate; the default setting pads every row to 128 tokens in float32.
SHARES = {"fleetune": 0.35, "trainer": 0.13, "trainer-grouped": 0.15, "processes": 0.16, "adapters": 0.12}  # fmt: skip
DEFAULT_SHARE, DEFAULT_TOKENS = 0.16, 128.0
RATE = {"cpu": 150e9, "cuda": 300e12}
"""Assumed operations a second in bfloat16, of a core or of a GPU."""
START = 12.0
"""Seconds for a process to import, read and warm up."""


def estimate(cell: Cell, rows: int, device: str, cores: int) -> float:
    """About how many seconds a cell takes; good to a factor of two where the assumed rate holds."""
    if cell.side == "rate":
        return START + (15.0 if device == "cpu" else 5.0)
    gpu = device.startswith("cuda")
    rate = RATE["cuda" if gpu else "cpu"] * (1 if gpu else cores)
    tokens, share = TOKENS.get(cell.group.task, 50.0), SHARES.get(cell.side, DEFAULT_SHARE)
    if cell.side == "trainer-default":
        tokens = DEFAULT_TOKENS
    if gpu and cell.side != "fleetune":
        share /= 10  # launches, not products, take a small batch's time there
    operations = OPERATIONS.get(cell.group.backbone, 100e6) * tokens * rows * cell.trials
    return START + operations / (rate * share)
