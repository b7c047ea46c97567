"""Divide train into a training and a selection part, and own data into train and test.

Units: rows with the same text(s), or of the same group, form a unit, and a unit is never divided:
otherwise a model is chosen, or measured, on texts that it was trained on. Strata: the classes, or
ten quantile bins of the targets; a unit belongs to the stratum of most of its rows. From each
stratum the share is taken, from shuffled units.

Guarantees: index arrays are sorted, disjoint and cover all rows; a stratum of two units or more is
on both sides. Limit: a class whose rows all share their texts with other classes, or with each
other, may be on one side only.
"""

# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false
# (pyproject.toml turns these off for packages that ship no types, but `strict` there overrides it)

from __future__ import annotations

import numpy as np

from fleetune.data.base import Split
from fleetune.errors import DataError, counted
from fleetune.seeds import stream

_BINS = 10
_SMALL = 10_000
"""Below so many rows a tenth is held out, from there on a fiftieth, within these limits:"""
_FEWEST, _MOST = 1_000, 2_000


def holdout(
    train: Split, regression: bool, seed: int, share: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(train_indices, selection_indices), int64 positions in `train`; a seed has its own division.

    share: of the rows that go to selection, above 0 and below 1; None: by size, see DESIGN.md,
    section 7. Raises DataError when there are fewer than two units.
    """
    n = len(train)
    if share is not None and not 0 < share < 1:
        raise ValueError(f"`0 < share < 1` must hold, but got share={share}.")
    if share is not None:
        size = round(n * share)
    elif n < _SMALL:
        size = n // 10
    else:
        size = min(max(n // 50, _FEWEST), _MOST)
    return _divide(train, regression, size, stream(seed, "split"), "selection rows")


def three_way(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """(train_indices, test_indices) for own data without a test file: a stratified tenth.

    The same for every trial, whatever its seed. With `holdout` on the rest, three parts come out: about 81, 9 and 10
    hundredths.
    """
    regression = split.labels is not None and split.labels.dtype == np.float64
    return _divide(split, regression, len(split) // 10, stream(0, "test"), "test rows")


def subset(train: Split, regression: bool, count: int) -> np.ndarray:
    """Positions of about `count` rows of train, sorted: a stratified draw, the same for every trial; units stay whole."""
    return _divide(train, regression, count, stream(0, "subset"), "fewer rows")[1]


def folds(
    train: Split, regression: bool, count: int, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """`count` pairs of (train_indices, selection_indices); every row is held out in exactly one.

    Units stay whole, and each stratum is spread evenly. Raises DataError for fewer units than folds.
    """
    unit_n = _units(train)
    n_units = int(unit_n.max()) + 1 if len(unit_n) else 0
    if n_units < count:
        problem = f"{n_units} different texts (or groups) cannot make {count} folds"
        raise DataError("the data", [f"{problem}; use protocol holdout, or add rows"])
    rows_of_unit = np.bincount(unit_n)
    stratum_of_unit = _stratum_of_units(_strata(train, regression), unit_n)
    draws = stream(seed, "folds")
    fold_of_unit = np.zeros(n_units, dtype=np.int64)
    total = np.zeros(count, dtype=np.int64)
    for stratum in range(int(stratum_of_unit.max()) + 1):
        own = np.zeros(count, dtype=np.int64)
        for unit in draws.permutation(np.flatnonzero(stratum_of_unit == stratum)).tolist():
            # The fold with the fewest rows of this stratum, and of these the smallest.
            fold = int(np.lexsort((total, own))[0])
            fold_of_unit[unit] = fold
            own[fold] += rows_of_unit[unit]
            total[fold] += rows_of_unit[unit]
    fold_n = fold_of_unit[unit_n]
    return [(np.flatnonzero(fold_n != k), np.flatnonzero(fold_n == k)) for k in range(count)]


def _divide(
    split: Split, regression: bool, size: int, draws: np.random.Generator, what: str
) -> tuple[np.ndarray, np.ndarray]:
    unit_n = _units(split)
    n_units = int(unit_n.max()) + 1 if len(unit_n) else 0
    if n_units < 2:
        found = f"{counted(len(split), 'row')} with {counted(n_units, 'different text')} (or group)"
        problem = f"no {what} can be taken from {found}; at least two different ones are needed"
        raise DataError("the data", [problem])
    rows_of_unit = np.bincount(unit_n)
    stratum_of_unit = _stratum_of_units(_strata(split, regression), unit_n)
    rows_of_stratum = np.bincount(stratum_of_unit, weights=rows_of_unit)
    quotas = _apportion(max(size, 1), rows_of_stratum)
    taken = np.zeros(n_units, dtype=bool)
    for stratum, quota in enumerate(quotas):
        units = np.flatnonzero(stratum_of_unit == stratum)
        chosen = _choose(draws.permutation(units), rows_of_unit, quota)
        taken[chosen] = True
    if not taken.any():
        # Every stratum is a single unit: the smallest one is held out.
        taken[np.argmin(rows_of_unit)] = True
    held_n = taken[unit_n]
    return np.flatnonzero(~held_n), np.flatnonzero(held_n)


def _units(split: Split) -> np.ndarray:
    """int64 [n]: the unit of each row, numbered from 0 by first occurrence."""
    texts = split.first if split.second is None else zip(split.first, split.second, strict=True)
    known: dict[object, int] = {}
    by_text = np.array([known.setdefault(text, len(known)) for text in texts], dtype=np.int64)
    if split.groups is None or len(split) == 0:
        return by_text
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    groups: dict[str, int] = {}
    by_group = np.array(
        [len(known) + groups.setdefault(name, len(groups)) for name in split.groups], dtype=np.int64
    )
    # Texts and groups are the nodes of a graph, rows its edges: what hangs together is one unit.
    nodes = len(known) + len(groups)
    edges = coo_matrix((np.ones(len(split)), (by_text, by_group)), shape=(nodes, nodes))
    component = connected_components(edges, directed=False)[1]
    return component[by_text].astype(np.int64)


def _strata(split: Split, regression: bool) -> np.ndarray:
    """int64 [n]: the stratum of each row."""
    if split.labels is None:
        return np.zeros(len(split), dtype=np.int64)
    if not regression:
        return np.unique(split.labels, return_inverse=True)[1].astype(np.int64)
    edges = np.quantile(split.labels, np.linspace(0, 1, _BINS + 1)[1:-1])
    return np.unique(np.searchsorted(edges, split.labels), return_inverse=True)[1].astype(np.int64)


def _stratum_of_units(stratum_n: np.ndarray, unit_n: np.ndarray) -> np.ndarray:
    """The stratum of most rows of each unit, on a tie the lower one."""
    pairs, counts = np.unique(np.stack([unit_n, stratum_n]), axis=1, return_counts=True)
    # Ascending counts, so that the last one written is the largest; within a count the lower
    # stratum is last.
    order = np.lexsort((-pairs[1], counts))
    found = np.zeros(int(unit_n.max()) + 1, dtype=np.int64)
    found[pairs[0][order]] = pairs[1][order]
    return found


def _apportion(size: int, rows_of_stratum: np.ndarray) -> np.ndarray:
    """int64 [strata]: `size` rows shared out by the strata's sizes, largest remainders first."""
    exact = size * rows_of_stratum / rows_of_stratum.sum()
    quotas = np.floor(exact).astype(np.int64)
    largest = np.argsort(-(exact - quotas), kind="stable")
    quotas[largest[: size - int(quotas.sum())]] += 1
    return quotas


def _choose(units: np.ndarray, rows_of_unit: np.ndarray, quota: int) -> np.ndarray:
    """Units to hold out, of shuffled ones: at most `quota` rows, but one unit, and never all."""
    if len(units) < 2:
        return units[:0]
    sizes = rows_of_unit[units]
    chosen: list[int] = []
    left = int(quota)
    for unit, size in zip(units.tolist(), sizes.tolist(), strict=True):
        if size <= left and len(chosen) < len(units) - 1:
            chosen.append(unit)
            left -= size
        if left == 0:
            break
    return np.array(chosen, dtype=np.int64) if chosen else units[[int(np.argmin(sizes))]]
