"""Readers of what a run and a model keep on disk, and of a study file, for fuzz.py.

Half of the cases are damaged as bytes; the others change values and make the checksums fit again, as whoever meant harm would.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tomllib
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import tomli_w

from tests import runs
from tests.backbone.hub import save_tiny
from tests.hostile.fuzz import Reader
from tests.hostile.mutations import damaged, damaged_value

Case = Callable[[Any], object]

STUDY = """
[data]
file = "reviews.csv"
text_columns = ["text"]
label_column = "label"
protocol = "holdout"

[backbone]
name = "minilm"
dtype = "float32"
max_length = 64

[training]
num_train_epochs = 5
warmup_steps = 0.1
lr_scheduler_type = "cosine"

[[methods]]
method = "bitfit"
learning_rate = [5e-4, 1e-3]

[[methods]]
method = "lora"
learning_rate = { low = 1e-4, high = 2e-3, log = true, steps = 3 }
r = [1, 2, 4]
lora_alpha = "4r"
target_modules = ["query", "value"]

[search]
trials_per_method = 12
sampler = "tpe"
pruner = "halving"
seed = 3

[confirm]
seeds = 5
first_seed = 1000
reference = "bitfit"
"""


def _study(folder: Path) -> Case:
    from fleetune.study.file import read_study

    path, sound = folder / "study.toml", tomllib.loads(STUDY)
    words = (
        b"[[methods]]\n",
        b"[a.b]\n",
        b"= {",
        b"methods",
        b"r",
        b'"2r"',
        b"steps = 9\n",
        b"1_0",
    )

    def one(draws: Any) -> object:
        content = damaged(STUDY.encode(), draws, words)
        if draws.random() < 0.5:
            # TOML has no null, and no table at its root but one.
            with suppress(TypeError, ValueError, AttributeError):
                content = tomli_w.dumps(damaged_value(sound, draws)).encode()
        path.write_bytes(content)
        return read_study(path)

    return one


@cache
def _sound_run(home: Path) -> tuple[Path, Path]:
    """(backbone, run) of one short training."""
    backbone = save_tiny(home / "tiny")
    runs.write_csv(home / "train.csv", 40)
    runs.write_csv(home / "test.csv", 12, seed=7)
    given = runs.settings(home, backbone, ["lora"], seeds=[0], num_train_epochs=1)
    runs.train(home / "run", given)
    return backbone, home / "run"


def _made(folder: Path) -> tuple[Path, Path, Path]:
    """(backbone, run, its one trial), to be damaged."""
    backbone, run = _sound_run(folder)
    return backbone, run, run / "trials" / "lora-s0"


def _reseal(trial: Path) -> None:
    from fleetune.artifact import layout
    from fleetune.durable import sha256

    path = trial / layout.RECORD
    record = json.loads(path.read_bytes())
    for name in (layout.CONFIG, layout.WEIGHTS):
        record["checksums"][name] = sha256(trial / name)
    path.write_text(json.dumps(layout.sealed(record)))


def _sealed_record(value: Any) -> Any:
    """A record with a checksum that fits, where it still is one that can have one."""
    from fleetune.artifact import layout

    try:
        return layout.sealed(value)
    except (AttributeError, ValueError, TypeError):
        return value


def _use(trial: Path, sites: Any) -> object:
    """What predict, evaluate and export do before they load the backbone's weights."""
    from fleetune.artifact.load import check_against, load_saved

    saved = load_saved(trial)
    return check_against(saved, sites(saved.record.num_labels))


def _sites_of(backbone: Path) -> Callable[[int], Any]:
    from fleetune.backbone.load import find_backbone
    from fleetune.backbone.sites import empty_model, site_map

    config = find_backbone(str(backbone)).config
    return cache(lambda labels: site_map(empty_model(config, min(labels, 1000))))


def _model_file(name: str) -> Callable[[Path], Case]:
    """A file of a saved model, damaged, with checksums that fit in half of the cases."""

    def make(folder: Path) -> Case:
        backbone, _, trial = _made(folder)
        sites, sound = _sites_of(backbone), (trial / name).read_bytes()
        record = (trial / "fleetune.json").read_bytes()

        def one(draws: Any) -> object:
            (trial / "fleetune.json").write_bytes(record)
            content = damaged(sound, draws, (b'"F8_E4M3"', b'"BOOL"', b'"I64"', b'"C64"', b'"F64"'))
            if name.endswith(".json") and draws.random() < 0.7:
                value = damaged_value(json.loads(sound), draws)
                content = json.dumps(
                    _sealed_record(value) if name == "fleetune.json" else value
                ).encode()
            elif name.endswith(".safetensors") and draws.random() < 0.5:
                content = _header_changed(sound, draws)
            (trial / name).write_bytes(content)
            if name != "fleetune.json" and draws.random() < 0.9:
                _reseal(trial)
            return _use(trial, sites)

        return one

    return make


def _header_changed(sound: bytes, draws: Any) -> bytes:
    """safetensors with other values in its header, and a length that fits."""
    length = int.from_bytes(sound[:8], "little")
    header = damaged_value(json.loads(sound[8 : 8 + length]), draws)
    if draws.random() < 0.3 and isinstance(header, dict) and header:
        place = header[draws.choice(list(header))]
        if isinstance(place, dict):
            place["dtype"] = draws.choice(
                ("F16", "BF16", "F8_E5M2", "F8_E4M3", "I32", "BOOL", "C64", "F4")
            )
    written = json.dumps(header).encode()
    return len(written).to_bytes(8, "little") + written + sound[8 + length :]


def _journal(folder: Path) -> Case:
    from fleetune.report.facts import run_facts
    from fleetune.report.tables import trials
    from fleetune.report.trial_tables import trials_csv
    from fleetune.report.winner import winner
    from fleetune.study import journal

    _, run, _ = _made(folder)
    path = run / journal.NAME
    sound = path.read_bytes()
    events = [json.loads(line)["event"] for line in sound.splitlines()]

    def one(draws: Any) -> object:
        if draws.random() < 0.5:
            path.write_bytes(damaged(sound, draws, (b'{"crc":"', b'"event":{"kind":')))
        else:
            path.write_bytes(b"".join(map(_sealed, damaged_value(events, draws))))
        if draws.random() < 0.2:
            opened = journal.Journal(path)
            try:
                opened.append("stopped", reason="x")
            finally:
                opened.close()
        facts = run_facts(run)
        return winner(facts), trials(facts), trials_csv(facts)

    return one


def _sealed(event: Any) -> bytes:
    body = json.dumps(event, separators=(",", ":"))
    return f'{{"crc":"{zlib.crc32(body.encode()):08x}","event":{body}}}\n'.encode()


def _run_file(name: str) -> Callable[[Path], Case]:
    """Another file of a run, as `fleetune show` reads it."""

    def make(folder: Path) -> Case:
        from fleetune.report.facts import run_facts
        from fleetune.report.study_tables import found
        from fleetune.report.winner import winner

        _, run, _ = _made(folder)
        sound = (run / name).read_bytes()

        def one(draws: Any) -> object:
            content = damaged(sound, draws)
            if name.endswith(".json") and draws.random() < 0.5:
                value = damaged_value(json.loads(sound), draws)
                content = json.dumps(
                    _sealed_record(value) if name == "fleetune.json" else value
                ).encode()
            (run / name).write_bytes(content)
            facts = run_facts(run)
            return winner(facts), found(facts)

        return one

    return make


def _manifest(folder: Path) -> Case:
    """A snapshot of a cohort: damaged, it is passed over or refused, and nothing outside is touched."""
    import torch

    from fleetune.study import checkpoints

    place, outside = folder / "in", folder / "outside.1.safetensors"
    sound = folder / "sound"
    sound.mkdir()
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(0)}
    for step in (3, 4):
        states = {"x": (tensors, {"step": step}), "y": (tensors, {})}
        checkpoints.write_all(sound, states, note={"stage": "s", "events": step})
    outside.write_bytes(b"not ours")

    def one(draws: Any) -> object:
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(sound, place)
        path = draws.choice(sorted(place.iterdir()))
        whole = path.read_bytes()
        content = damaged(whole, draws)
        if path.suffix == ".json" and draws.random() < 0.7:
            changed = damaged_value(json.loads(whole), draws)
            content = json.dumps(changed).replace("../../x", "../outside.1.safetensors").encode()
            if isinstance(changed, dict) and draws.random() < 0.7:
                content = _manifest_sealed(changed)
        path.write_bytes(content)
        if path.suffix != ".json" and draws.random() < 0.5:
            _seal_state(place, path.name)
        told = checkpoints.set_aside_damaged(place, 4, "a run")
        found = checkpoints.newest(place, "s")
        states = None if found is None else {name: found.state(name) for name in found.files}
        assert outside.read_bytes() == b"not ours", "a file outside was changed"
        assert all(p.parent == place for p in place.rglob("*")), "a folder was made"
        return told, states

    return one


def _seal_state(place: Path, name: str) -> None:
    """Make the sums of a damaged state fit."""
    from fleetune.durable import sha256

    for manifest in place.glob("*.json"):
        body = json.loads(manifest.read_bytes())
        for file in body["files"].values():
            if file["name"] == name:
                file["sha256"] = sha256(place / name)
        manifest.write_bytes(_manifest_sealed(body))


def _manifest_sealed(body: dict[str, Any]) -> bytes:
    """The manifest with a sha256 that fits, as far as JSON that is strict can say it."""
    from fleetune.durable import as_json

    body.pop("sha256", None)
    try:
        return as_json({**body, "sha256": hashlib.sha256(as_json(body)).hexdigest()})
    except (ValueError, UnicodeEncodeError):
        return json.dumps(body).encode()


def _backbone_file(name: str) -> Callable[[Path], Case]:
    def make(folder: Path) -> Case:
        from fleetune.backbone.load import find_backbone

        tiny = save_tiny(folder / "tiny")
        sound = (tiny / name).read_bytes()

        def one(draws: Any) -> object:
            content = damaged(sound, draws)
            if name.endswith(".json") and draws.random() < 0.7:
                value = damaged_value(json.loads(sound), draws)
                content = json.dumps(
                    _sealed_record(value) if name == "fleetune.json" else value
                ).encode()
            elif name.endswith(".safetensors") and draws.random() < 0.5:
                content = _header_changed(sound, draws)
            (tiny / name).write_bytes(content)
            return find_backbone(str(tiny)).classifier(2, ["a", "b"])

        return one

    return make


RUNS = (
    Reader("study file", _study),
    Reader("journal", _journal),
    Reader("manifest and checkpoints", _manifest),
    Reader("fleetune.json", _model_file("fleetune.json")),
    Reader("adapter_config.json", _model_file("adapter_config.json")),
    Reader("adapter_model.safetensors", _model_file("adapter_model.safetensors")),
    Reader("environment.json", _run_file("environment.json")),
    Reader("study.toml of a run", _run_file("study.toml")),
    Reader("predictions.parquet", _run_file("trials/lora-s0/predictions.parquet")),
    Reader("backbone config.json", _backbone_file("config.json")),
    Reader("backbone tokenizer.json", _backbone_file("tokenizer.json")),
    Reader("backbone model.safetensors", _backbone_file("model.safetensors")),
)
