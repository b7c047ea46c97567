"""Write a trained trial as a folder, and say "saved" only after it was read back and gave the same logits."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
from numpy.typing import NDArray
from torch import Tensor

from fleetune.artifact import layout
from fleetune.artifact.card import EVAL_RESULTS, eval_results, model_card
from fleetune.artifact.check import Checker
from fleetune.artifact.layout import ModelRecord
from fleetune.artifact.scores import saved_scores
from fleetune.backbone.sites import SiteMap
from fleetune.data.base import Split
from fleetune.durable import as_json, new_folder, put, sha256
from fleetune.methods.base import LowRank, Method


def save_trial(
    folder: Path,
    record: ModelRecord,
    method: Method,
    sites: SiteMap,
    tensors: Mapping[str, Tensor],
    low_rank: tuple[LowRank, ...],
    metrics: Mapping[str, Any],
    predictions: Sequence[tuple[str, Split, NDArray[Any]]],
    checker: Checker,
) -> dict[str, str]:
    """Write a trial's folder; it appears under its name only when it is whole and checked.

    Returns the sha256 of `weights` and `predictions`.
    predictions: name, rows and logits [n, C] of each test set. Raises FleetuneError where what was read back is not
    what was trained, NoNumbers where that is not finite.
    """
    with new_folder(folder) as staging:
        named = {layout.peft_name(n): t.detach().cpu().contiguous() for n, t in tensors.items()}
        # Not `save_file`, which makes files of mode 0600 whatever the umask says, and hides that a disk is full.
        put(staging / layout.WEIGHTS, safetensors.torch.save(named, metadata={"format": "pt"}))
        put(staging / layout.CONFIG, as_json(adapter_config(record, method, sites)))
        put(staging / layout.METRICS, as_json(metrics))
        _write_card(staging, record, metrics, predictions)
        _write_predictions(staging / layout.PREDICTIONS, predictions)
        sums = {f.name: sha256(f) for f in sorted(staging.iterdir()) if f.is_file()}
        body = {**record.as_json(), "checksums": sums}
        put(staging / layout.RECORD, as_json(layout.sealed(body)))
        checker.check(staging, tensors, low_rank, peft=method.abilities.peft_format)
    return {"weights": sums[layout.WEIGHTS], "predictions": sums[layout.PREDICTIONS]}


def adapter_config(record: ModelRecord, method: Method, sites: SiteMap) -> dict[str, Any]:
    """PEFT's adapter_config.json. Methods that PEFT has no tuner for get its common fields and a name of our own."""
    common: dict[str, Any] = {
        "base_model_name_or_path": record.backbone_source,
        "revision": record.backbone_revision,
        "task_type": "SEQ_CLS",
        "inference_mode": True,
        "modules_to_save": head_modules(sites),
    }
    tuner = method.peft_tuner(sites)
    if tuner is None:
        return {"peft_type": f"FLEETUNE_{method.name.upper()}", **common}
    from peft import get_peft_config

    config = get_peft_config({"peft_type": tuner.kind, **tuner.settings, **common})
    return json.loads(json.dumps(config.to_dict(), default=_plain))


def head_modules(sites: SiteMap) -> list[str]:
    """PEFT's `modules_to_save`: the smallest set of modules that holds the whole head and nothing of the encoder."""
    encoder = {site.name for site in sites.part("encoder")}
    names: list[str] = []
    for site in sites.part("head"):
        parts, prefix = site.name.split("."), site.name
        for depth in range(1, len(parts) + 1):
            prefix = ".".join(parts[:depth])
            if not any(name == prefix or name.startswith(f"{prefix}.") for name in encoder):
                break
        names.append(prefix)
    return list(dict.fromkeys(names))


def _write_card(
    folder: Path,
    record: ModelRecord,
    metrics: Mapping[str, Any],
    predictions: Sequence[tuple[str, Split, NDArray[Any]]],
) -> None:
    """README.md, and for data of the hub its `.eval_results`."""
    scores = saved_scores(predictions, record.metrics, optimistic=bool(metrics.get("optimistic")))
    card = model_card(record, metrics, scores)
    put(folder / layout.CARD, card.encode("utf-8", "backslashreplace"))
    results = eval_results(record, metrics, scores)
    if results is not None:
        (folder / EVAL_RESULTS).mkdir()
        put(folder / EVAL_RESULTS / "glue.yaml", results.encode())


def _write_predictions(path: Path, predictions: Sequence[tuple[str, Split, NDArray[Any]]]) -> None:
    """One row an example: test set, id, true label (class number or target), logits."""
    tables: list[pa.Table] = []
    for name, split, logits in predictions:
        labels = split.labels
        assert labels is not None
        tables.append(
            pa.table(
                {
                    "split": pa.array([name] * len(split)),
                    "id": pa.array(split.ids),
                    "label": pa.array(labels.astype(np.float64)),
                    "logits": pa.array(list(logits.astype(np.float32))),
                }
            )
        )
    if tables:
        out = io.BytesIO()
        pq.write_table(pa.concat_tables(tables), out)
        put(path, out.getvalue())


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | frozenset) else str(value)
