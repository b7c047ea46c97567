"""The study file: TOML into `Settings`, with everything that is wrong said at once.

Paths in it are relative to the folder where the command runs, as those of the command line are.
Not covered: what only the data or the backbone can tell (prepare.py checks that).
"""

from __future__ import annotations

import copy
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fleetune.config import explain
from fleetune.data.load import TASK_NAMES
from fleetune.data.textfile import check_exists
from fleetune.errors import DataError, SettingsError, did_you_mean, reason
from fleetune.methods.table import METHODS
from fleetune.study.settings import (
    CONFIRM,
    DataSettings,
    MethodSettings,
    SearchSettings,
    Settings,
)
from fleetune.study.space import Arm, arms_of
from fleetune.study.tables import (
    DataTable,
    StudyFile,
)
from fleetune.study.together import together

MOST_BYTES = 1_000_000
"""The longest recipe has 2,000; TOML of gigabytes could hold a machine for hours."""
MOST_LEVELS = 8
"""methods, its table, a setting, a list of lists: half of this is used."""

# Names of methods begin trials' names, hence those of folders; a digit first would be a table's number to `--set`.
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
# tomllib keeps every beginning of a dotted key: one of ten thousand parts takes it half a gigabyte.
_LONG_KEY = re.compile(r"""(?<![\w"'-])(?:[\w"'-]++[ \t]*+\.[ \t]*+){30}""")


def read_study(path: Path, overrides: Sequence[str] = (), *, begun: bool = False) -> Settings:
    """The settings of a study file. overrides: `a.b=c` each. begun: see `parse_study`. SettingsError names all that is wrong."""
    raw = _load(path)
    problems = [p for pair in overrides if (p := _override(raw, pair)) is not None]
    if problems:
        raise SettingsError(str(path), problems)
    return parse_study(raw, str(path), begun=begun)


def _load(path: Path) -> dict[str, Any]:
    """The content of the file. What is said of one that cannot be a study is said before anything is made of it."""
    try:
        check_exists(path)
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            problem = f"is no study file: it is longer than {MOST_BYTES:,} bytes"
            raise SettingsError(str(path), [problem])
        text = content.decode("utf-8-sig").replace("\r\n", "\n")
        if _LONG_KEY.search(text):
            problem = f"is no study file: a value lies more than {MOST_LEVELS} tables deep"
            raise SettingsError(str(path), [problem])
        raw = tomllib.loads(text)
    except DataError as error:
        raise SettingsError(str(path), error.problems) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(str(path), [f"cannot be read: {reason(error)}"]) from None
    except (ValueError, RecursionError) as error:
        # ValueError: tomllib's own, and Python's for a whole number of more than 4,300 digits.
        told = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise SettingsError(str(path), [f"is not TOML: {told}"]) from None
    if _is_deeper(raw, MOST_LEVELS):
        problem = f"is no study file: a value lies more than {MOST_LEVELS} tables deep"
        raise SettingsError(str(path), [problem])
    return raw


def _is_deeper(value: Any, levels: int) -> bool:
    """Whether a value nests deeper than so many levels; walks no deeper itself."""
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deeper(v, levels - 1) for v in inner)


def parse_study(raw: Mapping[str, Any], where: str = "study", *, begun: bool = False) -> Settings:
    """The settings of a study file that has been read. SettingsError names all that is wrong.

    begun: a run of this study is there already; rules that an earlier version did not have are not held against it.
    """
    given = dict(raw)
    if isinstance(given.get("data"), Mapping):
        given["data"] = [given["data"]]
    single = isinstance(raw.get("data"), Mapping)
    found, problems = _validated(given, single)
    whole = not problems
    entries, more = method_entries(given.get("methods"))
    problems += more
    training = given.get("training", {})
    arms: tuple[Arm, ...] = ()
    # Where no method is known, the settings for all of them are held against the plainest.
    judged = entries or [MethodSettings("head")]
    try:
        arms = arms_of(judged, training if isinstance(training, Mapping) else {})
    except SettingsError as error:
        problems += error.problems
    if found is not None:
        problems += _data_problems(found.data, whole=whole)
    if found is not None and not problems:
        problems += together(found, judged, arms, begun=begun)
    if problems:
        raise SettingsError(where, list(dict.fromkeys(problems)))
    assert found is not None
    return _settings(found, entries, arms)


def _validated(given: Mapping[str, Any], single: bool) -> tuple[StudyFile | None, list[str]]:
    """The file, or what is left of it without what is wrong, so that the rest can be judged too; None where nothing is."""
    try:
        return StudyFile(**given), []
    except ValidationError as error:
        found, problems = error.errors(), explain(error, StudyFile, noun="key")
    if single:
        problems = [
            f"data.{p.removeprefix('data.1.')}" if p.startswith("data.1.") else p for p in problems
        ]
    try:
        return StudyFile(**_without(given, [problem["loc"] for problem in found])), problems
    except ValidationError:
        return None, problems


def _without(given: Mapping[str, Any], places: Sequence[tuple[int | str, ...]]) -> dict[str, Any]:
    """A copy without the values at some places, each a path of keys and numbers."""
    copied: dict[str, Any] = copy.deepcopy(dict(given))
    for *path, last in places:
        table: Any = copied
        for part in path:
            # A path may end in the name of a type, where a value may have several.
            if isinstance(table, list):
                table = table[part] if isinstance(part, int) else None
            else:
                table = table.get(part) if isinstance(table, dict) else None
        if isinstance(table, dict):
            table.pop(last, None)
    return copied


def method_entries(tables: Any) -> tuple[list[MethodSettings], list[str]]:
    """[[methods]] with method names that are known; what is wrong with their own keys is said by space.py."""
    found: list[MethodSettings] = []
    problems: list[str] = []
    for i, table in enumerate(tables if isinstance(tables, list) else [], start=1):
        if not isinstance(table, Mapping):
            continue
        values = dict(table)
        name = values.pop("method", None)
        if not isinstance(name, str) or name not in METHODS:
            told = (
                "missing; it names what is trained"
                if name is None
                else f'there is no "{str(name)[:80]}"'
            )
            problems.append(f"methods.{i}.method: {told}{did_you_mean(str(name), METHODS)}")
            continue
        study, reference = values.pop("rank_study", False), values.pop("reference_rank", None)
        called = values.pop("name", None)
        if wrong := _name_problems(called, name, f"methods.{i}.name"):
            problems += wrong
            called = None
        if not isinstance(study, bool):
            problems.append(f"methods.{i}.rank_study: is true or false, but got {study!r}")
            continue
        if reference is not None and not study:
            problems.append(f"methods.{i}.reference_rank: needs rank_study = true beside it")
        fields = METHODS[name].model_fields
        own = {k: v for k, v in values.items() if k in fields}
        training = {k: v for k, v in values.items() if k not in fields}
        found.append(MethodSettings(name, own, training, study, reference, called))
    return found, problems


def _name_problems(name: Any, method: str, where: str) -> list[str]:
    if name is None:
        return []
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return [
            f"{where}: must be a letter and at most 63 more of letters, digits, `_` and `-`, but got {name!r:.80}"
        ]
    if name in METHODS and name != method:
        return [f'{where}: "{name}" is another method than {method}; give another name']
    return []


def _data_problems(tables: Sequence[DataTable], *, whole: bool) -> list[str]:
    """whole: nothing was left out of the tables, so what is not there was not given."""
    problems: list[str] = []
    for i, d in enumerate(tables, start=1):
        where = "data" if len(tables) == 1 else f"data.{i}"
        names = [d.task] if isinstance(d.task, str) else d.task or []
        if whole and not names and d.file is None:
            problems.append(f'{where}: give task = "rte", or file = "reviews.csv"')
        if d.file is not None:  # its task, where one is given, is what the rows are called
            if len(names) > 1 or any(name in TASK_NAMES for name in names):
                problems.append(
                    f'{where}: give either task = "rte" or file = "reviews.csv", and not both'
                )
            continue
        problems += [
            f'{where}.task: "{name}" is not known{did_you_mean(name, TASK_NAMES)}'
            for name in names
            if name not in TASK_NAMES
        ]
        if d.test_file or d.text_columns or d.label_column or d.groups_column:
            # A stored study says the columns of a named task too.
            told = {"test_file": d.test_file, "groups_column": d.groups_column}
            problems += [f"{where}.{k}: is for `file`" for k, v in told.items() if v is not None]
    named = [
        (t, d.file)
        for d in tables
        for t in (d.task if isinstance(d.task, list) else [d.task])
        if t or d.file
    ]
    twice = sorted({str(t or f) for t, f in named if named.count((t, f)) > 1})
    problems += [f'data: "{name}" stands twice; a task is studied once' for name in twice]
    if len({d.protocol for d in tables}) > 1:
        problems.append("data: one protocol for all tasks, since their numbers stand side by side")
    return problems


def _settings(study: StudyFile, entries: Sequence[MethodSettings], arms: Sequence[Arm]) -> Settings:
    data: list[DataSettings] = []
    for d in study.data:
        values = d.model_dump(exclude={"task"})
        columns = values.pop("text_columns")
        values["text_columns"] = None if columns is None else tuple(columns)
        names = d.task if isinstance(d.task, list) else [d.task]
        data += [DataSettings(task=name, **values) for name in names]
    first = study.confirm.first_seed
    search = None if study.search is None else SearchSettings(**study.search.model_dump())
    return Settings(
        data=data[0],
        more_data=tuple(data[1:]),
        methods=tuple(entries),
        seeds=tuple(range(first, first + study.confirm.seeds)),
        training=dict(study.training),
        backbone=study.backbone.name,
        revision=study.backbone.revision,
        dtype=study.backbone.dtype,
        max_length=study.backbone.max_length,
        search=search,
        phase=CONFIRM,
        reference=study.confirm.reference or _usual_reference(entries[0], arms),
        report_to=tuple([study.report_to] if isinstance(study.report_to, str) else study.report_to),
    )


def _usual_reference(first: MethodSettings, arms: Sequence[Arm]) -> str:
    """The first method; of a rank study the rank that its others are compared with."""
    own = [arm for arm in arms if arm.entry == 0]
    is_it = (arm.name for arm in own if arm.rank == first.reference_rank)
    return next(is_it, own[0].name)


def _override(raw: dict[str, Any], pair: str) -> str | None:
    """Put `a.b=c` into the file's content; the problem where that cannot be done."""
    key, equals, text = pair.partition("=")
    path = key.split(".")
    if not equals or not all(path):
        return f"--set {pair}: must have the form table.key=value"
    place: Any = raw
    for i, part in enumerate(path[:-1]):
        if isinstance(place, list):
            found = _in_list(place, part)
            if found is None:
                tables = enumerate(place, start=1)
                names = [str(t.get("name", t.get("method", n))) for n, t in tables]
                return f'--set {pair}: "{part}" is none of {", ".join(names)}'
            place = found
        else:
            place = place.setdefault(part, {})
        if not isinstance(place, dict | list):
            return f"--set {pair}: {'.'.join(path[: i + 1])} is a value, not a table"
    if isinstance(place, list):
        return f"--set {pair}: name one of the tables: {path[0]}.1.{path[-1]}"
    place[path[-1]] = _value(text)
    return None


def _in_list(tables: list[Any], part: str) -> Any:
    """A table by its number from 1, by its name, or by its method's name."""
    if part.isdigit():
        return tables[int(part) - 1] if 0 < int(part) <= len(tables) else None
    own = [t for t in tables if isinstance(t, dict)]
    return next((t for key in ("name", "method") for t in own if t.get(key) == part), None)


def _value(text: str) -> Any:
    """A value as TOML or JSON writes it, else a text."""
    for read in (lambda: tomllib.loads(f"v = {text}")["v"], lambda: json.loads(text)):
        try:
            return read()
        except (ValueError, RecursionError):
            continue
    return text
