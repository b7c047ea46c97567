"""The embedded data sets themselves: sizes, balance, no near-duplicates, and no shallow solution.

Where one of these fails, the sentences are to be mended, by hand, and not the limit.
"""

from __future__ import annotations

from collections import defaultdict
from importlib import resources

import numpy as np
import pytest

from fleetune.data.demo import load_demo
from tests.data import baselines

HEADERS = {
    "demo-sentiment": ["id", "label", "domain", "phenomenon", "text"],
    "demo-entailment": ["id", "label", "domain", "phenomenon", "premise", "hypothesis"],
}
SIZES = {"demo-sentiment": (820, 410), "demo-entailment": (520, 300)}
PHENOMENA = {
    "demo-sentiment": "plain negation contrast irony understatement numbers names comparison mixed "
    "implicit question idiom",
    "demo-entailment": "plain negation contrast irony understatement numbers names comparison time "
    "place quantity paraphrase role modality",
}
both = pytest.mark.parametrize("name", SIZES)


def cells(name: str, split: str) -> list[list[str]]:
    """Header and rows as they stand in the file."""
    file = resources.files("fleetune.data") / "embedded" / name / f"{split}.tsv"
    text = file.read_bytes().decode("utf-8")
    assert "\r" not in text and text.endswith("\n")
    return [line.split("\t") for line in text[:-1].split("\n")]


@both
def test_sizes_and_balance(name: str) -> None:
    dataset = load_demo(name)
    for split, least in zip((dataset.train, dataset.tests["test"]), SIZES[name], strict=True):
        assert len(split) >= least
        counts = np.bincount(baselines.labels_of(split), minlength=2)
        assert len(counts) == 2
        assert abs(counts / len(split) - 0.5).max() <= 0.01
    assert not set(dataset.train.ids) & set(dataset.tests["test"].ids)


@both
def test_rows(name: str) -> None:
    """Full rows of trimmed cells, known phenomena, both labels of a domain in each split."""
    domains: list[set[str]] = []
    for split in ("train", "test"):
        header, *rows = cells(name, split)
        assert header == HEADERS[name]
        assert all(len(row) == len(header) for row in rows)
        assert all(cell and cell == " ".join(cell.split()) for row in rows for cell in row)
        assert {row[3] for row in rows} == set(PHENOMENA[name].split())
        found: dict[str, list[str]] = defaultdict(list)
        for _, label, domain, *_ in rows:
            found[domain].append(label)
        assert all(len(set(labels)) == 2 for labels in found.values())
        domains.append(set(found))
    assert domains[0] == domains[1]


@both
def test_no_near_duplicates(name: str) -> None:
    """Within and across the splits; a pair's own premise and hypothesis may be alike."""
    texts, rows = baselines.texts_and_rows(name)
    for grams, limit in ((baselines.word_grams, 0.3), (baselines.character_grams, 0.4)):
        pairs = baselines.alike(texts, grams, limit)
        assert [(texts[i], texts[j]) for i, j in pairs if rows[i] != rows[j]] == []


@both
def test_no_repeated_openings(name: str) -> None:
    openings: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for text in baselines.texts_and_rows(name)[0]:
        openings[baselines.opening(text)].append(text)
    assert [shared for shared in openings.values() if len(shared) > 1] == []


def test_the_measure_finds_near_duplicates() -> None:
    texts = ["the old bus was late again", "the old bus was late", "a quiet garden by the sea"]
    assert list(baselines.alike(texts, baselines.word_grams, 0.3)) == [(0, 1)]
    assert list(baselines.alike(texts, baselines.character_grams, 0.4)) == [(0, 1)]
    assert list(baselines.alike(texts, baselines.word_grams, 0.8)) == []


def test_word_lists() -> None:
    assert len(baselines.POSITIVE) >= 60 and len(baselines.NEGATIVE) >= 60
    assert not baselines.POSITIVE & baselines.NEGATIVE
    assert baselines.word_list_accuracy() <= 0.70


def test_sentiment_tfidf() -> None:
    assert baselines.sentiment_tfidf_accuracy() <= 0.80


def test_entailment_shortcuts() -> None:
    assert baselines.hypothesis_only_accuracy() <= 0.65
    assert baselines.overlap_accuracy() <= 0.65
