"""Imported once by the server that children are forked from: all that a command needs and that starts no thread."""

# ruff: noqa: F401

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import optuna
import peft
import pyarrow.parquet
import scipy.stats
import sklearn.metrics
import torch
import transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import fleetune.artifact.export
import fleetune.report.facts
import fleetune.report.study_tables
import fleetune.study.estimate
import fleetune.study.run

torch.set_num_threads(1)
