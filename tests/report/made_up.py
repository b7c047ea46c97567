"""Run folders made by hand, in the form that a run leaves behind: studies, ranks, failures and hostile names in no time.

Scores come from one model: an example has a difficulty, a training a skill, and an answer is right where the skill is
the larger. Every number is drawn from a named stream, so a folder is the same each time.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy
import tomli_w

from fleetune.data import metrics
from fleetune.seeds import stream
from fleetune.study import journal
from fleetune.study.prepare import DataSettings, read_dataset

START = 1_795_000_000.0
TRAINING: dict[str, Any] = {
    "learning_rate": 5e-4,
    "num_train_epochs": 4.0,
    "max_steps": -1,
    "per_device_train_batch_size": 16,
    "weight_decay": 0.01,
    "metric_for_best_model": "accuracy",
    "greater_is_better": True,
}


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A method with one setting; skill: the share of examples that it gets right."""

    method: str
    skill: float = 0.8
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    learning_rate: float = 5e-4
    encoder: int = 26_112

    @property
    def name(self) -> str:
        return (
            f"{self.method}-r{self.hyperparameters['r']}"
            if "r" in self.hyperparameters
            else self.method
        )


BITFIT = Arm(method="bitfit", skill=0.78, hyperparameters={"terms": "all"})


def lora(r: int, skill: float = 0.8) -> Arm:
    """LoRA of a rank on two layers of width 16."""
    own = {"r": r, "lora_alpha": 4.0 * r, "use_rslora": False}
    return Arm(method="lora", skill=skill, hyperparameters=own, encoder=9216 * r)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A whole run."""

    arms: Sequence[Arm] = (BITFIT, lora(8))
    seeds: Sequence[int] = (1000, 1001, 1002, 1003, 1004)
    tasks: Sequence[str] = ("rte",)
    tests: Mapping[str, int] = field(default_factory=lambda: {"test": 120})
    labels: Sequence[str] = ("entailment", "not_entailment")
    regression: bool = False
    protocol: str = "holdout"
    phase: str = "train"
    epochs: int = 4
    search: int = 0
    """Searched trials of each arm's method."""
    failed: Sequence[str] = ()
    """Trials that fail in their second epoch, by id."""
    stopped: Sequence[str] = ()
    """Trials that a search stopped after it, by id."""
    unfinished: Sequence[str] = ()
    """Trials that are cut after it."""
    reason: str = "the loss was not finite at step 12"
    source: str = "roberta-base"
    ranks: bool = False
    """All arms that have a rank are one rank study."""
    file: Path | None = None
    """Test rows of the user's own, with columns text and label; by default there are none, and no texts."""
    tensors: bool = True
    processor: str = "AMD EPYC"
    cohorts: bool = True
    """Whether the journal tells of them; early ones did not."""


def write_run(folder: Path, plan: Plan) -> Path:
    """Write the folder of a run as planned."""
    folder.mkdir(parents=True, exist_ok=True)
    events = _Events()
    metric = "pearson" if plan.regression else "accuracy"
    trials = [t for task in plan.tasks for t in _trials(plan, task, metric)]
    events.add("run-started", trials=[t["id"] for t in trials], waiting=len(trials))
    for at, trial in enumerate(trials):
        events.clock = START + 4 * (at // 8)
        _write_trial(folder, plan, trial, events, metric)
        if at + 1 == len(trials) or trials[at + 1]["task"] != trial["task"]:
            _write_phases(plan, [t for t in trials if t["task"] == trial["task"]], events)
    if not plan.unfinished:
        events.clock = START + 900
        events.add("run-done", failed=len(plan.failed))
    (folder / journal.NAME).write_bytes(b"".join(map(journal._line, events.all)))
    (folder / "study.toml").write_text(tomli_w.dumps(_settings(plan)), encoding="utf-8")
    (folder / "environment.json").write_text(json.dumps(_environment(plan)), encoding="utf-8")
    return folder


def _write_phases(plan: Plan, trials: Sequence[Mapping[str, Any]], events: _Events) -> None:
    """What a study says of a task: the setting that each arm's search chose, and the trials that confirm it."""
    if plan.phase != "confirm":
        return
    task = trials[0]["task"]
    arms = {a.name: [t["id"] for t in trials if t["arm"] == a.name] for a in plan.arms}
    for arm in plan.arms:
        mine = [t["id"] for t in trials if t.get("searches") == arm.name]
        if mine:
            events.add(
                "proposed", task=task, arm=arm.name, first=0, trials=[[ident] for ident in mine],
                settings=[{"learning_rate": arm.learning_rate}] * len(mine),
            )  # fmt: skip
        events.add(
            "chosen", task=task, arm=arm.name, picks={"learning_rate": arm.learning_rate},
            score=arm.skill, epochs=None, tried=len(mine), failed=0, trials=mine[:1],
            stopped=sum(i in plan.stopped for i in mine), epochs_trained=len(mine) * plan.epochs,
        )  # fmt: skip
    events.add("phase-started", task=task, phase="confirm", trials=[], arms=arms)


class _Events:
    """The lines of a journal under a clock that the writer sets."""

    def __init__(self) -> None:
        self.clock = START
        self.all: list[dict[str, Any]] = []
        self.stages: list[str] = []

    def add(self, kind: str, **facts: Any) -> None:
        self.all.append({"kind": kind, "time": self.clock, **facts})


def _trials(plan: Plan, task: str, metric: str) -> list[dict[str, Any]]:
    prefix = f"{task}-" if len(plan.tasks) > 1 else ""
    found: list[dict[str, Any]] = []
    for number, arm in enumerate(plan.arms):
        draw = stream(7, "search", task, number)
        for i in range(plan.search):
            own = {**arm.hyperparameters}
            if "r" in own:
                own["r"] = int(draw.choice([1, 2, 4, 8, 16]))
            rate = float(np.exp(draw.uniform(np.log(1e-4), np.log(2e-3))))
            skill = arm.skill - 0.05 - 0.06 * abs(np.log10(rate / 5e-4))
            found.append(
                _trial(f"{prefix}{arm.method}-q{number}-{i}", task, arm, 0, "search", metric)
                | {"hyperparameters": own, "skill": float(skill), "arm": None, "searches": arm.name}
            )
            found[-1]["training"] = {**found[-1]["training"], "learning_rate": rate}
        found += [
            _trial(f"{prefix}{arm.name}-s{seed}", task, arm, seed, plan.phase, metric)
            for seed in plan.seeds
        ]
    return found


def _trial(ident: str, task: str, arm: Arm, seed: int, phase: str, metric: str) -> dict[str, Any]:
    training = {
        **TRAINING,
        "learning_rate": arm.learning_rate,
        "metric_for_best_model": metric,
    }
    return {
        "id": ident, "task": task, "method": arm.method, "seed": seed, "phase": phase,
        "hyperparameters": dict(arm.hyperparameters), "training": training,
        "trainable_parameters": {"encoder": arm.encoder, "head": 1538}, "skill": arm.skill, "arm": arm.name,
    }  # fmt: skip


def _write_trial(
    folder: Path, plan: Plan, trial: dict[str, Any], events: _Events, metric: str
) -> None:
    ident = trial["id"]
    started = {k: v for k, v in trial.items() if k not in ("skill", "arm", "searches")}
    stage = f"{trial['task']}/{trial['phase']}/0"
    if plan.cohorts and stage not in events.stages:
        events.stages.append(stage)
        events.add(
            "planned", stage=stage, at_once=3, tokens=4096, bytes=123_456_789,
            why=[] if trial["phase"] == "search" else ["3 of 10 trials train at once: <b>states</b>"],
        )  # fmt: skip
        events.add("stage-done", stage=stage, peak_bytes=987_654_321)
    if plan.cohorts:
        started["stage"] = stage
    events.add("trial-started", **started, total_steps=80, step=0)
    ends = ident in (*plan.failed, *plan.stopped, *plan.unfinished)
    draw = stream(7, "epochs", ident)
    scores: list[float] = []
    for epoch in range(1, (1 if ends else plan.epochs) + 1):
        events.clock += 3 + float(draw.random())
        reach = trial["skill"] * (1 - 0.3 * np.exp(-epoch)) + draw.normal(0, 0.01)
        scores.append(float(np.clip(reach, 0, 1)))
        events.add(
            "epoch", id=ident, epoch=epoch, loss=float(0.7 * np.exp(-epoch / 4)), step=20 * epoch,
            selection={metric: scores[-1], "loss": 0.5}, seconds=round(3.5 * epoch, 3),
        )  # fmt: skip
    if ident in plan.failed:
        events.add("trial-failed", id=ident, reason=plan.reason)
    if ident in plan.stopped:
        events.add("trial-stopped", id=ident, best_epoch=1, seconds=3.5)
    if ends:
        return
    tested = trial["phase"] != "search"
    tests = _write_folder(folder / "trials" / ident, plan, trial, metric) if tested else {}
    best = int(np.argmax(scores)) + 1
    events.add(
        "trial-done", id=ident, best_epoch=best, selection={metric: scores[best - 1], "n": 50},
        test=next(iter(tests.values()), None), tests=tests, tokens=90_000,
        train={metric: min(scores[best - 1] + 0.06, 1.0)} if plan.ranks else {},
        optimistic=plan.protocol == "paper", seconds=3.5 * plan.epochs,
    )  # fmt: skip


def _write_folder(
    folder: Path, plan: Plan, trial: dict[str, Any], metric: str
) -> dict[str, dict[str, float]]:
    folder.mkdir(parents=True)
    tables: list[pa.Table] = []
    tests: dict[str, dict[str, float]] = {}
    for name, n in plan.tests.items():
        ids, labels, logits = _answers(plan, trial, name, n)
        tests[name] = {**metrics.compute((metric,), logits, labels), "n": n}
        tables.append(
            pa.table(
                {
                    "split": [name] * n, "id": ids, "label": labels.astype(np.float64),
                    "logits": pa.array(list(logits.astype(np.float32))),
                }
            )
        )  # fmt: skip
    pq.write_table(pa.concat_tables(tables), folder / "predictions.parquet")
    record = {
        "label_names": list(plan.labels),
        "text_columns": ["text"],
        "regression": plan.regression,
        "task": trial["task"],
    }
    (folder / "fleetune.json").write_text(json.dumps(record), encoding="utf-8")
    if plan.tensors:
        safetensors.numpy.save_file(_tensors(trial), folder / "adapter_model.safetensors")
    return tests


def _answers(
    plan: Plan, trial: dict[str, Any], name: str, n: int
) -> tuple[list[str], np.ndarray, np.ndarray]:
    rows = stream(7, "rows", trial["task"], name)
    difficulty = rows.random(n)
    classes = 1 if plan.regression else len(plan.labels)
    draw = stream(7, "answers", trial["id"], name)
    if plan.file is not None:
        split = read_dataset(_own(plan)).tests[name]
        assert split.labels is not None and len(split) == n
        ids, labels = list(split.ids), split.labels
    else:
        labels = rows.uniform(0, 5, n) if plan.regression else rows.integers(0, classes, n)
        ids = [f"{name}-{i}" for i in range(n)]
    if plan.regression:
        return ids, labels, (labels + draw.normal(0, 2 * (1 - trial["skill"]), n) * 3)[:, None]
    right = difficulty + draw.normal(0, 0.08, n) < trial["skill"]
    chosen = np.where(right, labels, (labels + 1) % classes)
    logits = draw.normal(0, 0.4, (n, classes))
    logits[np.arange(n), chosen] += 1.2 + draw.random(n)
    return ids, labels, logits


def _tensors(trial: dict[str, Any]) -> dict[str, np.ndarray]:
    draw = stream(7, "tensors", trial["id"])
    found: dict[str, np.ndarray] = {}
    for layer in range(2):
        site = f"base_model.model.encoder.layer.{layer}.attention.self.query"
        if trial["method"] == "lora":
            r = trial["hyperparameters"]["r"]
            found[f"{site}.lora_A.weight"] = draw.normal(0, 0.2, (r, 16)).astype(np.float32)
            found[f"{site}.lora_B.weight"] = draw.normal(0, 0.2, (16, r)).astype(np.float32)
        else:
            found[f"{site}.bias"] = draw.normal(0, 0.01, 16).astype(np.float32)
    return found


def _own(plan: Plan) -> DataSettings:
    return DataSettings(
        file=str(plan.file), test_file=str(plan.file), text_columns=("text",), label_column="label"
    )


def _data(plan: Plan) -> list[dict[str, Any]]:
    if plan.file is not None:
        own = {
            "file": str(plan.file),
            "test_file": str(plan.file),
            "text_columns": ["text"],
            "label_column": "label",
        }
        return [{**own, "task": plan.tasks[0], "protocol": plan.protocol}]
    return [{"task": task, "protocol": plan.protocol} for task in plan.tasks]


def _settings(plan: Plan) -> dict[str, Any]:
    data = _data(plan)
    found: dict[str, Any] = {
        "data": data[0] if len(data) == 1 else data,
        "backbone": {"name": plan.source, "dtype": "float32", "max_length": 256},
        "methods": [
            {"method": a.method, **a.hyperparameters, **TRAINING, "learning_rate": a.learning_rate}
            for a in plan.arms
        ],
    }
    if plan.ranks:
        first, *_ = [m for m in found["methods"] if "r" in m]
        own = {k: v for k, v in first.items() if k != "lora_alpha"}
        ranks = {
            "r": [m["r"] for m in found["methods"] if "r" in m],
            "lora_alpha": "4r",
            "rank_study": True,
        }
        others = [m for m in found["methods"] if "r" not in m]
        found["methods"] = [{**own, **ranks, "reference_rank": ranks["r"][0]}, *others]
    if plan.search:
        found["search"] = {"trials_per_method": plan.search, "sampler": "tpe"}
    if plan.phase == "confirm":
        first = plan.arms[0].name
        return {
            **found,
            "confirm": {"seeds": len(plan.seeds), "first_seed": plan.seeds[0], "reference": first},
        }
    return {**found, "seeds": list(plan.seeds)}


def _environment(plan: Plan) -> dict[str, Any]:
    rows = {"train": 900, **plan.tests}
    checksum = read_dataset(_own(plan)).checksum if plan.file else f"{zlib.crc32(b'rows'):064x}"
    data = [
        {
            "task": task, "source": "a file of the user" if plan.file else f"glue/{task}",
            "checksum": checksum, "rows": rows, "truncated": {name: 0 for name in rows},
        }
        for task in plan.tasks
    ]  # fmt: skip
    return {
        "fleetune": "0.1.0",
        "commit": "0123456789ab",
        "python": "3.11.7",
        "packages": {"torch": "2.13.0", "transformers": "5.23.0", "numpy": "2.4.6"},
        "machine": {"system": "Linux x86_64", "processor": plan.processor, "cores": 2, "device": "cpu"},
        "data": data[0],
        **({"tasks": data} if len(data) > 1 else {}),
        "backbone": {
            "name": plan.source, "source": plan.source, "revision": None, "checksum": "53" * 32,
        },
    }  # fmt: skip


def verdict(
    method: str, reference: str, difference: float, half: float, **more: Any
) -> dict[str, Any]:
    """One verdict in the form of the facts."""
    low, high = difference - half, difference + half
    word = "better" if low > 0 else "worse" if high < 0 else "cannot tell"
    found = {
        "task": "rte", "set": "test", "metric": "accuracy", "reference": reference, "method": method,
        "difference": difference, "low": low, "high": high, "p_value": 0.0123, "p_adjusted": 0.0246,
        "detectable": 0.0131, "probability_better": 0.87, "seeds": 5, "n": 120, "verdict": word,
        "optimistic": False, "how": "crossed seeds x examples, t with Satterthwaite freedom, Holm",
    }  # fmt: skip
    return {**found, **more}
