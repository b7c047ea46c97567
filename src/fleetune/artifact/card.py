"""The model card beside a saved model: metadata as the hub reads it, what the model is worth, and how to load it.

Metadata is written as JSON values under YAML keys, so that whatever a name holds, it stays a name; in the text, names
stand in code spans or quoted lines that they cannot leave. Sources: hub-docs' modelcard.md and eval_results.yaml.
Departures: `library_name` is peft where stock peft loads the file, and fleetune otherwise; the license is left out, since
it is the base model's and the data's, which nobody but the user knows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fleetune.artifact.layout import ModelRecord
from fleetune.artifact.scores import Scored
from fleetune.data.glue_table import GLUE
from fleetune.errors import printable
from fleetune.methods.table import method_class
from fleetune.records import Estimate

EVAL_RESULTS = ".eval_results"
_GLUE_ID = "nyu-mll/glue"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[\w.-]+)?")
# Names of evaluate's metrics where they are not ours.
_METRIC_NAMES = {"pearson": "pearsonr", "f1_macro": "f1"}
_OPTIMISTIC = "optimistic: the epoch was chosen on these same examples"
_MOST_LABELS = 30


def model_card(record: ModelRecord, metrics: Mapping[str, Any], scores: Scored) -> str:
    """README.md of a trial's folder. scores: of this one file, by artifact/scores.py."""
    stamp = " (optimistic)" if metrics.get("optimistic") else ""
    parts = [
        _front(record, scores, bool(metrics.get("optimistic"))),
        f"# {_words(record.method)} on {_words(record.task)}",
        f"A small adapter for text classification: {_code(record.method)} trained by fleetune {record.fleetune_version} on "
        f"the frozen encoder {_code(base_name(record))}.",
        f"## Results{stamp}\n\n{_results(record, metrics, scores)}",
        f"## Intended use\n\n{_use(record)}",
        f"## Limits\n\n{_limits(record, metrics, scores)}",
        f"## Training\n\n{_training(record, metrics)}",
        f"## How to load it\n\n{load_section(record)}",
    ]
    return "\n\n".join(parts) + "\n"


def eval_results(record: ModelRecord, metrics: Mapping[str, Any], scores: Scored) -> str | None:
    """`.eval_results/glue.yaml` as the hub reads it: the main score on each test set; None for data that is not on the hub."""
    if record.task not in GLUE or not scores:
        return None
    found: list[dict[str, Any]] = []
    for name, metric, e in scores:
        if metric != record.metrics[0]:
            continue
        notes = f"{metric} on {e.n} labelled dev examples ({name}); one training, seed {record.seed}; {e.how}"
        if (ends := _ends(e)) is not None:
            notes += f": {ends[0]:.4f} to {ends[1]:.4f}"
        if metrics.get("optimistic"):
            notes += f"; {_OPTIMISTIC}"
        found.append(
            {
                "dataset": {"id": _GLUE_ID, "task_id": GLUE[record.task].config},
                "value": round(e.value, 6),
                "notes": notes,
            }
        )
    return "".join(f"- {as_yaml(entry)}\n" for entry in found)


def _front(record: ModelRecord, scores: Scored, optimistic: bool) -> str:
    """The metadata between the two lines of dashes."""
    on_hub = record.task in GLUE
    base = base_name(record)
    values: dict[str, Any] = {}
    if is_hub_id(record.backbone_source):
        values |= {"base_model": base, "base_model_relation": "adapter"}
    in_peft = _in_peft(record)
    values |= {
        "library_name": "peft" if in_peft else "fleetune",
        "pipeline_tag": "text-classification",
        "tags": ["fleetune", "text-classification", record.method, *(["peft"] if in_peft else [])],
    }  # fmt: skip
    if on_hub:
        values["datasets"] = [_GLUE_ID]
    values["metrics"] = list(dict.fromkeys(_METRIC_NAMES.get(m, m) for m in record.metrics))
    results = [_indexed(record, name, metric, e, optimistic) for name, metric, e in scores]
    if results:
        title = f"{record.method} on {record.task}"
        values["model-index"] = [{"name": title, "results": results}]
    lines = [f"{key}: {as_yaml(value)}" for key, value in values.items()]
    return "\n".join(["---", *lines, "---"])


def _indexed(
    record: ModelRecord, name: str, metric: str, e: Estimate, optimistic: bool
) -> dict[str, Any]:
    """One entry of `model-index`."""
    dataset: dict[str, Any] = {"name": record.task, "type": record.task, "split": name}
    if (row := GLUE.get(record.task)) is not None:
        dataset |= {
            "name": f"GLUE {record.task}",
            "type": _GLUE_ID,
            "config": row.config,
            "split": row.hub_splits.get(name, name),
        }
    ends = _ends(e)
    told = "no interval" if ends is None else f"95% interval {ends[0]:.4f} to {ends[1]:.4f}"
    told = f"{metric}, {told}, n = {e.n}"
    return {
        "task": {"type": "text-classification"},
        "dataset": dataset,
        "metrics": [
            {
                "type": _METRIC_NAMES.get(metric, metric),
                "value": round(e.value, 6),
                "name": f"{told}, {_OPTIMISTIC}" if optimistic else told,
            }
        ],
    }


def _results(record: ModelRecord, metrics: Mapping[str, Any], scores: Scored) -> str:
    if not scores:
        return "Not tested."
    stamp = " (optimistic)" if metrics.get("optimistic") else ""
    rows = [
        f"| {_cell(name)} | {_cell(metric)} | {100 * e.value:.2f}{stamp} | {_span(e)} | {e.n} |"
        for name, metric, e in scores
    ]
    how = "; ".join(dict.fromkeys(e.how for _, _, e in scores))
    head = "| test set | metric | score, % | 95% interval | n |\n| --- | --- | ---: | ---: | ---: |"
    told = (
        f"\n\nOf this one file (seed {record.seed}, epoch {record.best_epoch}), not of the method: another seed scores "
        f"differently. Intervals: {how}."
    )
    if metrics.get("optimistic"):
        told += f" The scores are {_OPTIMISTIC}; on new examples they are lower."
    return "\n".join([head, *rows]) + told


def _ends(e: Estimate) -> tuple[float, float] | None:
    """The interval of a score; None where nothing varied."""
    return None if e.low is None or e.high is None else (e.low, e.high)


def _span(e: Estimate) -> str:
    ends = _ends(e)
    return "none" if ends is None else f"{100 * ends[0]:.2f} to {100 * ends[1]:.2f}"


def _use(record: ModelRecord) -> str:
    reads = " and ".join(_code(c) for c in record.text_columns)
    what = "a pair of texts" if len(record.text_columns) == 2 else "a text"
    if record.regression:
        return f"It gives {what} ({reads}) a number, on the scale of the targets that it was trained with."
    names = record.label_names[:_MOST_LABELS]
    labels = ", ".join(_code(name) for name in names)
    more = len(record.label_names) - len(names)
    tail = f" and {more} more (all of them in `fleetune.json`)" if more else ""
    return (
        f"It gives {what} ({reads}) one of {len(record.label_names)} labels: {labels}{tail}. The texts should be of the kind "
        f"that {_code(record.task)} holds."
    )


def _limits(record: ModelRecord, metrics: Mapping[str, Any], scores: Scored) -> str:
    smallest = min((e.n for _, _, e in scores), default=None)
    found = [
        f"Texts of another kind, domain or language than {_code(record.task)} were not measured.",
        f"Texts longer than {record.max_length} tokens are cut.",
        "What the base model has learned of the world, its prejudices included, is still in it: only the adapter was trained.",
    ]
    if not record.regression:
        found.append(
            "Its probabilities were not calibrated; the report of the run shows how far they can be trusted."
        )
    if smallest is not None and smallest < 1000:
        found.append(
            f"It was measured on {smallest} examples: a point more or less may be chance (see the intervals)."
        )
    if metrics.get("optimistic"):
        found.append(f"Its scores are {_OPTIMISTIC}.")
    return "\n".join(f"- {text}" for text in found)


def _training(record: ModelRecord, metrics: Mapping[str, Any]) -> str:
    selection = metrics.get("selection") or {}
    if metrics.get("optimistic"):
        protocol = "paper: the epoch was chosen on the test examples themselves"
    elif selection.get("n"):
        protocol = f"the epoch was chosen on {selection['n']} rows held out of train; the test set was opened once, at the end"
    else:
        protocol = "trained on all of train, for a fixed number of epochs; the test set was opened once, at the end"
    rows: list[tuple[str, str]] = [
        ("base model", _cell(base_name(record))),
        ("base model revision", _cell(record.backbone_revision or "not given")),
        ("base model weights, sha256", _cell(record.backbone_checksum)),
        ("data", _cell(record.task)),
        ("protocol", protocol),
        ("seed", str(record.seed)),
        ("epoch kept", str(record.best_epoch)),
        ("computed in", _cell(record.dtype)),
    ]
    rows += [(_cell(k), _cell(v)) for k, v in record.hyperparameters.items()]
    rows += [(_cell(k), _cell(v)) for k, v in (metrics.get("training") or {}).items()]
    head = "| | |\n| --- | --- |"
    return "\n".join([head, *(f"| {key} | {value} |" for key, value in rows)])


def _in_peft(record: ModelRecord) -> bool:
    """Whether stock peft loads what was saved."""
    return method_class(record.method).abilities.peft_format


def load_section(record: ModelRecord) -> str:
    """How a saved trial is loaded: what stands below `LOAD_HEADING`."""
    pair = len(record.text_columns) == 2
    given = '--text "the first text" --text "the second"' if pair else '--text "a text"'
    texts = '["the first text"], ["the second text"]' if pair else '["a text", "another text"]'
    parts = [
        f"In the folder of this file, with fleetune:\n\n```sh\nfleetune predict . {given}\n```",
        f"```python\n{_FLEETUNE.format(texts=texts)}```",
    ]
    if _in_peft(record):
        show = (
            "print(logits[:, 0].tolist())"
            if record.regression
            else "print(logits.softmax(-1).tolist())  # in the order of label_names in fleetune.json"
        )
        code = _PEFT.format(
            labels=record.num_labels, texts=texts, length=record.max_length, show=show
        )
        parts.append(
            f"With peft and transformers alone; the head is included:\n\n```python\n{code}```"
        )
    else:
        parts.append(
            "Peft has no tuner for it: `adapter_model.safetensors` holds the trained parameters themselves, by name. "
            "`fleetune export . --format hf --output DIR` writes a plain transformers model."
        )
    return "\n\n".join(parts)


LOAD_HEADING = "\n## How to load it\n"
_FLEETUNE = """\
import fleetune

for found in fleetune.load(".").predict({texts}):
    print(found.label, found.probabilities)
"""
_PEFT = """\
import torch
from peft import PeftConfig, PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

config = PeftConfig.from_pretrained(".")
base = AutoModelForSequenceClassification.from_pretrained(
    config.base_model_name_or_path, revision=config.revision, num_labels={labels}
)
model = PeftModel.from_pretrained(base, ".").eval()
tokenizer = AutoTokenizer.from_pretrained(config.base_model_name_or_path, revision=config.revision)
batch = tokenizer({texts}, padding=True, truncation=True, max_length={length}, return_tensors="pt")
with torch.inference_mode():
    logits = model(**batch).logits
{show}
"""


def is_hub_id(source: str) -> bool:
    """Whether a backbone's source is a name on the hub, and no folder of a machine."""
    return _HUB_ID.fullmatch(source) is not None


def base_name(record: ModelRecord) -> str:
    """A hub id, or the last part of a local folder: its path says more of the machine than of the model."""
    source = record.backbone_source
    return source if is_hub_id(source) else re.split(r"[/\\]", source.rstrip("/\\"))[-1]


def _code(value: Any) -> str:
    """A value as a code span of one line: more backticks around than within."""
    text = _plain(value)
    if not text:
        return "(empty)"
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * (longest + 1)
    room = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{room}{text}{room}{fence}"


def _cell(value: Any) -> str:
    """A code span in a table, where a bare pipe would end the cell."""
    return _code(value).replace("|", "\\|")


def _words(value: str) -> str:
    """A name in a heading: Markdown's own characters as characters."""
    return re.sub(r"([\\`*_{}\[\]()#+!<>|~&-])", r"\\\1", _plain(value)).replace("\\-", "-")


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Sequence):
        return ", ".join(map(_plain, value))
    return _plain(json.dumps(value, ensure_ascii=False))


def as_yaml(value: Any) -> str:
    """JSON that YAML reads as the same value: printable characters as they are, all others as YAML's escapes."""
    text = json.dumps(value, ensure_ascii=False)
    return "".join(c if c.isprintable() and c != "\ufeff" else _escaped(c) for c in text)


def _escaped(c: str) -> str:
    return f"\\u{ord(c):04x}" if ord(c) < 0x10000 else f"\\U{ord(c):08x}"
