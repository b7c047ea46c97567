"""Whether evaluation uses the machine as well as training does: share of the limit against share of the limit.

A frozen product costs a token 2 * D * E operations forward and as many again for its gradient, so training's limit is half of
evaluation's in tokens a second. At equal shares of their limits, evaluation does twice the tokens of training in the same time;
the printed ratio is what it does, over that. Both sides take the same trials and rows and turns.

    python -m bench.evaluation --task rte --trials 8        # bench/results/evaluation.json, a table on stdout
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

from bench.tables import keep
from bench.trials import TrialsSpec, prepare_trials

HEAD = ["task", "K", "training, tokens/s", "evaluation, tokens/s", "share of evaluation's limit over training's"]  # fmt: skip


def speeds(given: argparse.Namespace, task: str, trials: int) -> tuple[list[float], list[float]]:
    """Tokens a second of each turn: (training, evaluation)."""
    from fleetune.cohort.engine import Engine
    from fleetune.cohort.plan import default_limits
    from fleetune.cohort.train import Cohort
    from fleetune.study.prepare import DTYPES

    spec = TrialsSpec(
        task=task, data_dir=given.data_dir, backbone=given.backbone, trials=trials, rows=given.rows
    )
    prepared, inputs = prepare_trials(spec)
    model, fresh = prepared.backbone.classifier(prepared.num_labels, ())
    engine = Engine(model, fresh, dtype=DTYPES[prepared.dtype])
    tokens = sum(int(i.train.table.lengths[i.train.rows].sum()) for i in inputs)
    limit = default_limits("cpu").tokens

    def train() -> None:
        for _ in Cohort(engine, inputs, size=trials, max_tokens=limit).run():
            pass

    def evaluate() -> None:
        owned = [engine.start(given) for given in inputs]
        longest = max(int(i.train.table.lengths[i.train.rows].max()) for i in inputs)
        rows = max(limit // longest // trials, 1)
        engine.predict(owned, [i.train for i in inputs], [rows] * trials)

    found: tuple[list[float], list[float]] = ([], [])
    for turn in range(given.repeats + 1):
        for side, run in zip(found, (train, evaluate), strict=True):
            began = time.perf_counter()
            run()
            if turn:  # the first warms up
                side.append(tokens / (time.perf_counter() - began))
    return found


def row(task: str, trials: int, training: list[float], evaluation: list[float]) -> list[str]:
    """A line of the table."""
    ratios = [e / t / 2 for t, e in zip(training, evaluation, strict=True)]
    told = f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
    middles = (f"{statistics.median(side):,.0f}" for side in (training, evaluation))
    return [task, str(trials), *middles, told]


def main(words: Sequence[str] | None = None) -> None:
    """Measure, keep, print."""
    asked = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    asked.add_argument("--task", default="rte,sst2")
    asked.add_argument("--trials", default="1,8")
    asked.add_argument("--rows", type=int, default=128, help="of each trial")
    asked.add_argument("--data-dir", default="../shared/data/glue")
    asked.add_argument("--backbone", default="minilm")
    asked.add_argument("--repeats", type=int, default=3)
    given = asked.parse_args(words)
    from fleetune.study.machine import commit, hardware

    rows: list[list[str]] = []
    times: list[Any] = []
    for task in given.task.split(","):
        for k in map(int, given.trials.split(",")):
            found = speeds(given, task, k)
            rows.append(row(task, k, *found))
            times.append({"task": task, "K": k, "training": found[0], "evaluation": found[1]})
    about = [
        " ".join(["python -m bench.evaluation", *(sys.argv[1:] if words is None else words)]),
        f"{given.backbone}, LoRA and BitFit mixed, {given.rows} rows a trial; target: 0.90",
        f"commit {commit()}, {hardware('cpu')['processor']}",
    ]
    keep("evaluation", about, (HEAD, rows), times=times)


if __name__ == "__main__":
    main()
