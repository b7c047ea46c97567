"""Many saved models at work side by side: those on one backbone share its frozen weights, and their texts its passes.

As in a cohort, every frozen matrix is multiplied once for the texts of all models; what a model owns (biases, low-rank
factors, its head) acts on its own texts alone. Not shared: exported models, which are a backbone of their own, and passes of
models with different numbers of labels, which end in heads of different shape.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fleetune.cohort.room import Returned
from fleetune.cohort.trial import Rows, rows_within
from fleetune.data.tokens import TokenTable, joined
from fleetune.errors import DataError, SettingsError
from fleetune.serve.predictor import BATCH, Prediction, Predictor, most_tokens

Key = TypeVar("Key", bound=Hashable)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True)
class Asked:
    """Texts for one model; second: the other text of each pair, where the model reads pairs."""

    model: str
    first: Sequence[str]
    second: Sequence[str] | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model says of the texts of one question, in their order."""

    predictions: list[Prediction]
    truncated: int
    """Texts that were longer than the model reads, and were cut."""


class Models:
    """Saved models by name, opened one beside another. Raises what `Predictor` raises of any of them."""

    def __init__(
        self, places: Mapping[str, Path], *, dtype: str | None = None, device: str = "cpu"
    ) -> None:
        self._open: dict[str, Predictor] = {}
        self._memory = Returned()
        for name, place in places.items():
            beside = list(self._open.values())
            self._open[name] = Predictor(place, dtype=dtype, device=device, beside=beside)

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, name: object) -> bool:
        return name in self._open

    def __getitem__(self, name: str) -> Predictor:
        return self._open[name]

    @property
    def names(self) -> list[str]:
        """In the order that they were given."""
        return list(self._open)

    @property
    def backbones(self) -> int:
        """How many different frozen encoders are held."""
        opened = [p.opened for p in self._open.values()]
        return len(
            {
                (
                    o.backbone.checksum,
                    o.backbone.config_checksum,
                    o.backbone.tokenizer_checksum,
                    o.compute,
                )
                for o in opened
            }
        )

    def answer(self, asked: Sequence[Asked]) -> list[Answer | DataError]:
        """The answer to each question; DataError in the place of one whose model gives no numbers. One call at a time."""
        found: dict[int, Answer | DataError] = {}
        for mine in _groups(id(self[one.model].engine) for one in asked).values():
            found |= dict(zip(mine, self._through_one([asked[i] for i in mine]), strict=True))
        # A turn of many long texts must not stay in the process for good.
        self._memory.if_grown()
        return [found[i] for i in range(len(asked))]

    def _through_one(self, asked: Sequence[Asked]) -> list[Answer | DataError]:
        """The same of questions whose models share an engine. Those of one model are one list of texts."""
        tables = [self[one.model].rows(one.first, one.second).table for one in asked]
        members = _groups(one.model for one in asked)
        engine = self[asked[0].model].engine
        rows = [_every(joined([tables[i] for i in own])) for own in members.values()]
        owned = [self[name].owned for name in members]
        logits = engine.predict_in_room(owned, rows, _batch_sizes(rows, most_tokens(engine)))
        found: dict[int, Answer | DataError] = {}
        for (name, own), mine in zip(members.items(), logits, strict=True):
            cuts = np.cumsum([len(tables[i]) for i in own])[:-1]
            for i, part in zip(own, np.split(mine, cuts), strict=True):
                found[i] = _answer(self[name], part, tables[i].truncated)
        return [found[i] for i in range(len(asked))]


def _batch_sizes(rows: Sequence[Rows], max_tokens: int) -> list[int]:
    """How many texts of each model go into a pass, so that those of all are no more than `BATCH` and keep to its tokens."""
    passes = -(-sum(map(len, rows)) // BATCH)
    share = max_tokens // len(rows)
    return [rows_within(one, -(-len(one) // passes), share) for one in rows]


def _groups(keys: Iterable[Key]) -> dict[Key, list[int]]:
    """The places of each key, in the order that the keys first come."""
    found: dict[Key, list[int]] = {}
    for i, key in enumerate(keys):
        found.setdefault(key, []).append(i)
    return found


def _answer(model: Predictor, logits: NDArray[np.floating], truncated: int) -> Answer | DataError:
    try:
        model.check(logits)
    except DataError as error:
        return error
    return Answer(model.predictions(logits), truncated)


def _every(table: TokenTable) -> Rows:
    return Rows(table, np.arange(len(table)), np.zeros(len(table), dtype=np.int64))


def named(given: Sequence[str]) -> dict[str, Path]:
    """Places of models by name: `NAME=FOLDER`, or a folder, whose own name it gets.

    SettingsError for what is no name, and for one that two have.
    """
    found: dict[str, Path] = {}
    problems: list[str] = []
    for text in given:
        name, equals, rest = text.partition("=")
        # A folder may have such a sign in its name too.
        place = Path(rest) if equals and not Path(text).exists() else Path(text)
        if place == Path(text):
            name = place.resolve().name
        if not NAME.fullmatch(name):
            problems.append(
                f"{text}: the name {name!r:.80} must be letters, digits, dots, dashes and underscores; give NAME=FOLDER"
            )
        elif name in found:
            problems.append(f"{text}: {found[name]} has the name {name} too; give one NAME=FOLDER")
        else:
            found[name] = place
    if problems:
        raise SettingsError("serve", problems)
    return found
