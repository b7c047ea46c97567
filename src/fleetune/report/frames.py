"""Facts as pandas frames, one row a trial, an estimate or a verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fleetune.report.tables import named

if TYPE_CHECKING:
    import pandas as pd

Facts = Mapping[str, Any]


def trials(facts: Facts) -> pd.DataFrame:
    """How each trial ended, its best epoch, its scores on selection and test rows, its settings."""
    return _frame([_trial_row(t) for t in facts["trials"]], ("id", "task", "method"))


def estimates(facts: Facts) -> pd.DataFrame:
    """Each method by test set and metric: value with its 95 % interval, n, seeds, parameters, seconds."""
    rows = [_estimate_row(label, e) for label, e in named(facts["estimates"])]
    return _frame(rows, ("name", "task", "set", "method", "metric", "value", "low", "high"))


def verdicts(facts: Facts) -> pd.DataFrame:
    """Each comparison with the reference."""
    return _frame(facts["verdicts"], ("task", "method", "reference", "verdict", "reason"))


def _frame(rows: Sequence[Facts], columns: Sequence[str]) -> pd.DataFrame:
    """A frame; without rows it still has the columns that matter."""
    import pandas as pd

    return pd.DataFrame(list(rows)) if rows else pd.DataFrame(columns=list(columns))


def _trial_row(trial: Facts) -> dict[str, Any]:
    metric = trial["training"]["metric_for_best_model"]
    best = next((e for e in trial["epochs"] if e["epoch"] == trial["best_epoch"]), None)
    test = {f"test_{name}": value for name, value in (trial["test"] or {}).items()}
    told = ("id", "task", "method", "seed", "phase", "status", "reason", "best_epoch")
    return {
        **{key: trial[key] for key in told},
        "selection": None if best is None else best["selection"].get(metric),
        **test,
        "optimistic": trial["optimistic"],
        **trial["trainable_parameters"],
        "seconds": trial["seconds"],
        "learning_rate": trial["training"]["learning_rate"],
        **trial["hyperparameters"],
    }


def _estimate_row(label: str, estimate: Facts) -> dict[str, Any]:
    nested = ("name", "hyperparameters", "training", "trainable_parameters", "trials")
    flat = {key: value for key, value in estimate.items() if key not in nested}
    return {"name": label, **flat, **estimate["trainable_parameters"], **estimate["training"]}
