"""Read a saved model, trusting nothing: names, shapes, dtypes, values, checksums and labels are checked."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from fleetune.artifact import layout
from fleetune.artifact.layout import ModelRecord
from fleetune.backbone.load import Backbone, find_backbone
from fleetune.backbone.sites import SiteMap, site_map
from fleetune.backbone.weights import refuse_pickle, refuse_pickled
from fleetune.data.metrics import metrics_of
from fleetune.durable import read_file, sha256
from fleetune.errors import DataError, RefusedError, SettingsError, unreadable
from fleetune.methods.base import LowRank, Method
from fleetune.methods.table import METHODS, make_method

# Larger than any adapter; safetensors itself caps the header at 100 MB.
_MAX_RECORD_BYTES = 10_000_000
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class SavedModel:
    """A saved trial as it lies on disk, checked against itself."""

    folder: Path
    record: ModelRecord
    method: Method
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class OnBackbone:
    """A saved trial beside the model that it was trained on, whose own values nothing has changed yet."""

    saved: SavedModel
    backbone: Backbone
    model: Any
    """A transformers classifier, float32."""
    fresh: frozenset[str]
    """Its parameters that the backbone's checkpoint does not hold."""
    low_rank: tuple[LowRank, ...]


def open_saved(folder: Path) -> OnBackbone:
    """Read a trial's folder and open its backbone, each checked against the other.

    Raises what `load_saved` and `find_backbone` raise; RefusedError for another backbone, DataError for tensors that do not
    belong on it.
    """
    saved = load_saved(folder)
    record = saved.record
    backbone = _find_backbone_of(record)
    _check_backbone(record, backbone, folder)
    check_length(record, backbone.max_length, folder)
    kind = "regression" if record.regression else "single_label_classification"
    model, fresh = backbone.classifier(record.num_labels, record.label_names, problem_type=kind)
    return OnBackbone(saved, backbone, model, fresh, check_against(saved, site_map(model, fresh)))


def open_beside(
    folder: Path, backbone: Backbone, sites: SiteMap
) -> tuple[SavedModel, tuple[LowRank, ...]]:
    """Read a trial's folder for a backbone that is open already; sites: of its classifier, with as many labels.

    Returns it with its low-rank factors; raises what `open_saved` raises of a trial.
    """
    saved = load_saved(folder)
    _check_backbone(saved.record, backbone, folder)
    check_length(saved.record, backbone.max_length, folder)
    return saved, check_against(saved, sites)


def load_saved(folder: Path) -> SavedModel:
    """Read a trial's folder. SettingsError: it is none; RefusedError: a file is not what was saved; DataError: damaged."""
    record, sums = read_record(folder)
    if layout.CONFIG not in sums or layout.WEIGHTS not in sums:
        raise SettingsError(
            str(folder),
            [
                f"no trial: {layout.RECORD} lists no {layout.WEIGHTS}; give a folder such as RUN/trials/ID"
            ],
        )
    check_files(folder, sums, (layout.CONFIG, layout.WEIGHTS), "saved")
    return SavedModel(folder, record, _method(record, folder), read_weights(folder))


def check_files(folder: Path, sums: Mapping[str, str], needed: Iterable[str], done: str) -> None:
    """Whether the files that a model cannot do without are as they were written; others may be missing, as they are where a
    model was pushed to the hub.

    sums: their sha256 by name, as fleetune.json says them. done: what was done with the model then, for the message. Raises
    RefusedError for a changed file and for a name that is no file of this folder, DataError for a missing one.
    """
    for name in sums:
        if Path(name).name != name or name in ("", "..") or "\0" in name or len(name) > 60:
            raise RefusedError(
                f"{folder}: {layout.RECORD} names {name!r:.80}, which is no file of this folder"
            )
    for name in needed:
        path = folder / name
        if not path.is_file():
            refuse_pickle(str(folder), [file.name for file in folder.iterdir()])
            raise DataError(str(folder), [f"{name} is missing; copy the whole folder"])
        if sha256(path) != sums.get(name):
            raise RefusedError(
                f"{path}: changed since it was {done} (its sha256 is not the one in {layout.RECORD}); restore it from a copy"
            )


def _method(record: ModelRecord, folder: Path) -> Method:
    if record.method not in METHODS:
        raise RefusedError(
            f'{folder}: trained by method "{record.method}", which this fleetune does not know; update fleetune'
        )
    try:
        return make_method(record.method, record.hyperparameters)
    except SettingsError as error:
        if unknown := [
            problem.partition(":")[0]
            for problem in error.problems
            if ": unknown setting" in problem
        ]:
            raise RefusedError(
                f"{folder}: trained with settings of {record.method} that this fleetune does not know ({', '.join(unknown)}); "
                "update fleetune"
            ) from None
        found = [f"damaged: hyperparameters: {problem}" for problem in error.problems]
        raise DataError(str(folder / layout.RECORD), found) from None


def read_record(folder: Path) -> tuple[ModelRecord, dict[str, str]]:
    """What `fleetune.json` says, and the checksums of the other files."""
    path = folder / layout.RECORD
    if not path.is_file():
        raise SettingsError(
            str(folder),
            [f"no saved model: it has no {layout.RECORD}; give a folder such as RUN/trials/ID"],
        )
    try:
        if path.stat().st_size > _MAX_RECORD_BYTES:
            raise ValueError("too large")
        found: Any = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or not isinstance(found.get("checksums", {}), dict):
            raise ValueError("must be a table, with a table of checksums")
        sums = {str(k): str(v) for k, v in found.get("checksums", {}).items()}
        if found["format"] != layout.FORMAT:
            raise RefusedError(
                f"{path}: written in format {found['format']!r}, this fleetune reads {layout.FORMAT}; update fleetune"
            )
        whole = layout.SEAL not in found or layout.sealed(found) == found
        record = ModelRecord(**{f.name: _value(found, f) for f in fields(ModelRecord)})
    except KeyError as error:
        raise DataError(
            str(path), [f"damaged: {error} is missing; restore it from a copy"]
        ) from None
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(str(path), [f"damaged: {error}; restore it from a copy"]) from None
    problems = _wrong_fields(record)
    if problems:
        raise DataError(str(path), [f"damaged: {p}; restore it from a copy" for p in problems])
    if not whole:
        raise RefusedError(
            f"{path}: changed since it was written (its own checksum does not fit); restore it from a copy"
        )
    return record, sums


def _value(found: Mapping[str, Any], field: Field[Any]) -> Any:
    """What the record says; KeyError for a field that it must have."""
    return found[field.name] if field.default is MISSING else found.get(field.name, field.default)


def _wrong_fields(record: Any) -> list[str]:
    """What a record says that no fleetune would have written; from JSON, a field may be of any type."""
    texts = ("method", "task", "backbone", "backbone_source", "backbone_checksum", "dtype")
    problems = [f"{n}: must be a text" for n in texts if not isinstance(getattr(record, n), str)]
    for name in ("label_column", "backbone_revision", "backbone_config", "backbone_tokenizer"):
        if not isinstance(getattr(record, name), str | None):
            problems.append(f"{name}: must be a text or null")
    for name in ("text_columns", "label_names", "metrics"):
        value: Any = getattr(record, name)
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            problems.append(f"{name}: must be a list of texts, but is {value!r}")
        elif len(set(value)) != len(value):
            problems.append(f"{name}: must differ from one another, but are {value!r}")
    chose = {} if record.chosen_on is None else record.chosen_on
    if not isinstance(chose, dict) or not all(isinstance(v, str) for v in chose.values()):
        problems.append(f"chosen_on: must be a table of checksums or null, but is {chose!r}")
    if problems:
        return problems
    if len(record.text_columns) not in (1, 2):
        problems.append(f"text_columns: must be one or two, but are {record.text_columns!r}")
    if not isinstance(record.regression, bool) or record.num_labels < 1:
        problems.append("label_names: must hold every label, or `regression` must be true")
    if not isinstance(record.hyperparameters, dict):
        problems.append(f"hyperparameters: must be a table, but are {record.hyperparameters!r}")
    known = metrics_of(bool(record.regression))
    if not record.metrics or not set(record.metrics) <= set(known):
        problems.append(f"metrics: must be among {', '.join(known)}, but are {record.metrics!r}")
    if type(record.max_length) is not int or record.max_length < 1:
        problems.append(f"`max_length >= 1` must hold, but got {record.max_length!r}")
    if record.dtype not in ("bfloat16", "float32", "float64"):
        problems.append(f'dtype: "{record.dtype}" is not known')
    return problems


def _find_backbone_of(record: ModelRecord) -> Backbone:
    """The backbone that a model was trained on. A folder is looked for where it lay, from whatever folder the command runs."""
    lies = Path(record.backbone_source)
    name = record.backbone_source if lies.is_absolute() else record.backbone
    return find_backbone(name, revision=record.backbone_revision)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of a saved model under their own names."""
    path = folder / layout.WEIGHTS
    try:
        return {layout.own_name(n): t for n, t in safetensors.torch.load_file(path).items()}
    except (safetensors.SafetensorError, OSError) as error:
        refuse_pickled(path)
        raise unreadable(path, error) from None


def check_against(saved: SavedModel, sites: SiteMap) -> tuple[LowRank, ...]:
    """Whether the tensors are exactly those that the method owns on this backbone; returns the low-rank factors."""
    owned = saved.method.ownership(sites)
    shapes = sites.parameters()
    expected = {name: shapes[name] for name in owned.parameters}
    expected |= {
        name: (shapes[f"{name.rpartition('.')[0]}.weight"][0],) for name in owned.zero_biases
    }
    for f in owned.low_rank:
        site = sites[f.site]
        expected[f"{f.site}.lora_A"] = (f.r, site.d_in)
        expected[f"{f.site}.lora_B"] = (site.d_out, f.r)
    problems = [f"{name}: missing" for name in expected if name not in saved.tensors]
    for name, tensor in saved.tensors.items():
        if name not in expected:
            problems.append(
                f"{name}: not a tensor that {saved.record.method} owns on this backbone"
            )
        elif tuple(tensor.shape) != tuple(expected[name]):
            problems.append(
                f"{name}: must have shape {expected[name]}, but has {tuple(tensor.shape)}"
            )
        elif tensor.dtype not in _DTYPES or not bool(tensor.isfinite().all()):
            problems.append(f"{name}: must hold finite floating-point numbers of 16 bits or more")
    if problems:
        raise DataError(str(saved.folder / layout.WEIGHTS), problems)
    return owned.low_rank


def check_length(record: ModelRecord, limit: int, folder: Path) -> None:
    """DataError where the record promises longer rows than the backbone has positions for."""
    if record.max_length > limit:
        rule = f"`max_length <= {limit}` must hold for this backbone, but got {record.max_length}"
        raise DataError(str(folder / layout.RECORD), [f"damaged: {rule}; restore it from a copy"])


def is_backbone_of(record: ModelRecord, backbone: Backbone) -> bool:
    """Whether a model was trained on this one: its weights, config and tokenizer, as far as the record says them."""
    return (
        backbone.checksum == record.backbone_checksum
        and record.backbone_config in (None, backbone.config_checksum)
        and (
            record.backbone_tokenizer is None
            or record.backbone_tokenizer == backbone.tokenizer_checksum
        )
    )


def _check_backbone(record: ModelRecord, backbone: Backbone, folder: Path) -> None:
    """RefusedError where the backbone at hand is not the one that the model was trained on."""
    if is_backbone_of(record, backbone):
        return
    if backbone.checksum != record.backbone_checksum:
        raise RefusedError(
            f"{folder}: trained on {record.backbone_source} with weights {record.backbone_checksum[:12]}..., "
            f"but the weights found now are {backbone.checksum[:12]}...; use the same revision"
        )
    same = record.backbone_config in (None, backbone.config_checksum)
    raise RefusedError(
        f"{folder}: trained on {record.backbone_source} with another {'tokenizer' if same else 'config.json'} than the one found "
        f"now in {backbone.folder}, so its answers would differ; restore that file"
    )


def read_json(path: Path) -> Any:
    """A small JSON file of a run. DataError where it cannot be read."""
    try:
        return json.loads(read_file(path).decode())
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(path, error) from None
