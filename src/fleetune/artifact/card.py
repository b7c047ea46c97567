"""The model card beside a saved model: metadata as the hub reads it, and how to load."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fleetune.artifact.layout import ModelRecord


def model_card(record: ModelRecord, metrics: Mapping[str, Any]) -> str:
    """README.md of a trial's folder."""
    test = metrics.get("test")
    stamp = (
        " (optimistic: the epoch was chosen on these same examples)"
        if metrics.get("optimistic")
        else ""
    )
    scores = (
        "\n".join(
            f"- {name}: {value:.4f} on {test['n']} test examples{stamp}"
            for name, value in test.items()
            if name not in ("n", "loss")
        )
        if test
        else "- not tested"
    )
    settings = "\n".join(f"- {k}: {v}" for k, v in record.hyperparameters.items())
    # JSON strings are YAML strings: whatever a name holds, it stays a name.
    head = "\n".join(
        [
            "---",
            f"base_model: {json.dumps(record.backbone_source)}",
            "library_name: peft" if record.method == "lora" else "library_name: fleetune",
            "pipeline_tag: text-classification",
            "tags: [fleetune, text-classification]",
            "---",
        ]
    )
    return f"""{head}

# {record.method} on {record.task}

One trial: method {record.method}, seed {record.seed}, epoch {record.best_epoch}, trained by fleetune
{record.fleetune_version} on the frozen encoder {record.backbone_source} (weights {record.backbone_checksum[:12]}).

{settings or "- no settings"}

Scores of this one file, not of the method:

{scores}

## Use

```
fleetune predict FOLDER --text "..."
```
{_PEFT if record.method == "lora" else _PLAIN}"""


_PEFT = """
```python
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

base = AutoModelForSequenceClassification.from_pretrained(BACKBONE, num_labels=N)
model = PeftModel.from_pretrained(base, FOLDER)  # the head is included
```
"""
_PLAIN = """
`fleetune export FOLDER --format hf --output DIR` gives a plain transformers model.
"""
