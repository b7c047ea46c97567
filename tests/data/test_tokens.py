"""Token tables against the tokenizer itself, row by row; and a cache that survives damage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fleetune.data import tokens
from fleetune.data.base import Split
from fleetune.data.tokens import (
    TokenTable,
    default_cache_dir,
    joined,
    tokenize,
    tokenizer_fingerprint,
)
from fleetune.errors import SettingsError

WORDS = [f"w{i}" for i in range(50)]


def make_tokenizer(inputs: list[str] | None = None, words: list[str] = WORDS) -> Any:
    """A small fast tokenizer of whole words, with BERT's special tokens and types."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: i for i, word in enumerate([*special, *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=inputs or ["input_ids", "token_type_ids", "attention_mask"],
    )


def make_split(n: int, pairs: bool, seed: int = 0) -> Split:
    draws = np.random.default_rng(seed)

    def text() -> str:
        return " ".join(draws.choice(WORDS, size=int(draws.integers(0, 15))))

    return Split(
        ids=tuple(map(str, range(n))),
        first=tuple(text() for _ in range(n)),
        second=tuple(text() for _ in range(n)) if pairs else None,
        labels=None,
    )


def same(one: TokenTable, other: TokenTable) -> bool:
    types = one.type_ids is None and other.type_ids is None
    if one.type_ids is not None and other.type_ids is not None:
        types = np.array_equal(one.type_ids, other.type_ids)
    return (
        types
        and np.array_equal(one.ids, other.ids)
        and np.array_equal(one.offsets, other.offsets)
        and (one.truncated, one.max_length) == (other.truncated, other.max_length)
    )


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("types", [False, True])
@pytest.mark.parametrize("max_length", [8, 16, 64])
def test_each_row_is_what_the_tokenizer_gives(
    monkeypatch: pytest.MonkeyPatch, pairs: bool, types: bool, max_length: int
) -> None:
    monkeypatch.setattr(tokens, "_CHUNK", 7)
    tokenizer = make_tokenizer(None if types else ["input_ids", "attention_mask"])
    split = make_split(40, pairs)
    table = tokenize(split, tokenizer, max_length, None, "")
    assert (table.ids.dtype, table.offsets.dtype) == (np.int32, np.int64)
    assert len(table) == len(split)
    cut = 0
    for i in range(len(split)):
        # Lists of one: given alone, a pair with an empty second text is taken for a single text.
        texts = (
            [[split.first[i]]] if split.second is None else [[split.first[i]], [split.second[i]]]
        )
        row = tokenizer(*texts, truncation="longest_first", max_length=max_length)
        cut += len(tokenizer(*texts)["input_ids"][0]) > max_length
        assert table.row(i).tolist() == row["input_ids"][0]
        assert table.lengths[i] == len(row["input_ids"][0]) <= max_length
        found = table.row_types(i)
        if types:
            assert found is not None and found.dtype == np.uint8
            assert found.tolist() == row["token_type_ids"][0]
        else:
            assert found is None
    assert table.truncated == cut
    assert cut > 0 or max_length > 8


def test_no_rows() -> None:
    table = tokenize(make_split(0, False), make_tokenizer(), 8, None, "")
    assert len(table) == 0
    assert table.ids.shape == (0,)
    assert table.lengths.tolist() == []


def test_cut_rows_of_joined_tables_are_counted_together() -> None:
    tables = [tokenize(make_split(40, False, s), make_tokenizer(), 8, None, "") for s in (1, 2)]
    found = [table.truncated for table in tables]
    assert min(found) > 0 and joined(tables).truncated == sum(found)


def test_wrong_arguments() -> None:
    with pytest.raises(SettingsError, match="max_length > 3"):
        tokenize(make_split(2, True), make_tokenizer(), 3, None, "")

    class Slow:
        is_fast = False

    slow: Any = Slow()
    with pytest.raises(ValueError, match="fast tokenizer"):
        tokenize(make_split(2, True), slow, 8, None, "")


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one whenever texts are really tokenized."""
    made: list[int] = []
    make = tokens._make

    def counting(*arguments: Any) -> TokenTable:
        made.append(1)
        return make(*arguments)

    monkeypatch.setattr(tokens, "_make", counting)
    return made


@pytest.mark.parametrize("types", [False, True])
def test_cache(tmp_path: Path, counted: list[int], types: bool) -> None:
    tokenizer = make_tokenizer(None if types else ["input_ids"])
    split = make_split(30, True)
    cache = tmp_path / "new" / "cache"
    first = tokenize(split, tokenizer, 12, cache, "f")
    assert [path.suffix for path in cache.iterdir()] == [".safetensors"]
    assert same(first, tokenize(split, tokenizer, 12, cache, "f"))
    assert len(counted) == 1
    tokenize(split, tokenizer, 13, cache, "f")
    tokenize(split, tokenizer, 12, cache, "g")
    tokenize(split.take(range(29)), tokenizer, 12, cache, "f")
    assert len(counted) == len(list(cache.iterdir())) == 4


def test_a_damaged_cache_file_is_made_anew(tmp_path: Path, counted: list[int]) -> None:
    tokenizer, split = make_tokenizer(), make_split(30, False)
    first = tokenize(split, tokenizer, 12, tmp_path, "f")
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    flipped = whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:]
    for damaged in (b"", b"x" * 50, whole[:-1], whole[:20], flipped, whole + b"\0"):
        path.write_bytes(damaged)
        before = len(counted)
        assert same(first, tokenize(split, tokenizer, 12, tmp_path, "f"))
        assert len(counted) == before + 1
        assert same(first, tokenize(split, tokenizer, 12, tmp_path, "f"))
        assert len(counted) == before + 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_cache_that_cannot_be_written_is_no_cache(tmp_path: Path) -> None:
    """A file where the folder should be fails for every user, root too."""
    (tmp_path / "file").write_text("")
    tokenizer, split = make_tokenizer(), make_split(5, False)
    table = tokenize(split, tokenizer, 12, tmp_path / "file" / "cache", "f")
    assert same(table, tokenize(split, tokenizer, 12, None, "f"))


def test_nothing_half_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tokens.os, "replace", full)
    tokenize(make_split(5, False), make_tokenizer(), 12, tmp_path, "f")
    assert list(tmp_path.iterdir()) == []


def test_fingerprint() -> None:
    tokenizer = make_tokenizer()
    before = tokenizer_fingerprint(tokenizer)
    tokenize(make_split(5, True), tokenizer, 9, None, "")
    assert tokenizer_fingerprint(tokenizer) == before == tokenizer_fingerprint(make_tokenizer())
    others = [
        make_tokenizer(["input_ids", "attention_mask"]),
        make_tokenizer(words=WORDS[::-1]),
        make_tokenizer(words=WORDS[:-1]),
    ]
    left = make_tokenizer()
    left.truncation_side = "left"
    found = {tokenizer_fingerprint(other) for other in [tokenizer, left, *others]}
    assert len(found) == 5


def test_default_cache_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FLEETUNE_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache_dir() == tmp_path / "own"
    monkeypatch.delenv("FLEETUNE_CACHE")
    assert default_cache_dir() == tmp_path / "xdg" / "fleetune"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / ".cache" / "fleetune"
