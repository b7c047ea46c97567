"""Fleetune from Python: `train`, `study`, `load` and `compare`, the commands of the same names without the terminal.

Each goes the way of its command: the same settings, the same run folder, the same facts. So a run that Python began can be
looked at with `fleetune show`, and the same call again goes on where the last one stopped.

Errors are those of errors.py: SettingsError, DataError, EnvironmentProblem, RefusedError. On stderr stands what was found damaged
or changed in a run's folder and what a first Ctrl-C does, and else nothing unless `progress` asks for plain lines; `watch` is
told every event of the training (cohort/events.py). What is heavy is imported by the functions.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from fleetune.errors import DataError, SettingsError, did_you_mean

if TYPE_CHECKING:
    import pandas as pd

    from fleetune.cohort.events import Event
    from fleetune.report.compared import Side
    from fleetune.serve.predictor import Predictor
    from fleetune.stats.compare import Comparison
    from fleetune.stats.models import ModelComparison
    from fleetune.study.settings import Settings

Place = str | os.PathLike[str]
Rows: TypeAlias = "pd.DataFrame | Sequence[Mapping[str, Any]]"
"""A text or two and a label each."""
Methods = str | Sequence[str] | Mapping[str, Mapping[str, Any]]
"""One name, several, or names with their settings: {"lora": {"r": 4, "learning_rate": 1e-3}, "bitfit": {}}. One method more than
once: {"small": {"method": "lora", "r": 2}, "large": {"method": "lora", "r": 32}}."""
Names = str | Sequence[str] | None


class Result:
    """A run and what was found, as it stood when first asked; a run that is there already is read by its folder.

    The tables are pandas frames of the facts that `fleetune show RUN --json` prints.
    """

    def __init__(self, folder: Place) -> None:
        self.folder = Path(folder)

    def __repr__(self) -> str:
        return f"Result({str(self.folder)!r})"

    @cached_property
    def facts(self) -> dict[str, Any]:
        """All facts as one dictionary; SettingsError where the folder holds no run."""
        from fleetune.report.facts import run_facts

        return run_facts(self.folder)

    @cached_property
    def trials(self) -> pd.DataFrame:
        """One row a trial: how it ended, its best epoch, its scores on selection and test rows, its settings."""
        from fleetune.report import frames

        return frames.trials(self.facts)

    @cached_property
    def estimates(self) -> pd.DataFrame:
        """One row a method, test set and metric: value with its 95 % interval, n, seeds, parameters, seconds."""
        from fleetune.report import frames

        return frames.estimates(self.facts)

    @cached_property
    def verdicts(self) -> pd.DataFrame:
        """One row a comparison with the study's reference, or the first method; `compare` does other pairs."""
        from fleetune.report import frames

        return frames.verdicts(self.facts)

    @property
    def winner(self) -> Path | None:
        """The folder of the model to use, chosen on selection rows; None where no trial has ended."""
        from fleetune.report.winner import winner
        from fleetune.study.folder import trial_folder

        best = winner(self.facts)
        return None if best is None else trial_folder(self.folder, best["id"])

    def __getitem__(self, name: str) -> Trainings:
        """All trainings of one method, by its name or, where that is not enough, by its row in the table ("lora r=8")."""
        named = _trainings(self)
        exact = [t for label, t in named.items() if label == name]
        found = exact or [t for t in named.values() if t.method == name]
        if len(found) != 1:
            what = "stands for several" if found else "is not there"
            raise SettingsError(
                str(self.folder),
                [f'"{name}" {what}{did_you_mean(name, named) if not found else ""}; there are: {", ".join(named)}'],
            )  # fmt: skip
        return found[0]

    def report(self, output: Place | None = None) -> Path:
        """Write the HTML report, by default as report.html in the run's folder; its path."""
        from fleetune.report.page import write_report

        return write_report(self.folder, None if output is None else Path(output))

    def __str__(self) -> str:
        """The tables that the command prints: estimates, and of a study what was chosen, and verdicts."""
        from fleetune.report.study_tables import found

        return found(self.facts)


@dataclass(frozen=True, slots=True)
class Trainings:
    """The trainings of one method with one setting: what says something about a method, and not about one file."""

    name: str
    method: str
    folders: tuple[Path, ...]
    """The saved model of each seed that did not fail."""
    failed: int = 0
    """Trainings that failed; in a comparison each counts as one that learned nothing (docs/statistics.md)."""


def train(
    data: Place | Rows,
    methods: Methods = "lora",
    *,
    output_dir: Place,
    seeds: int | Sequence[int] = 1,
    seed: int | None = None,
    test_data: Place | Rows | None = None,
    data_dir: Place | None = None,
    text_column: str | Sequence[str] | None = None,
    label_column: str | None = None,
    groups_column: str | None = None,
    max_train_samples: int | None = None,
    protocol: str = "holdout",
    backbone: Place = "minilm",
    revision: str | None = None,
    dtype: str = "auto",
    max_length: int | None = None,
    device: str = "cpu",
    report_to: Names = None,
    save_steps: int | None = None,
    progress: bool = False,
    watch: Callable[[Event], None] | None = None,
    **training: Any,
) -> Result:
    """Train one setting of each method with any number of seeds, and measure it: `fleetune train`.

    data: a task's name, a file, a pandas frame or a list of dicts; columns that are not named are guessed. Rows from memory
    are kept in the run's folder. methods: one name, several, or names with their settings (`Methods`). output_dir: the run's
    folder; where it holds this same run, that goes on. seeds: how many, from `seed` (42) on, or the seeds themselves.
    test_data: as data, for the rows that the scores are about; without it a tenth of own rows. data_dir: the folder of a named
    task. text_column (two for pairs), label_column, groups_column (rows of one group are never divided): of own rows.
    max_train_samples: rows of train to take at most, a stratified draw. protocol: "holdout" or "paper" (docs/statistics.md).
    backbone, revision: "minilm", a folder, or a hub id and its commit. dtype: "auto", "bfloat16", "float32" or "float64", of the
    encoder. max_length: in tokens. device: "cpu" or "cuda". report_to: "tensorboard" or "trackio". save_steps: optimizer
    steps of a trial between snapshots, besides those by time. progress: plain lines on stderr. watch: is told every event.
    training: settings for all methods under the names of `transformers.TrainingArguments` (docs/settings.md).

    Raises SettingsError for what cannot be trained as asked, DataError for rows that cannot be used, EnvironmentProblem for what
    this machine lacks, RefusedError where the folder holds another run. A trial that fails raises nothing; its record says why.
    """
    from fleetune.study.file import method_entries
    from fleetune.study.fixed import fixed_settings
    from fleetune.study.from_python import columns, method_tables, rows_from
    from fleetune.study.settings import DataSettings

    entries, problems = method_entries(method_tables(methods))
    if problems:
        raise SettingsError("methods", problems)
    folder, rows = Path(output_dir), dict[str, bytes]()
    task, file, test_file = rows_from(data, test_data, folder, rows)
    settings = fixed_settings(
        DataSettings(
            task=task,
            data_dir=None if data_dir is None else str(data_dir),
            file=file,
            test_file=test_file,
            text_columns=columns(text_column),
            label_column=label_column,
            groups_column=groups_column,
            max_train_samples=max_train_samples,
            protocol=protocol,
        ),
        entries,
        seeds=seeds,
        seed=seed,
        training=training,
        output_dir=folder,
        backbone=str(backbone),
        revision=revision,
        dtype=dtype,
        max_length=max_length,
    )
    return _run(
        settings, folder, device, report_to, save_steps, rows, progress=progress, watch=watch
    )


def study(
    study: Place | Mapping[str, Any],
    *,
    output_dir: Place,
    overrides: Sequence[str] = (),
    device: str = "cpu",
    report_to: Names = None,
    save_steps: int | None = None,
    progress: bool = False,
    watch: Callable[[Event], None] | None = None,
) -> Result:
    """Search each method with an equal budget, confirm with fresh seeds, and say what differs: `fleetune study`.

    study: a study file, or its content as a dict of tables (docs/studies.md), in which paths, tuples and numpy's numbers may
    stand. overrides: "training.num_train_epochs=5", as --set of the command; for files. All else, and what is raised, as of
    `train`.
    """
    from fleetune.study.file import parse_study, read_study
    from fleetune.study.folder import has_begun
    from fleetune.study.from_python import plain, shown

    begun = has_begun(Path(output_dir))
    if isinstance(study, Mapping):
        if overrides:
            raise SettingsError(
                "study", ["overrides are for a file; change the dict, or leave them out"]
            )
        settings = parse_study(plain(study), begun=begun)
    elif not isinstance(cast(Any, study), str | os.PathLike):
        rule = "must be a study file or a dict of its tables"
        raise SettingsError("study", [f"{rule}, but got {shown(study)}"])
    else:
        settings = read_study(Path(study), overrides, begun=begun)
    return _run(
        settings, Path(output_dir), device, report_to, save_steps, progress=progress, watch=watch
    )


def load(model: Place | Result, *, dtype: str | None = None, device: str = "cpu") -> Predictor:
    """A saved model, ready to predict.

    model: a trial's folder, an exported one, or a run, which stands for its winner. dtype: of the encoder, by default that of the
    training. Raises what `Predictor` does.
    """
    from fleetune.serve.predictor import Predictor

    return Predictor(_place(model), dtype=dtype, device=device)


def compare(
    a: Place | Result | Trainings, b: Place | Result | Trainings, *, margin: float = 0.01
) -> Comparison | ModelComparison:
    """Is B better than A, judged by what both predicted on the same test rows?

    a, b: all trainings of a method (`found["lora"]`); a run, which stands for all trainings of its winner's method; or a
    trial's folder. By the main metric of their task: two trials' folders as files (stats/models.py), everything else as methods
    (stats/compare.py). margin: differences below it do not matter.
    The record is stamped optimistic where a side chose its epoch on these same rows, which its files say.
    Misleads: rows are known by number and label alone; whether two test files with the same labels hold the same texts is
    not seen. An optimistic side is ahead of one that is not by some luck alone. Raises SettingsError for what has no
    predictions, DataError where the test rows differ.
    """
    from fleetune.report.compared import compare_sides

    return compare_sides(_side(a), _side(b), margin=margin)


# --- one way for `train` and `study`


def _run(
    settings: Settings,
    folder: Path,
    device: str,
    report_to: Names,
    save_steps: int | None,
    rows: Mapping[str, bytes] | None = None,
    **told: Any,
) -> Result:
    """rows: from memory, to be kept in the run's folder."""
    from fleetune.data.notes import notes_on
    from fleetune.live.follow import in_python
    from fleetune.live.writers import report_names
    from fleetune.study.given import kept_rows
    from fleetune.study.notes import on_dtype, on_lengths
    from fleetune.study.prepare import check_compute, prepare
    from fleetune.study.run import Run
    from fleetune.study.saving import check_save_steps

    check_compute(None, device)
    check_save_steps(save_steps)
    writers = report_names(settings.report_to if report_to is None else report_to)
    with kept_rows(folder, rows or {}) as held:
        prepared = prepare(settings, device=device, run=folder)
        for task in prepared.tasks:
            of = f"{task.dataset.task.name}: " if len(prepared.tasks) > 1 else ""
            for note in notes_on(task.dataset):
                warnings.warn(of + note, stacklevel=_level_of_caller())
        for note in (
            *on_lengths(prepared, settings, "max_length"),
            *on_dtype(prepared.dtype, device, 'dtype="auto"'),
        ):
            warnings.warn(note, stacklevel=_level_of_caller())
        with in_python(prepared, folder, device, report_to=writers, **told) as watch:
            Run(folder, prepared, device, save_steps=save_steps).train(watch, held=held)
    return Result(folder)


def _level_of_caller() -> int:
    """Of `warnings.warn` in the function that asks: the first frame that is not Fleetune's."""
    frame, level = sys._getframe(1), 1
    while (
        frame.f_back
        and frame.f_globals.get("__name__", "").partition(".")[0] == __name__.partition(".")[0]
    ):
        frame, level = frame.f_back, level + 1
    return level


def _place(model: Any) -> Path:
    """A run's folder or a model's; SettingsError for what names none."""
    if isinstance(model, Result):
        return model.folder
    if isinstance(model, Trainings):
        several = f"{model.name} has {len(model.folders)} trainings, and a model is one of them"
        raise SettingsError("model", [f"{several}; give one of .folders"])
    if not isinstance(model, str | os.PathLike):
        from fleetune.study.from_python import shown

        raise SettingsError("model", [f"must be a folder or a Result, but got {shown(model)}"])
    return Path(model)


# --- what is compared


def _trainings(result: Result) -> dict[str, Trainings]:
    """By the name of each row of the table; with several tasks the task stands before it."""
    from fleetune.report.tables import labels, main_estimates
    from fleetune.study.folder import trial_folder

    facts, found = result.facts, dict[str, Trainings]()
    tasks = list(dict.fromkeys(e["task"] for e in facts["estimates"]))
    for task in tasks:
        main = main_estimates(facts, task)
        for label, e in zip(labels(main), main, strict=True):
            name = f"{task}: {label}" if len(tasks) > 1 else label
            folders = tuple(trial_folder(result.folder, ident) for ident in e["trials"])
            found[name] = Trainings(name, e["method"], folders, e["failed_seeds"])
    return found


def _side(given: Place | Result | Trainings) -> Side:
    """Several trainings of a method, or one saved model."""
    from fleetune.artifact import layout
    from fleetune.report.compared import Side
    from fleetune.serve.predictor import model_folder

    if isinstance(given, Trainings):
        return Side(given.folders, given.failed)
    folder = model_folder(_place(given))
    if not (folder / layout.PREDICTIONS).is_file():
        raise SettingsError(
            "compare",
            [f"{folder}: keeps no predictions ({layout.PREDICTIONS}); give a trial's folder, or a run"],
        )  # fmt: skip
    if folder == _place(given):
        return Side((folder,), a_file=True)
    result = Result(_place(given))
    for trainings in _trainings(result).values():
        if folder in trainings.folders:
            return _side(trainings)
    from fleetune.report.tables import lost_told

    raise DataError(str(result.folder), [lost_told(record) for record in result.facts["lost"]])
