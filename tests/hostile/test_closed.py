"""Nothing gets in and nothing gets out: no unpickling, no foreign code, no connection for local work, no secret in any file."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fleetune.errors import FleetuneError
from tests import runs
from tests.artifact.test_refused import Bomb
from tests.backbone.hub import save_tiny
from tests.runs import Made, run_cli, settings

SECRET = "hf_CaNaRy0123456789abcdefghijklmnopqrstu"


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """All commands, in a process whose environment holds a token, with nothing that says offline."""
    folder = tmp_path_factory.mktemp("chain")
    save_tiny(folder / "tiny")
    runs.write_csv(folder / "train.csv", 40)
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))
    }
    environment |= {
        **{"HF_TOKEN": SECRET, "HUGGING_FACE_HUB_TOKEN": SECRET, "AWS_SECRET_ACCESS_KEY": SECRET},
        **{"HOME": str(folder / "home"), "FLEETUNE_CACHE": str(folder / "cache"), "WANDB_API_KEY": SECRET},
        **{"OMP_NUM_THREADS": "1", "COLUMNS": "200"},
    }  # fmt: skip
    (folder / "home").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "tests.hostile.chain", str(folder)],
        **{"env": environment, "capture_output": True, "text": True, "timeout": 600},
    )
    assert done.returncode == 0, done.stderr
    (folder / "streams.txt").write_text(done.stderr)
    return folder, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_every_command_of_the_chain_did_its_work(chain: tuple[Path, dict]) -> None:
    wrong = {name: code for name, code in chain[1]["codes"].items() if code}
    assert wrong == {}, (chain[0] / "said.txt").read_text()[-2000:]
    assert len(chain[1]["codes"]) == 16


@pytest.mark.slow
def test_nothing_is_unpickled(chain: tuple[Path, dict]) -> None:
    assert chain[1]["events"].get("pickle.find_class", []) == []
    assert chain[1]["events"].get("shutil.unpack_archive", []) == []


@pytest.mark.slow
def test_nothing_is_connected_to(chain: tuple[Path, dict]) -> None:
    names = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")
    assert {name: chain[1]["events"].get(name, []) for name in names} == {
        name: [] for name in names
    }


@pytest.mark.slow
def test_nothing_is_started_but_git_and_a_list_of_fonts(chain: tuple[Path, dict]) -> None:
    """`environment.json` holds the commit, and matplotlib asks once which fonts there are."""
    events = chain[1]["events"]
    assert events.get("os.system", []) == events.get("os.exec", []) == []
    started = events.get("subprocess.Popen", [])
    assert [found for found in started if not found.startswith(("('git'", "('fc-list'"))] == []


@pytest.mark.slow
def test_no_file_holds_a_secret(chain: tuple[Path, dict]) -> None:
    files = [p for p in chain[0].rglob("*") if p.is_file()]
    assert len(files) > 40 and (chain[0] / "run/report.html").is_file()
    assert [p for p in files if SECRET.encode() in p.read_bytes()] == []
    assert [p for p in files if SECRET in p.name] == []


# --- pickles


def _torch_zip(path: Path, content: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")


def _array(path: Path, bomb: Bomb) -> None:
    with path.open("wb") as file:
        np.save(file, np.array([bomb], dtype=object), allow_pickle=True)


def _plain(protocol: int) -> Callable[[Path, Bomb], None]:
    return lambda path, bomb: path.write_bytes(pickle.dumps(bomb, protocol))


def _zipped(path: Path, bomb: Bomb) -> None:
    _torch_zip(path, pickle.dumps(bomb, 2))


# (file name, how it is made); each is the only file of weights of a backbone, of a trial, and is given alone as a model.
PICKLES: tuple[tuple[str, Callable[[Path, Bomb], None]], ...] = (
    ("pytorch_model.bin", _plain(2)),
    ("pytorch_model.bin", _zipped),
    ("adapter_model.bin", _plain(5)),
    ("model.pt", _zipped),
    ("model.pth", _plain(4)),
    ("model.pkl", _plain(0)),
    ("model.ckpt", _zipped),
    ("weights.npy", _array),
    ("rng_state.pth", _zipped),
    ("model.safetensors", _plain(5)),
    ("adapter_model.safetensors", _zipped),
    ("training_args.bin", _plain(3)),
)


@pytest.mark.parametrize("number", range(len(PICKLES)))
def test_malicious_pickles_are_refused_and_never_run(
    made: Made, tmp_path: Path, number: int
) -> None:
    name, make = PICKLES[number]
    bomb = Bomb(tmp_path / "mark")
    backbone = Path(shutil.copytree(made.backbone, tmp_path / "backbone"))
    trial = Path(shutil.copytree(made.run / "trials/lora-s0", tmp_path / "trial"))
    (backbone / "model.safetensors").unlink()
    (trial / "adapter_model.safetensors").unlink()
    for folder in (backbone, trial):
        make(folder / name, bomb)
    if name.startswith("adapter_model.s"):
        shutil.copy(trial / name, backbone / "model.safetensors")
        _reseal(trial)
    elif name.endswith(".safetensors"):
        shutil.copy(backbone / name, trial / "adapter_model.safetensors")
        _reseal(trial)
    train = (
        "train",
        "--data",
        made.folder / "train.csv",
        "--output-dir",
        tmp_path / "run",
        "--backbone",
    )
    for words in (
        (*train, backbone),
        (*train, backbone / name),
        ("predict", trial, "--text", "w1"),
        ("predict", trial / name, "--text", "w1"),
        ("export", trial, "--output", tmp_path / "out"),
    ):
        found = run_cli(*words)
        assert found.code == 6 and "pickle is never read" in found.err, (words, found)
    assert not (tmp_path / "mark").exists() and not (tmp_path / "run").exists()


def _reseal(trial: Path) -> None:
    from fleetune.artifact import layout
    from fleetune.durable import sha256

    record = json.loads((trial / "fleetune.json").read_bytes())
    record["checksums"]["adapter_model.safetensors"] = sha256(trial / "adapter_model.safetensors")
    (trial / "fleetune.json").write_text(json.dumps(layout.sealed(record)))


def test_pickles_beside_a_run_are_not_looked_at(made: Made, tmp_path: Path) -> None:
    """What Trainer would read on resuming lies in checkpoints/, and a resume is the same without it."""
    bomb = Bomb(tmp_path / "mark")
    given = settings(made.folder, made.backbone, ["head"], seeds=[0], num_train_epochs=1)
    runs.train(tmp_path / "run", given)
    for name in ("rng_state.pth", "optimizer.pt", "scheduler.pt", "training_args.bin"):
        _zipped(tmp_path / "run/checkpoints" / name, bomb)
        _zipped(tmp_path / "run/trials/head-s0" / name, bomb)
    runs.train(tmp_path / "run", given)
    assert run_cli("predict", tmp_path / "run", "--text", "w1").code == 0
    assert not (tmp_path / "mark").exists()


# --- code that a model brings along

EVIL = "from pathlib import Path\nPath({mark!r}).touch()\nclass Thing: pass\nConfig = Model = Tokenizer = Thing\n"


def _edit(file: Path, **changes: object) -> None:
    held = json.loads(file.read_bytes()) if file.exists() else {}
    file.write_text(json.dumps({**held, **changes}))


def _known_config(folder: Path) -> None:
    names = ("AutoConfig", "AutoModel", "AutoModelForSequenceClassification")
    _edit(folder / "config.json", auto_map={name: "evil.Thing" for name in names})


def _unknown_config(folder: Path) -> None:
    _edit(folder / "config.json", model_type="evil", auto_map={"AutoConfig": "evil.Config"})


def _tokenizer(folder: Path) -> None:
    changes = {
        "tokenizer_class": "Thing",
        "auto_map": {"AutoTokenizer": ["evil.Thing", "evil.Thing"]},
    }
    _edit(folder / "tokenizer_config.json", **changes)


def _from_the_hub(folder: Path) -> None:
    _edit(
        folder / "config.json",
        auto_map={"AutoModelForSequenceClassification": "someone/evil--evil.Thing"},
    )


def _attention(folder: Path) -> None:
    _edit(folder / "config.json", _attn_implementation="someone/evil", attn_implementation="someone/evil",
          custom_pipelines={"text-classification": {"impl": "evil.Thing"}}, architectures=["evil.Thing"])  # fmt: skip


CODE = (_known_config, _unknown_config, _tokenizer, _from_the_hub, _attention)


@pytest.mark.parametrize("change", CODE)
def test_code_of_a_model_folder_never_runs(made: Made, tmp_path: Path, change, monkeypatch) -> None:
    """Refused, or read as what transformers itself knows; either way its files are not executed."""
    from fleetune.backbone.load import find_backbone

    tiny = Path(shutil.copytree(made.backbone, tmp_path / "tiny"))
    change(tiny)
    for name in ("evil.py", "__init__.py", "setup.py", "conftest.py", "sitecustomize.py"):
        (tiny / name).write_text(EVIL.format(mark=str(tmp_path / "mark")))
    monkeypatch.chdir(tiny)  # nor is a module found because the command runs beside it
    monkeypatch.setenv("HF_HUB_TRUST_REMOTE_CODE", "1")
    try:
        find_backbone(str(tiny)).classifier(2, ["a", "b"])
    except FleetuneError as error:
        assert error.exit_code in (2, 4, 6)
    assert not (tmp_path / "mark").exists()
