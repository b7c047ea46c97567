"""Whether company changes accuracies: the same trials of five seeds in one cohort, and one after the other.

Who shares a pass changes the last bits of a product, and training carries them on. Both sides train LoRA with the same seeds,
rows, order and dropout; after the last epoch each trial is judged on its selection rows. The difference is compared as two
methods would be (fleetune.stats.compare, crossed over seeds and examples).

    python -m bench.rounding --dtype bfloat16               # bench/results/rounding-bfloat16.json, a table on stdout
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from bench.tables import keep

HEAD = ["seed", "alone", "in a cohort", "rows judged differently", "largest difference of a logit"]


def trained(prepared: Any, inputs: Sequence[Any], size: int) -> dict[int, Any]:
    """Logits of each trial's selection rows after its last epoch, by seed; size: trials at once."""
    from fleetune.cohort.engine import Engine
    from fleetune.cohort.events import EpochDone
    from fleetune.cohort.plan import default_limits
    from fleetune.cohort.train import Cohort
    from fleetune.study.prepare import DTYPES

    model, fresh = prepared.backbone.classifier(prepared.num_labels, ())
    engine = Engine(model, fresh, dtype=DTYPES[prepared.dtype])
    found: dict[int, Any] = {}
    for event in Cohort(engine, inputs, size=size, max_tokens=default_limits("cpu").tokens).run():
        if isinstance(event, EpochDone):
            trial = event.trial
            sys.stderr.write(f"size {size}: {trial.id} {event.result}\n")
            (found[trial.given.spec.seed],) = engine.predict(
                [trial.owned], [trial.given.selection], [64]
            )
    return found


def main(words: Sequence[str] | None = None) -> None:
    """Train both sides, compare, keep, print."""
    asked = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    asked.add_argument("--task", default="rte")
    asked.add_argument("--data-dir", default="../shared/data/glue")
    asked.add_argument("--backbone", default="minilm")
    asked.add_argument("--dtype", default="bfloat16")
    asked.add_argument("--seeds", type=int, default=5)
    asked.add_argument("--rows", type=int, default=640, help="of training, for each seed")
    asked.add_argument("--epochs", type=int, default=4)
    given = asked.parse_args(words)
    from bench.trials import with_rows
    from fleetune.report.tables import span
    from fleetune.stats.compare import compare
    from fleetune.study.machine import commit, hardware
    from fleetune.study.prepare import DataSettings, MethodSettings, Settings, prepare

    embedded = given.task.startswith("demo-")
    lora = MethodSettings("lora", {"r": 8, "lora_dropout": 0.01}, {"learning_rate": 2e-3})
    prepared = prepare(
        Settings(
            DataSettings(task=given.task, data_dir=None if embedded else given.data_dir),
            (lora,),
            tuple(range(42, 42 + given.seeds)),
            {"num_train_epochs": given.epochs},
            backbone=given.backbone,
            dtype=given.dtype,
        )
    )
    inputs = [
        replace(i, train=with_rows(i.train, i.train.rows[: given.rows])) for i in prepared.inputs
    ]
    cohort, alone = (trained(prepared, inputs, size) for size in (given.seeds, 1))
    labels = {i.spec.seed: i.selection.labels[i.selection.rows] for i in inputs}
    rows: list[list[str]] = []
    correct: list[list[Any]] = [[], []]
    for seed, own in labels.items():
        answers = [side[seed].argmax(-1) for side in (alone, cohort)]
        for side, answer in zip(correct, answers, strict=True):
            side.append(answer == own)
        rows.append(
            [
                str(seed),
                *(f"{(answer == own).mean():.4f}" for answer in answers),
                f"{(answers[0] != answers[1]).sum()} of {len(own)}",
                f"{np.abs(alone[seed] - cohort[seed]).max():.2e}",
            ]
        )
    verdict = compare(np.asarray(correct[0]), np.asarray(correct[1]))
    about = [
        " ".join(["python -m bench.rounding", *(sys.argv[1:] if words is None else words)]),
        f"{given.backbone}, {given.task}, {prepared.dtype}, lora r=8, learning rate 2e-3, "
        f"{given.epochs} epochs of {given.rows} rows",
        f"cohort against alone: {100 * verdict.difference:+.2f} points {span(asdict(verdict))}; "
        f"smallest difference that could have been seen: {100 * (verdict.detectable or 0):.2f}; {verdict.verdict}",
        f"commit {commit()}, {hardware('cpu')['processor']}",
    ]
    keep(f"rounding-{prepared.dtype}", about, (HEAD, rows), compared=asdict(verdict))


if __name__ == "__main__":
    main()
