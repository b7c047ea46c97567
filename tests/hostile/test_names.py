"""A name leads nowhere else, whoever gave it: a task, a trial of a journal, a file of a manifest, a path of the command line."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from fleetune.artifact import layout
from fleetune.artifact.load import load_saved
from fleetune.errors import DataError, FleetuneError, RefusedError
from fleetune.report.facts import run_facts
from fleetune.study import checkpoints, journal
from fleetune.study.prepare import DataSettings, prepare
from tests import runs
from tests.hostile.fuzz_runs import _manifest_sealed, _sealed
from tests.hostile.names import NAMES
from tests.runs import Made, run_cli, settings, tree

PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")


def test_there_are_fifty_names() -> None:
    assert len(set(NAMES)) == len(NAMES) >= 50


def test_trials_of_tasks_with_evil_names_have_plain_names_of_their_own(made: Made) -> None:
    """Fifty tasks in one study: every trial's folder is a plain name below trials/, and no two are the same."""
    given = settings(made.folder, made.backbone, ["head"], seeds=[0])
    data = [DataSettings(task=name, file=str(made.folder / "train.csv")) for name in NAMES if name]
    prepared = prepare(replace(given, data=data[0], more_data=tuple(data[1:])), cache=False)
    idents = [trial.spec.id for trial in prepared.inputs]
    assert all(PLAIN.fullmatch(ident) and ident not in (".", "..") for ident in idents)
    assert len({ident.casefold() for ident in idents}) == len(idents) == len(data)


def test_a_file_with_an_evil_name_trains_below_the_run(made: Made, tmp_path: Path) -> None:
    """The task is called by the file; the run, its model and its report stay where they were asked for."""
    home = tmp_path / "home"
    home.mkdir()
    for i, stem in enumerate(("..%2f..%2fx", "~", "\x1b[2Jx\nfleetune: saved", "\u202efdp")):
        rows = home / f"{stem}.csv"
        shutil.copy(made.folder / "train.csv", rows)
        found = run_cli(
            *("train", rows, "--backbone", made.backbone, "--method", "head", "--max-steps", 1),
            *("--dtype", "float32", "--output-dir", home / f"run{i}"),
        )
        assert found.code == 0, found.err
        assert "\x1b" not in found.err + found.out and "\nfleetune: saved" not in found.err
        assert [p.name for p in (home / f"run{i}/trials").iterdir()] == ["head-s42"]
    assert [p.name for p in tmp_path.iterdir()] == ["home"] and len(list(home.iterdir())) == 8


def test_a_journal_names_no_folder_outside_its_trials(made: Made, tmp_path: Path) -> None:
    run = Path(shutil.copytree(made.run, tmp_path / "run"))
    path = run / journal.NAME
    events = [json.loads(line)["event"] for line in path.read_bytes().splitlines()]
    shutil.copytree(
        made.run / "trials/lora-s0", tmp_path / "x"
    )  # where "../../x" leads from trials/
    for name in NAMES:
        if PLAIN.fullmatch(name):
            continue
        renamed = json.loads(json.dumps(events).replace('"lora-s0"', json.dumps(name)))
        path.write_bytes(b"".join(map(_sealed, renamed)))
        with pytest.raises(DataError, match=r"a trial's name|trials' names"):
            run_facts(run)


def test_a_record_and_a_snapshot_name_no_file_outside_their_folder(
    made: Made, tmp_path: Path
) -> None:
    trial = Path(shutil.copytree(made.run / "trials/lora-s0", tmp_path / "trial"))
    record = json.loads((trial / "fleetune.json").read_bytes())
    place = tmp_path / "checkpoints"
    place.mkdir()
    (tmp_path / "x").write_text("not ours")
    (tmp_path / "x.1.safetensors").write_text("not ours")
    before = tree(tmp_path)
    for name in NAMES:
        changed = layout.sealed({**record, "checksums": {**record["checksums"], name: "0"}})
        (trial / "fleetune.json").write_text(json.dumps(changed))
        if not {"/", "\0"} & set(name) and name not in ("", ".", "..") and len(name) <= 60:
            load_saved(trial)  # a file of this folder that nobody needs may be missing
        else:
            with pytest.raises((RefusedError, DataError)):
                load_saved(trial)
        for file in (name, f"{name}.1.safetensors"):
            body = {
                "number": 1,
                "files": {"t": {"name": file, "sha256": "0"}},
                "note": {"stage": "s"},
            }
            (place / "snapshot-1.json").write_bytes(_manifest_sealed(body))
            assert checkpoints.newest(place, "s") is None
            checkpoints.set_aside_damaged(place, 0, "a run")
            for left in place.iterdir():
                left.unlink()
    (trial / "fleetune.json").write_text(json.dumps(record))
    after = tree(tmp_path)
    after.pop("trial/fleetune.json"), before.pop("trial/fleetune.json")
    assert after == before


@pytest.mark.slow
def test_a_path_is_taken_as_it_is_written(made: Made, tmp_path: Path, monkeypatch) -> None:
    """`predict --output NAME` writes the one file that the system calls by this name, or says why not; nothing expands."""
    work = tmp_path / "a" / "work"
    home = tmp_path / "home"
    for folder in (work, home):
        folder.mkdir(parents=True)
    monkeypatch.chdir(work)
    monkeypatch.setenv("HOME", str(home))
    trial = made.run / "trials/head-s0"
    for name in NAMES:
        if name.startswith(("/", "-")) or "\0" in name or name == "":
            continue  # elsewhere on purpose; an option; no argument of a process holds a NUL
        place = os.path.abspath(name)
        if not Path(place).is_relative_to(tmp_path):
            continue
        found = run_cli("predict", trial, "--text", "w1", "--output", name)
        written = {p for p in tmp_path.rglob("*") if p.is_file()}
        assert written == ({Path(place)} if found.code == 0 else set()), (name, written, found.err)
        assert found.code in (0, 5, 6) and "Traceback" not in found.err, (name, found)
        for file in written:
            file.unlink()
    assert list(home.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["trials", "checkpoints", "journal.jsonl", "study.toml", ".lock", "trials/head-s0"]
)
def test_a_run_with_a_link_in_it_is_not_written_to(made: Made, tmp_path: Path, name: str) -> None:
    """Who hands over a run may not choose by a link what going on with it overwrites."""
    run = Path(shutil.copytree(made.run, tmp_path / "run"))
    outside = tmp_path / "outside"
    (run / name).rename(outside)
    (run / name).symlink_to(outside)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(RefusedError, match="is a link"):
        runs.train(run, settings(made.folder, made.backbone))
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_logs_that_lie_elsewhere_are_not_written_to(made: Made, tmp_path: Path) -> None:
    run = Path(shutil.copytree(made.run, tmp_path / "run"))
    (tmp_path / "outside").mkdir()
    (run / "logs").symlink_to(tmp_path / "outside")
    with pytest.raises(RefusedError, match="is a link"):
        runs.train(run, settings(made.folder, made.backbone))


@pytest.mark.parametrize(
    "name",
    ["study.toml", "environment.json", "journal.jsonl", "trials/head-s0/predictions.parquet"],
)
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_has_no_end_is_not_read(made: Made, tmp_path: Path, name: str, kind: str) -> None:
    """A pipe would be waited for, and a device read, for ever."""
    run = Path(shutil.copytree(made.run, tmp_path / "run"))
    (run / name).unlink()
    if kind == "pipe":
        os.mkfifo(run / name)
    else:
        (run / name).symlink_to("/dev/zero")
    found = run_cli("show", run)
    assert "Traceback" not in found.err
    if "predictions" in name:
        assert found.code == 0 and "predictions.parquet is damaged" in found.out
    else:
        assert found.code in (2, 4, 6) and name in found.err


@pytest.mark.parametrize("time", [1e18, 2.0**52, 1e308, -1.0])
def test_a_journal_of_another_age_is_damaged(made: Made, tmp_path: Path, time: float) -> None:
    run = Path(shutil.copytree(made.run, tmp_path / "run"))
    event = dict(journal.read(run / journal.NAME)[-1]) | {"time": time}
    with (run / journal.NAME).open("ab") as file:
        file.write(journal._line(event))
    found = run_cli("report", run)
    assert found.code == 4 and "`time` must be seconds since 1970" in found.err


def test_files_that_settings_name_with_nul_are_refused(made: Made, tmp_path: Path) -> None:
    """TOML can hold what no argument of a process can."""
    for table in (
        {"data": {"file": "a\0b.csv"}},
        {"backbone": {"name": "./a\0b"}},
        {"data": {"file": "x" * 5000 + ".csv"}},
    ):
        given = {
            "data": {"file": str(made.folder / "train.csv"), **table.get("data", {})},
            "backbone": {"name": str(made.backbone), **table.get("backbone", {})},
            "methods": [{"method": "head"}],
        }
        from fleetune.study.file import parse_study

        with pytest.raises(FleetuneError):
            prepare(parse_study(given), cache=False)
