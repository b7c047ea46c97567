"""`report_to`: what TensorBoard's own reader finds in the event files, and what trackio is told, against the journal."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import fleetune
from fleetune.cohort.events import EpochDone
from fleetune.errors import EnvironmentProblem, SettingsError
from fleetune.live import writers
from fleetune.live.writers import report_names
from fleetune.report.facts import run_facts
from fleetune.study.folder import LOGS
from fleetune.study.history import Event
from tests.runs import Made, run_cli

Points = dict[str, dict[str, list[tuple[int, float]]]]


def train(made: Made, folder: Path, **more: Any) -> fleetune.Result:
    given = {"methods": "head", "seeds": [0, 1], **more}
    return fleetune.train(
        made.folder / "train.csv", test_data=made.folder / "test.csv", output_dir=folder,
        backbone=made.backbone, dtype="float32", num_train_epochs=3, learning_rate=1e-2,
        per_device_train_batch_size=8, **given,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def event_files(folder: Path) -> Points:
    """Each trial's points by tag, read by TensorBoard's own reader from every event file of its folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: Points = {}
    for trial in sorted((folder / LOGS).iterdir()):
        reader = EventAccumulator(str(trial), size_guidance={"scalars": 0}).Reload()
        found[trial.name] = {
            tag: [(e.step, round(e.value, 5)) for e in reader.Scalars(tag)]
            for tag in reader.Tags()["scalars"]
        }
    return found


def of_facts(folder: Path, *, stamp: str = "") -> Points:
    """The same points as `show --json` gives them."""
    found: Points = {}
    events = [e for e in _events(folder) if e["kind"] == "epoch"]
    steps = {(e["id"], e["epoch"]): e["step"] for e in events}
    for trial in run_facts(folder)["trials"]:
        mine: dict[str, list[tuple[int, float]]] = {}
        for e in trial["epochs"]:
            step = steps[trial["id"], e["epoch"]]
            values = {"train/loss": e["loss"], "train/epoch": e["epoch"]}
            values |= {f"selection{stamp}/{k}": v for k, v in e["selection"].items()}
            for tag, value in values.items():
                mine.setdefault(tag, []).append((step, round(value, 5)))
        last = steps[trial["id"], len(trial["epochs"])]
        for metric, value in (trial["test"] or {}).items():
            if metric != "n":
                mine[f"test{stamp}/{metric}"] = [(last, round(value, 5))]
        found[trial["id"]] = mine
    return found


def _events(folder: Path) -> list[Event]:
    from fleetune.study import journal

    return list(journal.read(folder / journal.NAME))


def same(found: Points, wanted: Points) -> bool:
    """To five digits: event files hold float32."""
    near = pytest.approx
    return {t: set(p) for t, p in found.items()} == {t: set(p) for t, p in wanted.items()} and all(
        [s for s, _ in found[t][tag]] == [s for s, _ in points]
        and [v for _, v in found[t][tag]] == near([v for _, v in points], abs=2e-5)
        for t, tags in wanted.items()
        for tag, points in tags.items()
    )


def cut_after(epochs: int) -> Any:
    """A watch that interrupts the run after so many epochs of all trials."""
    seen = iter(range(epochs))

    def watch(event: Any) -> None:
        if isinstance(event, EpochDone) and next(seen, None) is None:
            raise KeyboardInterrupt

    return watch


def test_every_trial_has_its_own_points(made: Made, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(made, folder, methods=["head", "bitfit"], report_to="tensorboard")
    found = event_files(folder)
    assert set(found) == {"head-s0", "head-s1", "bitfit-s0", "bitfit-s1"}
    assert all(len(points["train/loss"]) == 3 for points in found.values())
    assert same(found, of_facts(folder))


def test_a_run_that_was_cut_has_each_point_once(made: Made, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for epochs in (1, 4):
        with pytest.raises(KeyboardInterrupt):
            train(made, folder, report_to=["tensorboard"], watch=cut_after(epochs))
    train(made, folder, report_to=["tensorboard"])
    assert same(event_files(folder), of_facts(folder))


def test_a_writer_that_comes_later_is_told_what_was(made: Made, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(made, folder)
    assert not (folder / LOGS).exists()
    train(made, folder, report_to="tensorboard")
    assert same(event_files(folder), of_facts(folder))


def test_optimistic_numbers_carry_their_stamp(made: Made, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(made, folder, protocol="paper", report_to="tensorboard", seeds=[0])
    found = event_files(folder)
    assert same(found, of_facts(folder, stamp="_optimistic"))
    assert not any(
        tag.startswith(("test/", "selection/")) for tags in found.values() for tag in tags
    )


def test_the_settings_stand_beside_the_scores(made: Made, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(made, tmp_path / "run", methods={"lora": {"r": 3}}, seeds=[4], report_to="tensorboard")
    reader = EventAccumulator(str(tmp_path / "run" / LOGS / "lora-s4")).Reload()
    content = reader.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    assert b"lora" in content and b"learning_rate" in content and b"lora_alpha" in content


def test_the_command_says_how_to_look(made: Made, tmp_path: Path) -> None:
    found = run_cli(
        *("train", made.folder / "train.csv", "--backbone", made.backbone, "--dtype", "float32"),
        *("--max-steps", 2, "--methods", "head", "--output-dir", tmp_path / "run"),
        *("--report-to", "tensorboard"),
    )
    assert found.code == 0
    assert f"tensorboard: tensorboard --logdir {tmp_path / 'run' / 'logs'}" in found.err


def test_a_study_file_may_name_a_writer(made: Made, tmp_path: Path) -> None:
    study = {
        "data": {"file": str(made.folder / "train.csv"), "test_file": str(made.folder / "test.csv")},
        "backbone": {"name": str(made.backbone), "dtype": "float32"},
        "training": {"num_train_epochs": 2, "per_device_train_batch_size": 8},
        "methods": [{"method": "head", "learning_rate": [1e-2, 1e-3]}],
        "search": {"trials_per_method": 2, "sampler": "grid"},
        "confirm": {"seeds": 2},
        "report_to": "tensorboard",
    }  # fmt: skip
    folder = tmp_path / "run"
    fleetune.study(study, output_dir=folder)
    assert same(event_files(folder), of_facts(folder))
    # It decides no number: the run goes on with another, and with none.
    assert "report_to" not in (folder / "study.toml").read_text("utf-8")
    fleetune.study({**study, "report_to": []}, output_dir=folder)


def test_an_unknown_writer_gets_the_nearest_name(tmp_path: Path) -> None:
    found = run_cli("train", "--task", "demo-sentiment", "--output-dir", tmp_path, "--report-to", "tensorbord")  # fmt: skip
    assert found.code == 2 and 'did you mean "tensorboard"?' in found.err
    with pytest.raises(SettingsError, match="choose from none, tensorboard, trackio"):
        report_names("x")


@pytest.mark.parametrize("name", list(writers.WRITERS))
def test_a_missing_package_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.setattr(writers, "find_spec", lambda package: None)
    with pytest.raises(EnvironmentProblem, match=rf"pip install 'fleetune\[{name}\]'"):
        report_names(name)
    run = tmp_path / "run"
    found = run_cli("train", "--task", "demo-sentiment", "--output-dir", run, "--report-to", name)
    assert found.code == 5 and not run.exists()


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (None, ()),
        ("none", ()),
        ([], ()),
        (["tensorboard,tensorboard"], ("tensorboard",)),
        ("tensorboard, none", ("tensorboard",)),
    ],
)
def test_names_are_read_as_transformers_reads_them(given: Any, names: tuple[str, ...]) -> None:
    assert report_names(given) == names


def test_nothing_is_imported_unless_asked(
    monkeypatch: pytest.MonkeyPatch, made: Made, tmp_path: Path
) -> None:
    def forbidden(name: str) -> Any:
        raise AssertionError(f"{name} was imported")

    monkeypatch.setattr(writers, "importlib", SimpleNamespace(import_module=forbidden))
    assert len(train(made, tmp_path / "run", seeds=[0]).trials) == 1


def test_a_writer_that_fails_leaves_the_run_alone(
    monkeypatch: pytest.MonkeyPatch, made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module("fleetune.live.to_tensorboard")

    def full(*given: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.TensorBoard, "add", full)
    found = train(made, tmp_path / "run", report_to="tensorboard")
    assert list(found.trials["status"]) == ["done", "done"]
    told = capsys.readouterr().err
    assert told.count("No space left on device") == 1 and "training goes on without it" in told


# --- trackio, by a module with its public calls


class FakeTrackio:
    """What `trackio` 0.43 offers of what is used here: init, finish, Run.log, Api.runs, Run.delete. One run is open at a time."""

    def __init__(self) -> None:
        self.store: dict[tuple[str, str], list[tuple[int, dict[str, float]]]] = {}
        self.configs: dict[str, dict[str, Any]] = {}
        self.open: tuple[str, str] | None = None
        self.fail_at: int | None = None

    def init(self, *, project: str, name: str, config: dict[str, Any], **more: Any) -> Any:
        assert self.open is None and (project, name) not in self.store
        assert more == {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
        print(f"* Trackio project initialized: {project}")
        self.open = (project, name)
        self.store[self.open] = []
        self.configs[name] = config
        return SimpleNamespace(log=self.log)

    def log(self, metrics: dict[str, float], step: int) -> None:
        assert self.open is not None
        if self.fail_at is not None and len(self.store[self.open]) == self.fail_at:
            self.open = None
            raise KeyboardInterrupt
        self.store[self.open].append((step, dict(metrics)))

    def finish(self) -> None:
        self.open = None

    def runs(self, project: str) -> list[Any]:
        if project not in {of for of, _ in self.store}:
            raise ValueError(f"Project '{project}' does not exist")
        return [
            SimpleNamespace(name=name, delete=lambda k=(of, name): self.store.pop(k))
            for of, name in list(self.store)
            if of == project
        ]

    def points(self) -> Points:
        """As those of event files."""
        found: Points = {}
        for (_, name), rows in self.store.items():
            for step, values in rows:
                for tag, value in values.items():
                    found.setdefault(name, {}).setdefault(tag, []).append((step, round(value, 5)))
        return found


@pytest.fixture
def trackio(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTrackio]:
    fake = FakeTrackio()
    module = ModuleType("trackio")
    vars(module).update(init=fake.init, finish=fake.finish, Api=lambda: fake)
    monkeypatch.setitem(sys.modules, "trackio", module)
    monkeypatch.delitem(sys.modules, "fleetune.live.to_trackio", raising=False)
    monkeypatch.setattr(writers, "find_spec", lambda package: object())
    yield fake
    sys.modules.pop("fleetune.live.to_trackio", None)


def test_trackio_gets_every_trial_as_a_run(
    trackio: FakeTrackio, made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    train(made, folder, report_to="trackio")
    assert same(trackio.points(), of_facts(folder))
    assert trackio.configs["head-s1"]["method"] == "head"
    assert {project for project, _ in trackio.store} == {next(iter(trackio.store))[0]}
    printed = capsys.readouterr()
    assert printed.out == "" and "trackio: trackio show --project run-" in printed.err


def test_trackio_has_each_point_once_after_cuts(
    trackio: FakeTrackio, made: Made, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(made, folder, report_to="trackio", watch=cut_after(3))
    trackio.fail_at = 1  # cut while a trial is being written
    with pytest.raises(KeyboardInterrupt):
        train(made, folder, report_to="trackio")
    trackio.fail_at = None
    for _ in range(2):
        train(made, folder, report_to="trackio")
    assert same(trackio.points(), of_facts(folder))


def test_two_folders_of_one_name_are_two_projects(
    trackio: FakeTrackio, made: Made, tmp_path: Path
) -> None:
    for place in ("a", "b"):
        train(made, tmp_path / place / "run", seeds=[0], report_to="trackio")
    assert len({project for project, _ in trackio.store}) == 2
