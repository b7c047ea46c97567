"""Random study files: sound ones resolve and come back from their own TOML, others end in one error that names every fault.

A file is drawn sound; then up to three faults are planted, each at a key of its own. What must hold: without a fault the study
resolves against data and backbone, and the TOML of what was resolved gives the same again; with faults there is a SettingsError
(exit 2) that names every planted key, and nothing else is raised.
"""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fleetune.errors import FleetuneError, SettingsError
from fleetune.study.file import parse_study
from fleetune.study.prepare import prepare
from fleetune.study.settings import as_toml
from tests import runs
from tests.backbone.hub import save_tiny
from tests.torture.row import Row


def _some(choices: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=choices)


def _one_or_list(values: tuple[Any, ...]) -> st.SearchStrategy[Any]:
    return st.sampled_from(values) | st.lists(
        st.sampled_from(values), min_size=1, max_size=3, unique=True
    )


_RATE = _one_or_list((1e-4, 5e-4, 1e-3, 2e-3)) | st.just({"low": 1e-4, "high": 2e-3}) | st.builds(
    lambda steps, log: {"low": 1e-4, "high": 1e-2, "steps": steps, "log": log}, st.integers(2, 9), st.booleans()
)  # fmt: skip
TRAINING = _some(
    {
        "num_train_epochs": st.sampled_from((1, 2.5, 3)),
        "per_device_train_batch_size": st.sampled_from((4, 8)),
        "gradient_accumulation_steps": st.integers(1, 4),
        "warmup_steps": st.sampled_from((0, 0.1, 2)),
        "weight_decay": _one_or_list((0.0, 0.01, 0.1)),
        "lr_scheduler_type": _one_or_list(("linear", "cosine", "constant")),
        "max_grad_norm": st.floats(0, 10),
        "label_smoothing_factor": st.floats(0, 0.5),
        "dropout": st.sampled_from((0.0, 0.1)),
    }
)
METHODS = st.one_of(
    st.builds(lambda rate, own: {"method": "lora", "learning_rate": rate, **own}, _RATE, _some({
        "r": _one_or_list((1, 2, 4, 8)),
        "lora_alpha": st.sampled_from((8, 16.0, "2r", "4 * r", "r")),
        "lora_dropout": _one_or_list((0.0, 0.01)),
        "target_modules": st.sampled_from(("all-linear", "query,key", ["query", "value"], [["query"], ["value"]])),
        "use_rslora": st.booleans(),
    })),
    st.builds(lambda rate, own: {"method": "bitfit", "learning_rate": rate, **own}, _RATE, _some({
        "terms": st.sampled_from(("all", "query")), "weight_decay": _one_or_list((0.0, 0.1)),
    })),
    st.builds(lambda rate: {"method": "head", "learning_rate": rate}, _RATE),
    st.builds(lambda rate: {"method": "full", "learning_rate": rate}, _RATE),
)  # fmt: skip
STUDIES = st.fixed_dictionaries(
    {
        "data": _some({"protocol": st.sampled_from(("holdout", "cv"))}),
        "backbone": _some(
            {"dtype": st.sampled_from(("auto", "float32")), "max_length": st.integers(4, 64)}
        ),
        "training": TRAINING,
        "methods": st.lists(METHODS, min_size=1, max_size=3, unique_by=lambda m: m["method"]),
        "search": st.fixed_dictionaries(
            {"trials_per_method": st.integers(1, 10_000)},
            optional={
                "sampler": st.sampled_from(("tpe", "random")),
                "pruner": st.sampled_from(("halving", "none")),
                "batch": st.integers(1, 50),
                "seed": st.integers(0, 100),
            },
        ),
        "confirm": st.fixed_dictionaries(
            {"first_seed": st.integers(20_000, 10**6)}, optional={"seeds": st.integers(1, 20)}
        ),
    }
)
_NOT_A_NUMBER = ("many", True, [[]], {"a": 1}, [], ["x", "y"], "3x")
# (table, key, values that it must not have)
FAULTS: tuple[tuple[str, str, tuple[Any, ...]], ...] = (
    ("data", "protocol", ("holdot", 3, [], True)),
    ("data", "tsk", ("rte",)),
    ("data", "text_columns", ("text", [1], {"a": "b"})),
    ("data", "label_column", (3, ["label"], False)),
    ("backbone", "dtype", ("float8", 32, [])),
    ("backbone", "max_length", (3, 10**30, "long", 1.5, True)),
    ("backbone", "nme", ("minilm",)),
    ("training", "num_train_epochs", (0, -1, 10**30, 1e300, *_NOT_A_NUMBER)),
    ("training", "max_steps", (0, -7, 10**40, 0.5, *_NOT_A_NUMBER)),
    ("training", "weight_decay", (-1, float("nan"), float("inf"), [0.1, 0.1], [1, "x"], {"low": 1})),
    ("training", "lr_scheduler_type", ("cosin", 3, [[]], True, [])),
    ("training", "adam_beta1", (1, 1.5, -0.1, {"low": 1, "high": 0}, {"lo": 1, "high": 2})),
    ("training", "lerning_rate", (1e-3,)),
    ("training", "per_device_train_batch_size", (0, 1.5, 2**40, {"low": 1.5, "high": 3})),
    ("methods", "learning_rate", (0, -1e-3, float("inf"), {"low": 1, "high": 1}, {"low": 0, "high": 1}, "2nothing",
                                  {"low": 1e-3, "high": 10**400}, {"low": 1e-4, "high": 1e-3, "steps": 10**9},
                                  [1e-3] * 2, list(range(1, 5000)), *_NOT_A_NUMBER)),
    ("methods", "rnak", (2,)),
    ("methods", "method", ("lorra", 3, None, ["lora"], "")),
    ("search", "trials_per_method", (0, -1, 10**12, 1.5, "12", True, [])),
    ("search", "sampler", ("tpee", 1, [])),
    ("search", "budget", (3,)),
    ("confirm", "seeds", (0, 10**9, "ten", 1.5, True)),
    ("confirm", "first_seed", (-1, 2**31, 2**70, "1")),
)  # fmt: skip


@st.composite
def planted(draw: st.DrawFn) -> tuple[dict[str, Any], tuple[tuple[str, str], ...]]:
    """(a study, where its faults are); no two faults share a table and key."""
    study = copy.deepcopy(draw(STUDIES))
    chosen = draw(st.lists(st.sampled_from(FAULTS), max_size=3, unique_by=lambda f: f[:2]))
    for table, key, values in chosen:
        place = study[table]
        place = place[draw(st.integers(0, len(place) - 1))] if isinstance(place, list) else place
        value = draw(st.sampled_from(values))
        if value is None:
            place.pop(key, None)
        else:
            place[key] = copy.deepcopy(value)
    return study, tuple((table, key) for table, key, _ in chosen)


def random_studies(folder: Path, count: int) -> Iterator[str]:
    """B2."""
    backbone = save_tiny(folder / "tiny")
    runs.write_csv(folder / "rows.csv", 60)
    told: list[str] = []

    @settings(
        max_examples=count, derandomize=True, database=None, deadline=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(planted())
    def one(drawn: tuple[dict[str, Any], tuple[tuple[str, str], ...]]) -> None:
        study, faults = drawn
        study["data"] = {"file": str(folder / "rows.csv"), **study["data"]}
        study["backbone"] = {"name": str(backbone), **study["backbone"]}
        told.append(_tried(tomli_w.dumps(study), faults))

    one()
    # hypothesis may find fewer different ones than it was asked for, and draws a few again.
    yield from told[:count]
    yield from ["" for _ in range(count - len(told))] if all(not t for t in told) else []


def _tried(text: str, faults: tuple[tuple[str, str], ...]) -> str:
    try:
        return _checked(text, faults)
    except Exception as error:
        return f"{type(error).__name__}: {error} with {faults} in\n{text}"


def _checked(text: str, faults: tuple[tuple[str, str], ...]) -> str:
    try:
        given_study = parse_study(tomllib.loads(text), "study.toml")
        if faults:
            return f"{faults} was taken in\n{text}"
        prepared = prepare(given_study, cache=False)
    except SettingsError as error:
        # What the other keys of a table mean is not known where its method is not.
        unknown = ("methods", "method") in faults
        wanted = [("methods", "method")] if unknown else faults
        lost = [f for f in wanted if f[1] not in str(error)]
        if not faults or lost or error.exit_code != 2:
            return f"{lost or 'no fault'} is not what was told: {error}\n{text}"
        return ""
    except FleetuneError as error:
        return f"{type(error).__name__}: {error} with {faults} in\n{text}"
    written = tomli_w.dumps(as_toml(prepared.settings))
    again = prepare(parse_study(tomllib.loads(written), "again"), cache=False)
    same = tomli_w.dumps(as_toml(again.settings)) == written and again.settings == prepared.settings
    return "" if same else f"comes back otherwise:\n{written}"


ROWS = [Row("B2 random study files", 2000, random_studies, 40)]
