"""The winner's errors, from its predictions on the main test set: confusion, calibration, worst errors.

Notation: n examples, C classes. All of it is about one saved file, not about its method.
Texts are read again from the data where that asks no network, and only if its checksum is the run's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetune.artifact import layout
from fleetune.artifact.load import read_json
from fleetune.data.base import Dataset, Split
from fleetune.data.metrics import probabilities
from fleetune.errors import DataError, FleetuneError, unreadable
from fleetune.report.stored import (
    Predictions,
    damage_told,
    is_of_another_run,
    read_environment,
    read_predictions,
    read_settings,
)
from fleetune.stats.intervals import wilson
from fleetune.study.folder import trial_folder

BINS = 10
WORST = 20
# The picture has room for so many; more go into the table of pairs alone.
MOST_CLASSES = 12
_MOST_PAIRS = 10
_MOST_TEXT = 600
_MOST_PARENTS = 3
_NOTHING = Predictions([], np.empty(0), np.empty((0, 0)))


def model_facts(folder: Path, facts: dict[str, Any], trial: dict[str, Any]) -> dict[str, Any]:
    """What one saved trial gets wrong. Raises DataError where its files cannot be read."""
    place = trial_folder(folder, trial["id"])
    record = read_json(place / layout.RECORD)
    try:
        names = [str(name) for name in record["label_names"]]
        sets = read_predictions(place / layout.PREDICTIONS)
        if is_of_another_run(place / layout.PREDICTIONS, trial.get("predictions")):
            problem = "is of another run; restore the trial's folder from a copy"
            raise DataError(str(place / layout.PREDICTIONS), [problem])
    except (KeyError, TypeError, ValueError) as error:
        raise unreadable(place, error) from None
    name, (ids, labels, logits) = next(iter(sets.items()), ("", _NOTHING))
    texts = _texts(folder, facts, trial["task"], name) if ids else {}
    common = {
        "set": name,
        "n": len(labels),
        "label_names": names,
        "columns": [str(column) for column in record.get("text_columns", [])],
        "texts_known": bool(texts),
        "confusion": None,
        "calibration": None,
        "pairs": [],
        "worst": [],
    }
    if not ids:
        return {**common, **_no_pictures("there are no test rows")}
    if logits.shape[1] == 1:
        far = _far(ids, labels, logits[:, 0], texts)
        return {**common, **_no_pictures("the task is a regression"), "worst": far}
    truth = labels.astype(np.int64)
    shares = probabilities(logits)
    counts = confusion(truth, shares, len(names))
    return {
        **common,
        "confusion": counts.tolist() if len(names) <= MOST_CLASSES else None,
        "no_confusion": f"{len(names)} labels are too many for a picture; the table lists the pairs",
        "totals": counts.sum(1).tolist(),
        "right": int(np.trace(counts)),
        "pairs": _pairs(counts, names),
        "calibration": calibration(truth, shares),
        "worst": _wrong(ids, truth, shares, names, texts),
    }


def _no_pictures(why: str) -> dict[str, str]:
    return {"no_confusion": why, "no_calibration": why}


def confusion(truth: NDArray[Any], shares: NDArray[Any], classes: int) -> NDArray[Any]:
    """Counts [C, C]: row the label, column what was predicted."""
    counts = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(counts, (truth, shares.argmax(1)), 1)
    return counts


def _pairs(counts: NDArray[Any], names: list[str]) -> list[dict[str, Any]]:
    """The most frequent confusions."""
    wrong = counts * (1 - np.eye(len(counts), dtype=np.int64))
    order = np.argsort(-wrong, axis=None, kind="stable")[:_MOST_PAIRS]
    places = [divmod(int(at), len(counts)) for at in order]
    return [
        {"label": names[i], "predicted": names[j], "count": int(wrong[i, j])}
        for i, j in places
        if wrong[i, j]
    ]


def calibration(truth: NDArray[Any], shares: NDArray[Any]) -> dict[str, Any]:
    """Expected calibration error: the mean gap between confidence and accuracy over 10 bins of equal width.

    Source: Guo et al. 2017 (arXiv:1706.04599). Misleads: with few examples a bin's gap is mostly noise, and the error is
    above zero even for perfect probabilities.
    """
    confidence, right = shares.max(1), shares.argmax(1) == truth
    at = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    bins = [_bin(i, confidence[at == i], right[at == i]) for i in range(BINS) if (at == i).any()]
    gaps = [b["n"] / len(truth) * abs(b["confidence"] - b["accuracy"]) for b in bins]
    return {"bins": bins, "error": float(np.sum(gaps)), "n": len(truth)}


def _bin(number: int, confidence: NDArray[Any], right: NDArray[np.bool_]) -> dict[str, Any]:
    low, high = wilson(float(right.sum()), len(right))
    return {
        "low": number / BINS,
        "high": (number + 1) / BINS,
        "n": len(right),
        "confidence": float(confidence.mean()),
        "accuracy": float(right.mean()),
        "accuracy_low": low,
        "accuracy_high": high,
    }


def _wrong(
    ids: list[str],
    truth: NDArray[Any],
    shares: NDArray[Any],
    names: list[str],
    texts: Mapping[str, list[str]],
) -> list[dict[str, Any]]:
    """The wrong answers that the model was surest of."""
    chosen = shares.argmax(1)
    order = np.argsort(-shares.max(1), kind="stable")
    return [
        {
            "id": ids[i],
            "label": names[int(truth[i])],
            "predicted": names[int(chosen[i])],
            "confidence": float(shares[i].max()),
            "texts": texts.get(ids[i]),
        }
        for i in order
        if chosen[i] != truth[i]
    ][:WORST]


def _far(
    ids: list[str], targets: NDArray[Any], found: NDArray[Any], texts: Mapping[str, list[str]]
) -> list[dict[str, Any]]:
    """The predictions farthest from their targets."""
    order = np.argsort(-np.abs(found - targets), kind="stable")[:WORST]
    return [
        {
            "id": ids[i],
            "label": f"{targets[i]:.3f}",
            "predicted": f"{found[i]:.3f}",
            "error": float(found[i] - targets[i]),
            "texts": texts.get(ids[i]),
        }
        for i in order
    ]


def _texts(run: Path, facts: dict[str, Any], task: str, name: str) -> dict[str, list[str]]:
    """Texts by row id of a test set; empty where the data is not at hand as it was."""
    dataset = rows_at_hand(run, *source_of(facts, task))
    split = None if dataset is None else dataset.tests.get(name)
    if split is None:
        return {}
    columns = (split.first,) if split.second is None else (split.first, split.second)
    return {ident: [_cut(column[i]) for column in columns] for i, ident in enumerate(split.ids)}


def rows_at_hand(run: Path, data: Mapping[str, Any], checksum: str) -> Dataset | None:
    """The rows of a run's task, read again; None where that would ask a network, or they are not there as they were.

    data: the task's data settings. checksum: what its rows had in the run. Paths are those of the folder where the run was
    begun, which nobody wrote down: looked for here, and in the folders around the run's own.
    """
    from fleetune.data.demo import DEMOS
    from fleetune.study.settings import PLACES, DataSettings

    known = {f.name for f in fields(DataSettings)}
    given: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in data.items() if k in known
    }
    if given.get("file"):
        given["task"] = None
    elif not given.get("data_dir") and given.get("task") not in DEMOS:
        return None  # it would have to be asked for on a hub
    for base in (Path(), *run.resolve().parents[:_MOST_PARENTS]):
        places = {k: str(base / given[k]) for k in PLACES if isinstance(given.get(k), str)}
        found = _read({**given, **places})
        if found is not None and found.checksum == checksum:
            return found
        if not places:
            break
    return None


def _read(given: Mapping[str, Any]) -> Dataset | None:
    from fleetune.study.prepare import read_dataset
    from fleetune.study.settings import DataSettings

    try:
        return read_dataset(DataSettings(**given))
    except (FleetuneError, OSError, TypeError, ValueError):
        return None


@dataclass(frozen=True, slots=True)
class Seen:
    """The rows that a model was made with."""

    train: Split
    chose: Mapping[str, Split]
    """Test sets that chose its epoch (protocol "paper"), by name."""


def seen_by(model: Path, task: str) -> Seen | None:
    """The rows that a run trained and selected on, where they are at hand; None for a model that lies in no run.

    model: a trial's folder.
    """
    run = model.resolve().parent.parent
    try:
        with damage_told(run):
            facts = {"study": {**read_settings(run), "environment": read_environment(run)}}
            source = source_of(facts, task)
    except FleetuneError:
        return None
    dataset = rows_at_hand(run, *source)
    if dataset is None:
        return None
    paper = source[0].get("protocol") == "paper"
    return Seen(dataset.train, dict([*dataset.tests.items()][:1]) if paper else {})


def source_of(facts: dict[str, Any], task: str) -> tuple[dict[str, Any], str]:
    """A task's data settings, and the checksum that its rows had."""
    settings, found = tables(facts), datasets(facts)
    for own, seen in zip(settings, found, strict=False):
        if seen.get("task") == task:
            return own, str(seen.get("checksum"))
    return {}, ""


def tables(facts: Mapping[str, Any]) -> Sequence[dict[str, Any]]:
    """The data settings of each task."""
    return facts["study"].get("tasks") or listed(facts["study"].get("data"))


def datasets(facts: Mapping[str, Any]) -> Sequence[dict[str, Any]]:
    """What was found of each task's data: source, checksum, rows."""
    found = facts["study"]["environment"]
    return found.get("tasks") or listed(found["data"])


def listed(value: Any) -> Sequence[dict[str, Any]]:
    """One table or several, as a list: a run of one task has the first form in its files."""
    return value if isinstance(value, list) else [value] if value else []


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_TEXT else f"{text[: _MOST_TEXT - 1]}…"
