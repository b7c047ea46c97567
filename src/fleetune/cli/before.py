"""What a command says of a run before it trains: guesses, what spoils scores, and what it would cost."""

from __future__ import annotations

from typing import Any

from fleetune.cli.options import dump, out, say, shortened

# A guess is checked at a glance.
SHOWN_CLASSES = 5


def tell_guesses(
    prepared: Any, settings: Any, text: str = "--text-column", label: str = "--label-column"
) -> None:
    """Which columns of own files were guessed; text, label: the flags, or keys of a study file, that name others."""
    what = "flags" if text.startswith("--") else "keys"
    for task, given in zip(prepared.tasks, settings.all_data, strict=True):
        guessed = _guessed(task.dataset.task, given, text, label)
        if guessed:
            of = f" for {task.dataset.task.name}" if len(prepared.tasks) > 1 else ""
            say(f"guessed{of}: {'; '.join(guessed)}; name others with these {what}")


def tell_lengths(prepared: Any, settings: Any, place: str = "--max-length") -> None:
    """Whether rows were cut, and whether the length that was asked for is more than there is; place: where it is given."""
    from fleetune.study.notes import on_lengths

    for note in on_lengths(prepared, settings, place):
        say(note)


def tell_notes(dataset: Any, of: str = "") -> None:
    """What is to be known of the rows before their scores are believed; of: whose they are, where there are several."""
    from fleetune.data.notes import few_rows, notes_on, of_f1

    of_label = of_f1(dataset.task.metrics, dataset.task.label_names)
    for note in (*notes_on(dataset), *few_rows(dataset), *of_label):
        say(f"note: {of}{note}")


def tell_imitated(dtype: str, device: str) -> None:
    """That the dtype which was asked for is slow here."""
    from fleetune.study.notes import on_dtype

    for note in on_dtype(dtype, device, "--dtype auto"):
        say(f"note: {note}")


def tell_plan(prepared: Any, device: str, as_json: bool) -> None:
    """Trials, cohorts, parameters, and estimates of time, memory and disk."""
    from fleetune.report.study_tables import planned
    from fleetune.study.estimate import estimate

    found = estimate(prepared, device)
    if as_json:
        dump(found)
        return
    out(planned(found))
    for line in found["assumptions"]:
        say(line)


def _guessed(task: Any, given: Any, text: str, label: str) -> list[str]:
    """The guesses about one task's columns, each with what changes it."""
    if given.file is None:
        return []
    guessed: list[str] = []
    if not given.text_columns:
        guessed.append(f"text = {' + '.join(task.columns)} ({text})")
    if not given.label_column:
        classes = ", ".join(shortened(name) for name in task.label_names[:SHOWN_CLASSES])
        more = "" if len(task.label_names) <= SHOWN_CLASSES else ", ..."
        told = f"with {len(task.label_names)} classes, {classes}{more}"
        guessed.append(f"label = {task.label_column} {told} ({label})")
    return guessed
