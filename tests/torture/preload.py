"""Imported once by the server that children are forked from: all that a command needs and that starts no thread."""

from __future__ import annotations

import importlib
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
MODULES = (
    "optuna",
    "peft",
    "pyarrow.parquet",
    "scipy.stats",
    "sklearn.metrics",
    "fleetune.artifact.export",
    "fleetune.report.facts",
    "fleetune.report.study_tables",
    "fleetune.study.estimate",
    "fleetune.study.run",
)
for name in MODULES:
    importlib.import_module(name)

torch = importlib.import_module("torch")
torch.set_num_threads(1)
# transformers imports its parts when they are first asked for.
transformers = importlib.import_module("transformers")
LOADED = (transformers.AutoModelForSequenceClassification, transformers.AutoTokenizer)
