"""The strongest fair loop to compare with: transformers' `Trainer` with peft (LoRA) or with all but biases and head frozen.

bfloat16 autocast where the machine has it, dynamic padding to the longest row of a batch, sdpa attention: one trial after
another, as a person would run it. The command below also groups rows by length. Data, split, starting head and settings are
those of a fleetune run; the order of rows and the dropout are Trainer's own.

    python -m bench.trainer_loop --task rte --data-dir GLUE --protocol holdout --output bench/results/trainer-rte.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fleetune.cohort.engine import Engine
from fleetune.cohort.trial import TrialInput
from fleetune.study.machine import commit, hardware
from fleetune.study.prepare import DataSettings, MethodSettings, Prepared, Settings, prepare

ORIGINAL = {
    "learning_rate": 5e-4,
    "per_device_train_batch_size": 16,
    "gradient_accumulation_steps": 4,
    "warmup_steps": 100,
    "weight_decay": 0.01,
}
METHODS = (
    MethodSettings("bitfit"),
    MethodSettings("lora", {"r": 2, "lora_alpha": 8.0, "lora_dropout": 0.01}),
)


def original(task: str, data_dir: str, protocol: str, **training: Any) -> Prepared:
    """The two trials of the original system on a task, ready for either side."""
    data = DataSettings(task=task, data_dir=data_dir, protocol=protocol)
    return prepare(Settings(data, METHODS, (42,), {**ORIGINAL, **training}))


class Rows(torch.utils.data.Dataset[dict[str, Any]]):
    """Rows of a token table as Trainer wants them, cut to `longest` tokens where it is given."""

    def __init__(self, rows: Any, longest: int | None = None) -> None:
        self.rows = rows
        self.longest = longest

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Any]:
        row, table = int(self.rows.rows[i]), self.rows.table
        item = {
            "input_ids": table.row(row)[: self.longest].astype("int64"),
            "labels": int(self.rows.labels[row]),
        }
        types = table.row_types(row)
        if types is not None:
            item["token_type_ids"] = types[: self.longest].astype("int64")
        return item


def model_for(prepared: Prepared, given: TrialInput) -> Any:
    """The model that the trial starts from, with only what the method trains left trainable."""
    names = prepared.dataset.task.label_names
    model, fresh = prepared.backbone.classifier(prepared.num_labels, names)
    source, _ = prepared.backbone.classifier(prepared.num_labels, names)
    start = Engine(source, fresh).owned(given.method, given.spec.seed).state()
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in start.items():
            if name in own:
                own[name].copy_(value)
    if given.method.name == "bitfit":
        for name, parameter in own.items():
            parameter.requires_grad_(name in start)
        return model
    from peft import LoraConfig, get_peft_model

    settings = given.spec.hyperparameters
    config = LoraConfig(
        task_type="SEQ_CLS",
        r=settings["r"],
        lora_alpha=settings["lora_alpha"],
        lora_dropout=settings["lora_dropout"],
    )
    torch.manual_seed(given.spec.seed)
    return get_peft_model(model, config)


def train(
    prepared: Prepared,
    given: TrialInput,
    *,
    bf16: bool,
    evaluate: bool,
    pad_to: int | None = None,
    grouped: bool = False,
    device: str = "cpu",
) -> dict[str, Any]:
    """Train one trial with Trainer; seconds of training, and where asked the epochs' selection accuracies and the test's.

    grouped: batches of rows of near-equal length, which saves most of the padding. pad_to: every row is padded, or cut, to
    so many tokens. "seconds" is all of `Trainer.train`, "step_seconds" from its first batch to its last step, without what
    Trainer sets up before: in a short measurement that would count for too much. Loading the model is in neither.
    """
    from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments

    class Clock(TrainerCallback):
        """When the first epoch began and the last step ended."""

        begin = end = 0.0

        def on_epoch_begin(self, *_: Any, **__: Any) -> None:
            self.begin = self.begin or time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if device != "cpu":
                torch.cuda.synchronize()
            self.end = time.perf_counter()

    clock = Clock()

    s, tokenizer = given.settings, prepared.backbone.tokenizer
    pad_to = min(pad_to, prepared.backbone.max_length) if pad_to else None
    model = model_for(prepared, given)

    def accuracy(found: Any) -> dict[str, float]:
        return {"accuracy": float((found.predictions.argmax(-1) == found.label_ids).mean())}

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            learning_rate=s.learning_rate or 0.0,
            num_train_epochs=s.num_train_epochs,
            max_steps=s.max_steps,
            per_device_train_batch_size=s.per_device_train_batch_size,
            per_device_eval_batch_size=s.per_device_eval_batch_size,
            gradient_accumulation_steps=s.gradient_accumulation_steps,
            warmup_steps=s.warmup_steps,
            weight_decay=s.weight_decay,
            seed=given.spec.seed,
            bf16=bf16,
            use_cpu=device == "cpu",
            report_to="none",
            train_sampling_strategy="group_by_length" if grouped else "random",
            disable_tqdm=True,
            logging_strategy="no",
            label_names=["labels"],
            remove_unused_columns=False,
            eval_strategy="epoch" if evaluate else "no",
            save_strategy="epoch" if evaluate else "no",
            save_total_limit=1,
            load_best_model_at_end=evaluate,
            metric_for_best_model="accuracy",
        )
        padding: Any = "max_length" if pad_to else True
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=Rows(given.train, pad_to),
            eval_dataset=Rows(given.selection, pad_to),
            data_collator=DataCollatorWithPadding(tokenizer, padding=padding, max_length=pad_to),
            compute_metrics=accuracy,
            callbacks=[clock],
        )
        # As fleetune, and as documented: losses of a group of micro-batches are averaged. Left to itself transformers 5.23
        # adds them for this model, which takes **kwargs and ignores num_items_in_batch.
        trainer.model_accepts_loss_kwargs = False
        began = time.perf_counter()
        trainer.train()
        took = time.perf_counter() - began
        found: dict[str, Any] = {
            "method": given.method.name,
            "seconds": round(took, 4),
            "step_seconds": clock.end - clock.begin,
        }
        if evaluate:
            found["epochs"] = [
                e["eval_accuracy"] for e in trainer.state.log_history if "eval_accuracy" in e
            ]
            found["selection"] = max(found["epochs"])
            for name, table in prepared.test_tables.items():
                split = prepared.dataset.tests[name]
                rows = type(given.train)(table, np.arange(len(split)), split.labels)  # type: ignore[arg-type]
                logits: Any = trainer.predict(Rows(rows, pad_to)).predictions  # type: ignore[arg-type]
                found[name] = float((logits.argmax(-1) == split.labels).mean())
    return found


def main() -> None:
    """Train both methods to the end and write what came out."""
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="rte")
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--protocol", default="holdout")
    parser.add_argument("--num-train-epochs", type=float, default=25)
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    prepared = original(
        given.task, given.data_dir, given.protocol, num_train_epochs=given.num_train_epochs
    )
    # Each finished method is kept, so that a cut costs at most one.
    found: dict[str, Any] = (
        json.loads(given.output.read_text()) if given.output.exists() else {"trials": []}
    )
    done = {trial["method"] for trial in found["trials"]}
    for one in prepared.inputs:
        if one.method.name not in done:
            found["trials"].append(
                train(prepared, one, bf16=prepared.dtype == "bfloat16", evaluate=True, grouped=True)
            )
            about = {
                "task": given.task,
                "protocol": given.protocol,
                "machine": hardware("cpu"),
                "commit": commit(),
            }
            given.output.parent.mkdir(parents=True, exist_ok=True)
            given.output.write_text(json.dumps({**about, **found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
