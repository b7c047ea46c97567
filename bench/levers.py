"""Time a round of a cohort under two settings, within one process and taking turns, so that the machine's moods meet both.

A round is one accumulation group of every trial: forward and backward of each micro-batch, and the optimizer's step.
Both sides train the same trials on the same rows, so the mean loss and the trained values are compared too: a lever that
changes results shows.

A setting of side b (or a), given any number of times:
    max_tokens=8192, size=8, dtype=float32            what a cohort and an engine take
    fleetune.backbone.stream.BUCKET_SHARE=0.7         any attribute of a module, as a Python literal, while this side runs
    fleetune.cohort.layers.cohort_linear=pkg.module.fn    the same by the name of another object, where it is not a literal
    tree=HEAD~1, tree=/path/to/src                    the package as it was at a commit, or as it is in another folder
An attribute must be set in the module that reads it. Trees share torch's registries: a package that registers operators there
can be loaded once only.

    python -m bench.levers --task rte --trials 8 --rounds 6        # one side, timed
    python -m bench.levers --task rte --trials 8 --a tree=HEAD     # the last commit beside the working tree
    python -m bench.levers --task sst2 --trials 32 --b max_tokens=8192 --profile
"""

from __future__ import annotations

import argparse
import ast
import importlib
import statistics
import sys
import time
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

from bench.breakdown import breakdown
from bench.source import Source
from bench.trials import TrialsSpec, prepare_trials

OF_THE_COHORT = ("max_tokens", "size", "dtype", "tree")


@dataclass(frozen=True, slots=True)
class Round:
    """One round of one side."""

    wall: float
    """Seconds."""
    cpu: float
    """Seconds of all threads of this process; on a busy machine steadier than the wall's."""
    rows: int
    tokens: int


class Side:
    """One setting with a cohort of its own."""

    def __init__(self, name: str, settings: Sequence[str], spec: TrialsSpec, device: str) -> None:
        self.name = name
        self.settings = dict(split(text) for text in settings)
        self.source = Source(self.settings.get("tree"))
        self.device = device
        self._build(spec)

    def _build(self, spec: TrialsSpec) -> None:
        with self.active():
            from fleetune.cohort.engine import Engine
            from fleetune.cohort.plan import default_limits
            from fleetune.cohort.train import Cohort
            from fleetune.study.prepare import DTYPES

            prepared, inputs = prepare_trials(spec)
            names = prepared.dataset.task.label_names
            model, fresh = prepared.backbone.classifier(prepared.num_labels, names)
            dtype = DTYPES[self.settings.get("dtype", prepared.dtype)]
            limits = default_limits(self.device)
            self.cohort = Cohort(
                Engine(model, fresh, dtype=dtype, device=self.device),
                inputs,
                size=int(self.settings.get("size", limits.trials)),
                max_tokens=int(self.settings.get("max_tokens", limits.tokens)),
            )
            self.events: Iterator[Any] = self.cohort.run()

    @contextmanager
    def active(self) -> Generator[None]:
        """This side's tree and attributes are in force."""
        with self.source.active(), ExitStack() as stack:
            for key, text in self.settings.items():
                if key in OF_THE_COHORT:
                    continue
                module, _, attribute = key.rpartition(".")
                place = importlib.import_module(module)
                stack.enter_context(mock.patch.object(place, attribute, value(text)))
            yield

    def round(self, group_rows: int) -> Round:
        """Train one accumulation group of every trial, so many rows altogether."""
        rows = tokens = 0
        with self.active():
            wall, cpu = time.perf_counter(), time.process_time()
            for event in self.events:
                # By name, since a class of another tree is another class.
                if type(event).__name__ == "Advanced":
                    rows, tokens = rows + event.rows, tokens + event.tokens
                    if rows >= group_rows:
                        synchronize(self.device)
                        took = time.perf_counter() - wall, time.process_time() - cpu
                        return Round(*took, rows, tokens)
        raise RuntimeError("the trials ended before the rounds did")

    def losses(self) -> list[float]:
        """The mean loss of each trial so far."""
        return [t.loss_sum / max(t.rows_seen, 1) for t in self.cohort.active]

    def values(self) -> list[Any]:
        """What the trials have trained, flat."""
        return [flat.detach().float().cpu() for t in self.cohort.active for flat in t.owned.flats]


def synchronize(device: str) -> None:
    """Wait for a GPU; nothing to do on a processor."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(torch.device(device))


def split(text: str) -> tuple[str, str]:
    """`key=value` as a pair; ValueError for a key that is neither the cohort's nor an attribute of a module."""
    key, equals, rest = text.partition("=")
    if not equals or (key not in OF_THE_COHORT and "." not in key):
        raise ValueError(
            f"a setting is one of {', '.join(OF_THE_COHORT)} or package.module.ATTRIBUTE, then =value; got {text!r}."
        )
    return key, rest


def value(text: str) -> Any:
    """A Python literal, or else the object of a dotted name."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        module, _, attribute = text.rpartition(".")
        return getattr(importlib.import_module(module), attribute)


def told(name: str, rounds: Sequence[Round]) -> str:
    """One line about one side."""
    wall = statistics.median(r.wall for r in rounds)
    rows, tokens = (statistics.median(x) for x in zip(*((r.rows, r.tokens) for r in rounds)))  # noqa: B905
    cpu = statistics.median(r.cpu for r in rounds)
    return (
        f"{name}: {1e3 * wall:8.1f} ms a round ({1e3 * min(r.wall for r in rounds):.1f} to "
        f"{1e3 * max(r.wall for r in rounds):.1f}), cpu {1e3 * cpu:.1f} ms; {rows / wall:.1f} examples/s, "
        f"{tokens / wall:,.0f} tokens/s"
    )


def compared(a: Side, b: Side, rounds: dict[str, list[Round]]) -> str:
    """How much faster b is than a, and how far their results lie apart."""
    lines: list[str] = []
    for kind in ("wall", "cpu"):
        ratios = [
            getattr(x, kind) / getattr(y, kind)
            for x, y in zip(rounds[a.name], rounds[b.name], strict=True)
        ]
        lines.append(
            f"b is {statistics.median(ratios):.3f} x as fast as a by {kind} time "
            f"({min(ratios):.3f} to {max(ratios):.3f} over {len(ratios)} rounds)"
        )
    apart = max(abs(x - y) for x, y in zip(a.losses(), b.losses(), strict=True))
    pairs = list(zip(a.values(), b.values(), strict=True))
    far = max(float((x - y).abs().max()) for x, y in pairs if x.numel())
    size = max(float(x.abs().max()) for x, _ in pairs if x.numel())
    lines.append(
        f"results: mean losses differ by at most {apart:.2e}, trained values by {far:.2e} (the largest value is {size:.2e})"
    )
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--task", default="rte")
    found.add_argument("--data-dir", default="../shared/data/glue")
    found.add_argument("--backbone", default="minilm")
    found.add_argument("--mix", default="mixed", help="lora, bitfit or mixed")
    found.add_argument("--trials", type=int, default=8)
    found.add_argument("--rounds", type=int, default=6)
    found.add_argument("--warmup", type=int, default=1, help="rounds before the clock runs")
    found.add_argument("--batch", type=int, default=16)
    found.add_argument("--accumulation", type=int, default=4)
    found.add_argument("--dtype", default="auto")
    found.add_argument("--device", default="cpu")
    found.add_argument("--threads", type=int, help="default: torch's own")
    found.add_argument("--a", action="append", default=[], metavar="SETTING")
    found.add_argument("--b", action="append", default=[], metavar="SETTING")
    found.add_argument(
        "--profile", action="store_true", help="and where the time goes, after the timing"
    )
    return found


def main(words: Sequence[str] | None = None) -> None:
    """Time one side, or two where any setting is given."""
    warnings.simplefilter("ignore")
    given = parser().parse_args(words)
    import torch

    if given.threads:
        torch.set_num_threads(given.threads)
    n = given.warmup + given.rounds * (2 if given.profile else 1) + 1
    group = given.batch * given.accumulation
    spec = TrialsSpec(
        task=given.task, data_dir=given.data_dir, backbone=given.backbone, mix=given.mix,
        trials=given.trials, rows=group * n, batch=given.batch,
        accumulation=given.accumulation, dtype=given.dtype,
    )  # fmt: skip
    two = bool(given.a or given.b)
    sides = [Side("a", given.a, spec, given.device)]
    if two:
        sides.append(Side("b", given.b, spec, given.device))
    rounds: dict[str, list[Round]] = {side.name: [] for side in sides}
    for i in range(given.warmup + given.rounds):
        # a b, then b a: whatever the first of a pair pays for, each pays in turn.
        for side in sides if i % 2 == 0 else reversed(sides):
            took = side.round(group * given.trials)
            if i >= given.warmup:
                rounds[side.name].append(took)
    for side in sides:
        print(told(side.name, rounds[side.name]))
    if two:
        print(compared(sides[0], sides[1], rounds))
    if given.profile:
        for side in sides:
            one = partial(side.round, group * given.trials)
            print(f"\n{side.name}:\n{breakdown(one, given.rounds, given.device)}")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
