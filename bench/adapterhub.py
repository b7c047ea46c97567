"""The peer AdapterHub: K LoRA adapters trained together by `adapters`' `Parallel` block, in an environment of its own.

Run by that environment's Python, with nothing of this repository on its path: `adapters` 1.3.0 needs transformers 4.57. So it
reads a JSON file with tokens and settings, and writes one with what was measured.

What `Parallel` does: each batch is repeated once for every adapter, the losses are summed, and one optimizer steps for all.
So the K adapters see the same rows at the same learning rate; ranks may differ. It counts here as K times the rows. The loop is
a plain one (AdamW, linear schedule, clipping at 1, autocast), which is no slower than `AdapterTrainer`, and pads to the
longest row of a batch. Not covered: BitFit, which `adapters` does not have.
Source: https://docs.adapterhub.ml/adapter_composition.html#parallel
"""

from __future__ import annotations

import json
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch


def build(job: dict[str, Any]) -> Any:
    """The model with its adapters and heads, all of them active and training."""
    import importlib

    # By name: the type checker runs where this package is not.
    adapters: Any = importlib.import_module("adapters")
    composition: Any = importlib.import_module("adapters.composition")

    model = adapters.AutoAdapterModel.from_pretrained(job["model"])
    names = [f"trial{k}" for k in range(len(job["trials"]))]
    for name, trial in zip(names, job["trials"], strict=True):
        config = adapters.LoRAConfig(
            r=trial["r"], alpha=int(trial["alpha"]), dropout=trial["dropout"]
        )
        model.add_adapter(name, config=config)
        model.add_classification_head(name, num_labels=job["num_labels"])
    together = composition.Parallel(*names) if len(names) > 1 else names[0]
    model.train_adapter(together)
    model.active_head = names if len(names) > 1 else names[0]
    return model.to(job["device"])


def batches(job: dict[str, Any], rows: list[list[int]], labels: list[int]) -> Any:
    """Batches padded to their longest row."""
    for at in range(0, len(rows), job["batch"]):
        part = rows[at : at + job["batch"]]
        longest = max(len(row) for row in part)
        ids = torch.full((len(part), longest), job["pad"], dtype=torch.long)
        mask = torch.zeros((len(part), longest), dtype=torch.long)
        for i, row in enumerate(part):
            ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), 1
        answers = torch.tensor(labels[at : at + job["batch"]])
        yield ids.to(job["device"]), mask.to(job["device"]), answers.to(job["device"])


def train(model: Any, job: dict[str, Any], rows: list[list[int]], labels: list[int]) -> float:
    """Seconds of training on these rows once."""
    own = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(own, lr=job["learning_rate"], weight_decay=0.01)
    micro = -(-len(rows) // job["batch"])
    steps = -(-micro // job["accumulation"])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: max(0.0, 1 - s / steps))
    model.train()
    synchronize(job["device"])
    began = time.perf_counter()
    for i, (ids, mask, answers) in enumerate(batches(job, rows, labels)):
        with torch.autocast(job["device"].partition(":")[0], torch.bfloat16, enabled=job["bf16"]):
            loss = model(input_ids=ids, attention_mask=mask, labels=answers).loss
        (loss / job["accumulation"]).backward()
        if (i + 1) % job["accumulation"] == 0 or i + 1 == micro:
            torch.nn.utils.clip_grad_norm_(own, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
    synchronize(job["device"])
    return time.perf_counter() - began


def synchronize(device: str) -> None:
    """Wait for a GPU."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def peak_mib() -> float:
    """The most memory that this process has held, MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return 0.0


def main() -> None:
    """Measure one job: warm up on one batch, then train on all rows."""
    job = json.loads(Path(sys.argv[1]).read_text())
    if job["threads"]:
        torch.set_num_threads(job["threads"])
    torch.manual_seed(0)
    model = build(job)
    train(model, job, job["rows"][: job["batch"]], job["labels"][: job["batch"]])
    seconds = train(model, job, job["rows"], job["labels"])
    found = {
        "seconds": seconds,
        "peak_mib": peak_mib(),
        "packages": {n: metadata.version(n) for n in ("adapters", "transformers", "torch")},
    }
    if job["device"].startswith("cuda"):
        found["device_mib"] = torch.cuda.max_memory_allocated() / 2**20
    Path(sys.argv[2]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
