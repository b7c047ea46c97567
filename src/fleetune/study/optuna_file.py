"""A study's search as an Optuna database, so that optuna-dashboard and Optuna's own plots open it.

One Optuna study for each task and method, named "task/method", in one SQLite file. Scores keep the metric's own direction.
A setting under protocol "cv" is one trial there, with the mean score of its folds. User attributes name our trials. The file
is a copy for looking at: nothing of Fleetune reads it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fleetune.durable import new_file
from fleetune.errors import RefusedError, SettingsError
from fleetune.study import journal
from fleetune.study.file import parse_study
from fleetune.study.folder import STUDY
from fleetune.study.history import Event, History
from fleetune.study.propose import DONE, FAILED, PROPOSED, STOPPED, Tried, frozen
from fleetune.study.space import Arm, arms_of

_ENDS = {"trial-done": DONE, "trial-stopped": STOPPED, "trial-failed": FAILED}


def export_optuna(run: Path, output: Path) -> int:
    """Write the database; how many trials it holds. A trial that has not ended yet is left out.

    Raises SettingsError where the run has searched nothing, RefusedError where `output` is there already.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    history = journal.read(run / journal.NAME)
    proposed = history.all(PROPOSED)
    if not proposed:
        raise SettingsError(
            str(run), ["nothing was searched in this run, so there is nothing for Optuna"]
        )
    if output.exists():
        raise RefusedError(f"{output}: is there already; give another --output")
    stored = tomllib.loads((run / STUDY).read_text(encoding="utf-8"))
    settings = parse_study(stored, str(run / STUDY), begun=True)
    arms = {arm.name: arm for arm in arms_of(settings.methods, settings.training)}
    count = 0
    with new_file(output) as temporary:
        storage = optuna.storages.RDBStorage(url_of(temporary))
        for task, name in dict.fromkeys((e["task"], e["arm"]) for e in proposed):
            own = history.all(PROPOSED, task=task, arm=name)
            count += _study(storage, history, f"{task}/{name}", arms[name], own)
        storage.engine.dispose()
    return count


def url_of(database: Path) -> str:
    """What Optuna opens a file by; a path may hold what a URL reads as something else."""
    from sqlalchemy import URL

    return URL.create("sqlite", database=str(database)).render_as_string()


def _study(
    storage: Any,
    history: History,
    name: str,
    arm: Arm,
    proposed: Sequence[Event],
) -> int:
    import optuna

    trials: list[Any] = []
    own = {ident for e in proposed for ids in e["trials"] for ident in ids}
    begun = (e["training"] for ident, e in history.begun.items() if ident in own)
    higher = next((bool(training["greater_is_better"]) for training in begun), True)
    for e in proposed:
        for picks, ids in zip(e["settings"], e["trials"], strict=True):
            one = _tried(history, ids, picks)
            if one is not None:
                best = max(one.curve, default=None) if higher else min(one.curve, default=None)
                trials.append(frozen(arm, one, value=best, trials=ids, state=one.state))
    study = optuna.create_study(
        study_name=name,
        storage=storage,
        direction="maximize" if higher else "minimize",
    )
    study.add_trials(trials)
    return len(trials)


def _tried(history: History, ids: Sequence[str], picks: dict[str, Any]) -> Tried | None:
    """What came of a setting, scores in their metric's own direction; None where it is still open."""
    ends = {i: _ENDS[history.ends[i]["kind"]] for i in ids if i in history.ends}
    own = [i for i in ids if i in history.begun]
    # A fold that was never started belongs to a setting of which another has failed.
    if (
        not own
        or any(i not in ends for i in own)
        or (len(own) < len(ids) and FAILED not in ends.values())
    ):
        return None
    metric = history.begun[own[0]]["training"]["metric_for_best_model"]
    curves = [[e["selection"][metric] for e in history.epochs(i)] for i in own]
    means = tuple(sum(s) / len(s) for s in zip(*curves, strict=False))
    states = set(ends.values())
    state = FAILED if FAILED in states else STOPPED if STOPPED in states else DONE
    return Tried(picks, means, state)
