"""The model card: what the hub reads in it, what a reader reads, and that its code runs as it stands."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from scipy import stats

from fleetune.artifact.card import eval_results, model_card
from fleetune.artifact.exported_card import exported_card
from fleetune.artifact.layout import ModelRecord
from fleetune.artifact.load import read_json
from fleetune.artifact.scores import saved_scores
from fleetune.data import metrics
from fleetune.data.base import Split
from fleetune.serve.predictor import Predictor
from tests.report.payloads import PAYLOADS
from tests.runs import Made, run_cli

RECORD = ModelRecord(
    method="lora", hyperparameters={"r": 2, "lora_alpha": 8.0}, seed=7, task="rte",
    text_columns=["sentence1", "sentence2"], label_names=["entailment", "not_entailment"], regression=False,
    metrics=["accuracy"], backbone="roberta-base", backbone_source="FacebookAI/roberta-base",
    backbone_revision="e2da8e2f811d1448a5b465c236feacd80ffbac7b", backbone_checksum="ab" * 32,
    model_type="roberta", dtype="bfloat16", max_length=256, best_epoch=3, fleetune_version="0.1.0",
)  # fmt: skip
FACTS: dict[str, Any] = {
    "optimistic": False, "selection": {"accuracy": 0.7, "n": 249}, "training": {"learning_rate": 5e-4},
}  # fmt: skip


def rows(labels: np.ndarray) -> Split:
    texts = tuple(f"row {i}" for i in range(len(labels)))
    return Split(ids=texts, first=texts, second=texts, labels=labels)


def predictions(right: int = 190, n: int = 277) -> list[tuple[str, Split, np.ndarray]]:
    """So many right of n, two classes."""
    labels = np.arange(n) % 2
    said = np.where(np.arange(n) < right, labels, 1 - labels)
    return [("test", rows(labels), np.eye(2)[said])]


SCORES = saved_scores(predictions(), ["accuracy"], optimistic=False)
CARD = model_card(RECORD, FACTS, SCORES)


def blocks(card: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", card, re.S)


# --- what the hub reads


def test_the_hub_reads_the_metadata() -> None:
    data = ModelCard(CARD).data
    assert data.base_model == "FacebookAI/roberta-base"
    assert data.library_name == "peft"
    assert data.pipeline_tag == "text-classification"
    assert data.datasets == ["nyu-mll/glue"]
    assert data.metrics == ["accuracy"]
    assert {"fleetune", "lora", "peft"} <= set(data.tags)
    assert data.to_dict()["base_model_relation"] == "adapter"
    (result,) = data.eval_results
    assert result.dataset_type == "nyu-mll/glue" and result.dataset_config == "rte"
    assert result.dataset_split == "validation"
    assert result.metric_type == "accuracy"
    assert result.metric_value == pytest.approx(190 / 277, abs=1e-6)  # six decimals are written


def test_eval_results_are_the_hubs_form() -> None:
    from huggingface_hub import parse_eval_result_entries

    text = eval_results(RECORD, FACTS, SCORES)
    assert text is not None
    (entry,) = parse_eval_result_entries(yaml.safe_load(text))
    assert (entry.dataset_id, entry.task_id) == ("nyu-mll/glue", "rte")
    assert entry.value == pytest.approx(190 / 277, abs=1e-6)
    interval = stats.binomtest(190, 277).proportion_ci(0.95, method="wilson")
    assert f"{interval.low:.4f} to {interval.high:.4f}" in entry.notes
    assert "seed 7" in entry.notes and "optimistic" not in entry.notes


def test_own_data_claims_no_dataset_of_the_hub() -> None:
    own = replace(RECORD, task="my reviews")
    assert eval_results(own, FACTS, SCORES) is None
    data = ModelCard(model_card(own, FACTS, SCORES)).data
    assert data.datasets is None
    assert data.eval_results[0].dataset_name == "my reviews"


def test_a_local_backbone_is_named_without_its_path() -> None:
    card = model_card(replace(RECORD, backbone_source="/home/somebody/secret/mini"), FACTS, SCORES)
    assert ModelCard(card).data.base_model is None
    assert "`mini`" in card and "somebody" not in card


# --- what a reader reads


def test_the_estimate_stands_with_its_interval_and_n() -> None:
    interval = stats.binomtest(190, 277).proportion_ci(0.95, method="wilson")
    row = next(line for line in CARD.splitlines() if line.startswith("| `test` | `accuracy`"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[2:] == [
        f"{100 * 190 / 277:.2f}", f"{100 * interval.low:.2f} to {100 * interval.high:.2f}", "277",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "told",
    [
        "FacebookAI/roberta-base", "e2da8e2f811d1448a5b465c236feacd80ffbac7b", "ab" * 32, "`r` | `2`",
        "`lora_alpha` | `8`", "`learning_rate` | `0.0005`", "249 rows held out of train", "256 tokens",
        "`entailment`, `not_entailment`", "a pair of texts", "seed 7, epoch 3",
    ],
)  # fmt: skip
def test_what_a_reader_needs_is_there(told: str) -> None:
    assert told in CARD


def test_optimistic_scores_say_so_wherever_they_stand() -> None:
    facts = {**FACTS, "optimistic": True}
    scores = saved_scores(predictions(), ["accuracy"], optimistic=True)
    card, results = model_card(RECORD, facts, scores), eval_results(RECORD, facts, scores)
    assert results is not None and "optimistic" in results
    for line in card.splitlines():
        if "68.59" in line or "0.685" in line or line.startswith("## Results"):
            assert "optimistic" in line, line
    assert "the epoch was chosen on the test examples themselves" in card
    assert "optimistic" not in CARD


def test_an_untested_model_says_so() -> None:
    card = model_card(RECORD, FACTS, [])
    assert "Not tested." in card and "model-index" not in card


def test_other_metrics_have_bootstrap_intervals() -> None:
    """The value is the metric's own; the interval covers it, and shrinks with the root of n."""
    draw = np.random.default_rng(3)
    widths: list[float] = []
    for n in (200, 3200):
        labels = draw.integers(0, 2, n)
        logits = np.eye(2)[np.where(draw.random(n) < 0.8, labels, 1 - labels)]
        given = [("test", rows(labels), logits)]
        found = saved_scores(given, ["f1", "matthews_correlation"], optimistic=False)
        for _, name, e in found:
            assert e.value == pytest.approx(
                metrics.compute((name,), logits, labels)[name], abs=1e-12
            )
            assert e.low < e.value < e.high and e.n == n
        widths.append(found[0][2].high - found[0][2].low)
    # 16 times the examples, a quarter of the width; a bootstrap of 1000 draws is off by a few percent of it.
    assert widths[1] / widths[0] == pytest.approx(0.25, rel=0.25)


@pytest.mark.parametrize("payload", PAYLOADS)
def test_hostile_names_stay_names(payload: str) -> None:
    """In the metadata they are read back as they are; in the text they open neither a heading, a block nor a tag."""
    record = replace(
        RECORD, task=payload, label_names=[payload, "other"], text_columns=[payload],
        hyperparameters={"target_modules": payload}, backbone_source=payload,
    )  # fmt: skip
    card = model_card(record, FACTS, SCORES)
    _, front, body = card.split("---\n", 2)
    data = yaml.safe_load(front)
    _, (result,) = model_index_to_eval_results(data["model-index"])
    assert result.dataset_name == payload
    headings = [line for line in body.splitlines() if line.startswith("#")]
    assert len(headings) == 6
    # A code span shows tags as text; so does an escaped name in a heading.
    outside = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", body, flags=re.S)
    outside = re.sub(r"\\.", "", outside)
    assert "<" not in outside


# --- what its code does


@pytest.mark.parametrize("method", ["lora", "bitfit", "head"])
def test_its_code_runs_and_says_what_fleetune_says(
    made: Made, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    folder = made.run / "trials" / f"{method}-s0"
    card = (folder / "README.md").read_text("utf-8")
    monkeypatch.chdir(folder)
    texts = ["a text", "another text"]
    expected = Predictor(folder).predict(texts)
    printed: list[str] = []
    for code in blocks(card, "python"):
        out = io.StringIO()
        with (
            contextlib.redirect_stdout(out),
            warnings.catch_warnings(),
            torch.random.fork_rng(devices=[]),
        ):
            # peft asks transformers for a property that transformers is renaming.
            warnings.simplefilter("ignore", FutureWarning)
            exec(compile(code, "README.md", "exec"), {})
        printed.append(out.getvalue())
    assert printed[0].splitlines() == [f"{p.label} {p.probabilities}" for p in expected]
    if method == "lora":
        names = read_json(folder / "fleetune.json")["label_names"]
        found = np.array(eval(printed[1], {"__builtins__": {}}))
        wanted = np.array([[p.probabilities[name] for name in names] for p in expected])
        # Packed and padded float32 sums differ in their order.
        np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5)
    (command,) = blocks(card, "sh")
    done = run_cli(*command.strip().replace('"', "").split(" ", 4)[1:])
    assert done.code == 0, done.err
    assert Predictor(folder).predict(["a text"])[0].label in done.out


def test_the_card_of_a_run_reads_as_the_hub_reads_it(made: Made) -> None:
    for folder in sorted((made.run / "trials").iterdir()):
        data = ModelCard((folder / "README.md").read_text("utf-8")).data
        test = read_json(folder / "metrics.json")["test"]
        assert data.eval_results[0].metric_value == pytest.approx(test["accuracy"], abs=1e-6)
        assert str(made.folder) not in (folder / "README.md").read_text("utf-8")


def test_a_card_is_whole_on_the_disk(made: Made, tmp_path: Path) -> None:
    """The settings of the training are in the card of a run, whatever the user left to defaults."""
    card = (made.run / "trials" / "lora-s0" / "README.md").read_text("utf-8")
    for key in (
        "learning_rate",
        "per_device_train_batch_size",
        "weight_decay",
        "lr_scheduler_type",
    ):
        assert f"| `{key}` |" in card


# --- the card of an exported model


def test_the_card_of_an_exported_model_says_what_it_is_now() -> None:
    found = exported_card(CARD.encode(), RECORD, "hf").decode()
    front = ModelCard(found).data.to_dict()
    assert front["library_name"] == "transformers" and "peft" not in front["tags"]
    assert "AutoModelForSequenceClassification" in found and "PeftModel" not in found
    assert found.count("## How to load it") == 1


@pytest.mark.parametrize("method", ["lora", "bitfit"])
def test_what_was_written_into_a_card_stays_when_it_is_exported(method: str) -> None:
    record = replace(RECORD, method=method)
    card = model_card(record, FACTS, SCORES)
    plain = exported_card(card.encode(), record, "hf").decode()
    assert exported_card(f"{card}\nA line of mine.\n".encode(), record, "hf").decode() == (
        f"{plain}\nA line of mine.\n"
    )
    # Also where the section itself was written in; a comment in code is no heading.
    edited = card.replace("```python\n", "```python\n## a comment\n") + "\n## Mine\n\nA line.\n"
    found = exported_card(edited.encode(), record, "hf").decode()
    assert found == f"{plain}\n## Mine\n\nA line.\n"


@pytest.mark.parametrize(
    "card",
    [
        b"A card of my own.\n",
        b"",
        CARD.replace("## How to load it", "## Loading").encode(),
        CARD.removeprefix("---\n").encode(),
        CARD.encode().replace(b"text classification", b"caf\xe9"),
        re.sub(r"(?m)^tags: .*$", "tags: 3", CARD).encode(),
        re.sub(r"(?m)^tags: .*$", "tags: [mine]", CARD).encode(),
    ],
)
def test_a_card_written_anew_is_exported_as_it_is(card: bytes) -> None:
    assert card != CARD.encode() and exported_card(card, RECORD, "hf") == card
