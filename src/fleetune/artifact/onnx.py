"""A saved trial as one ONNX graph: merged, in float32, for padded batches of any size and length.

Source: `transformers.exporters.OnnxExporter`, which traces with torch.export. Needs the packages onnx, onnxscript and
onnxruntime, the extra `onnx`. What was written is run by ONNX Runtime and compared before it counts as exported.
Not covered: other runtimes, smaller number formats.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fleetune.artifact import layout
from fleetune.artifact.export import Merged, exporting, probes, same_logits
from fleetune.errors import EnvironmentProblem

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# A file of the format may have 2 GiB; weights beyond it stand in a second one.
_MOST_BYTES = 2**31 - 2**27


def export_onnx(folder: Path, output: Path) -> None:
    """Write the merged model of a trial's folder as an ONNX graph, with tokenizer, labels and a card.

    EnvironmentProblem: a package is missing. Else as `export_hf`.
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise EnvironmentProblem(
            f"--format onnx needs {', '.join(missing)}, not installed; pip install 'fleetune[onnx]'"
        )
    if importlib.util.find_spec("transformers.exporters") is None:
        raise EnvironmentProblem(
            "--format onnx needs a newer transformers, with transformers.exporters; pip install -U transformers"
        )
    with exporting(folder, output, "onnx") as merged:
        _write(merged)
        merged.model.config.save_pretrained(merged.staging)
        # Sizes that differ from those that were traced: a graph that holds on to them would fail here.
        for count in (1, 2, 4):
            inputs = probes(merged, count)
            same_logits(merged, inputs, _run(merged.staging / layout.GRAPH, inputs))


def _write(merged: Merged) -> None:
    import onnx_ir
    from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

    inputs: dict[str, Any] = {**probes(merged, 3)}
    sizes = {0: torch.export.Dim.DYNAMIC(), 1: torch.export.Dim.DYNAMIC()}
    config = OnnxConfig(dynamic=True, dynamic_shapes={name: sizes for name in inputs})
    with _silent():
        graph: Any = OnnxExporter().export(merged.model, inputs, config=config).program
    size = sum(p.numel() * p.element_size() for p in merged.model.parameters())
    beside = f"{layout.GRAPH}.data" if size > _MOST_BYTES else None
    onnx_ir.save(graph, merged.staging / layout.GRAPH, external_data=beside)


@contextmanager
def _silent() -> Generator[None]:
    """Without what the exporter tells of itself: on stdout, which is for data, and in its log."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        log.setLevel(level)


def _run(graph: Path, inputs: dict[str, Tensor]) -> Tensor:
    """Logits by ONNX Runtime on the processor."""
    # From 1.29 on its builds send what is run to their maker, unless this is set before it is loaded.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    session: Any = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    given = {one.name: inputs[one.name].numpy() for one in session.get_inputs()}
    return torch.from_numpy(session.run(["logits"], given)[0])
