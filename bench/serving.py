"""Saved models served together, beside the same models called one after the other: texts a second, and the memory of the weights.

K models, LoRA and BitFit in turn, on one backbone; each is asked for the same number of texts at once, as waiting requests are.
Sides, which take turns: `together`, one turn of `fleetune serve` without HTTP; `one by one`, the same models, each in a pass of
its own; `merged`, each model exported to plain transformers and called on a padded batch with all threads of torch. All sides
compute in the same dtype. What a model says does not matter here, so each is trained for two steps.

    python -m bench.serving --models 1,4,16 --texts 1,8        # bench/results/serving.json, a table on stdout
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.tables import keep

SIDES = ("together", "one by one", "merged")
HEAD = ["models", "texts each", "together, texts/s", "x one by one", "x merged", "weights, MiB", "merged, MiB"]  # fmt: skip


def trained(folder: Path, count: int) -> list[Path]:
    """Folders of so many saved trials."""
    import fleetune

    fleetune.train(
        "demo-sentiment", methods=["lora", "bitfit"], seeds=-(-count // 2), max_steps=2, output_dir=folder
    )  # fmt: skip
    found = zip(sorted(folder.glob("trials/lora-*")), sorted(folder.glob("trials/bitfit-*")), strict=True)  # fmt: skip
    return [path for pair in found for path in pair]


def texts_of() -> list[str]:
    """The embedded task's own test rows."""
    from fleetune.data.load import load_task

    return list(load_task("demo-sentiment", None).tests["test"].first)


def merged_models(places: Sequence[Path], folder: Path, dtype: torch.dtype) -> list[Any]:
    """Each exported and read back by stock transformers."""
    from transformers import AutoModelForSequenceClassification

    from fleetune.artifact.export import export_hf

    found: list[Any] = []
    for i, place in enumerate(places):
        export_hf(place, folder / str(i))
        model = AutoModelForSequenceClassification.from_pretrained(folder / str(i), dtype=dtype)
        found.append(model.eval())
    return found


def bytes_of(models: Sequence[Any]) -> int:
    """Of all parameters, those that are the same memory once."""
    held = {p.data_ptr(): p.numel() * p.element_size() for m in models for p in m.parameters()}
    return sum(held.values())


def measure(places: Sequence[Path], each: int, repeats: int, folder: Path) -> dict[str, Any]:
    """Texts a second of every side in each turn, and bytes of the weights."""
    from fleetune.cohort.lanes import single_threads
    from fleetune.serve.models import Asked, Models

    models = Models({place.name: place for place in places})
    opened = models[models.names[0]].opened
    stock = merged_models(places, folder, opened.compute[0])
    tokenizer: Any = models[models.names[0]].tokenizer
    every = texts_of()
    served = single_threads(1, "served")

    def asked(turn: int) -> list[Asked]:
        at = [(turn * len(places) + k) * each for k in range(len(places))]
        return [
            Asked(name, [every[(a + i) % len(every)] for i in range(each)])
            for name, a in zip(models.names, at, strict=True)
        ]

    def merged(questions: Sequence[Asked]) -> None:
        with torch.inference_mode():
            for model, one in zip(stock, questions, strict=True):
                batch = tokenizer(list(one.first), padding=True, return_tensors="pt")
                model(**batch).logits.softmax(-1).tolist()

    sides: dict[str, Callable[[Sequence[Asked]], Any]] = {
        "together": lambda q: served.submit(models.answer, q).result(),
        "one by one": lambda q: [served.submit(models.answer, [one]).result() for one in q],
        "merged": merged,
    }
    found: dict[str, Any] = {side: [] for side in SIDES}
    for turn in range(repeats + 3):
        questions = asked(turn)
        for side, run in sides.items():
            began = time.perf_counter()
            run(questions)
            if turn >= 3:  # the first warm up
                found[side].append(len(places) * each / (time.perf_counter() - began))
    owned = sum(f.numel() * f.element_size() for n in models.names for f in models[n].owned.flats)
    found["weights"] = bytes_of([opened.engine.backbone.model]) + owned
    found["merged weights"] = bytes_of(stock)
    return found


def row(models: int, each: int, found: dict[str, Any]) -> list[str]:
    """A line of the table: medians, with the range of the ratios of each turn."""
    ratios = {
        side: [a / b for a, b in zip(found["together"], found[side], strict=True)]
        for side in SIDES[1:]
    }
    told = [f"{statistics.median(r):.2f} [{min(r):.2f}, {max(r):.2f}]" for r in ratios.values()]
    sizes = [f"{found[what] / 2**20:.0f}" for what in ("weights", "merged weights")]
    return [str(models), str(each), f"{statistics.median(found['together']):,.0f}", *told, *sizes]


def main(words: Sequence[str] | None = None) -> None:
    """Measure, keep, print."""
    asked = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    asked.add_argument("--models", default="1,4,16")
    asked.add_argument("--texts", default="1,8", help="of each model in a turn")
    asked.add_argument("--repeats", type=int, default=15)
    given = asked.parse_args(words)
    from fleetune.study.machine import commit, hardware
    from fleetune.study.prepare import resolve_dtype

    counts = [int(n) for n in given.models.split(",")]
    rows: list[list[str]] = []
    times: list[Any] = []
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        places = trained(folder / "run", max(counts))
        for count in counts:
            for each in map(int, given.texts.split(",")):
                exports = folder / f"merged-{count}-{each}"
                found = measure(places[:count], each, given.repeats, exports)
                rows.append(row(count, each, found))
                times.append({"models": count, "texts": each, **found})
    about = [
        " ".join(["python -m bench.serving", *(sys.argv[1:] if words is None else words)]),
        f"MiniLM, {resolve_dtype('auto')}, LoRA and BitFit in turn, texts of demo-sentiment, {given.repeats} turns",
        f"commit {commit()}, {hardware('cpu')['processor']}",
    ]
    keep("serving", about, (HEAD, rows), times=times)


if __name__ == "__main__":
    main()
