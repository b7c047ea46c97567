"""Seeded damage to bytes and to JSON values: what a disk, an editor or an enemy does to a file.

Every case is named by its reader and number, so that one that failed can be made again alone. Not covered: damage that knows
a format's inside (tests/artifact/test_refused.py and tests/data/test_malformed.py have such cases by hand).
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Sequence
from typing import Any

NUMBERS = (b"0", b"-1", b"1e999", b"NaN", b"2147483648", b"9223372036854775808", b"9" * 400)
WORDS = (
    *(b"", b"\0", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\r", b"\n", b"\r\n", b"\t"),
    *(
        b'"',
        b'""',
        b"'",
        b",",
        b";",
        b"\\",
        b"\\u0000",
        b"\\ud800",
        b"{",
        b"}",
        b"[",
        b"]",
        b"[" * 2000,
    ),
    *(b"null", b"true", b"=1+1", b"../../x", b"\x1b[2J", "\u202e".encode(), "\u2028".encode()),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 10**40, 0.5, 1e308, float("nan"), float("-inf")),
    *(
        "",
        "x",
        "../../x",
        "/etc/passwd",
        "a\nb",
        "\x1b[2J",
        "\ud800",
        "\0",
        "1",
        "lora",
        "x" * 5000,
    ),
    *([], [[]], {}, {"a": 1}, ["a", "a"], [None], {"": {"": {}}}, [1] * 2000),
)


def case(reader: str, number: int) -> random.Random:
    """The draws of one case."""
    return random.Random(f"{reader}/{number}")


def damaged(content: bytes, draws: random.Random, words: Sequence[bytes] = ()) -> bytes:
    """The content after one to six small damages. words: what this format gives a meaning to."""
    for _ in range(draws.choice((1, 1, 1, 2, 3, 6))):
        content = draws.choice(_DAMAGES)(content, draws, (*WORDS, *words))
    return content


def damaged_value(value: Any, draws: random.Random) -> Any:
    """A JSON value after one to three changes at places anywhere in it."""
    value = json.loads(json.dumps(value))
    for _ in range(draws.choice((1, 1, 2, 3))):
        places = list(_places(value))
        if not places:
            return copy.deepcopy(draws.choice(VALUES))
        holder, key = draws.choice(places)
        what = draws.randrange(8)
        if what == 0:
            del holder[key]
        elif what == 1 and isinstance(holder, dict):
            holder[draws.choice((f"{key}x", key[:-1], "constructor", "__class__"))] = holder.pop(
                key
            )
        elif what == 2:
            other, at = draws.choice(places)
            holder[key] = json.loads(json.dumps(other[at] if at in _keys(other) else None))
        elif what == 3 and isinstance(holder[key], int | float):
            holder[key] = holder[key] * draws.choice((-1, 0, 1.5, 1000)) + draws.choice((0, 1))
        else:
            # Copied, since a later change may be inside of it, and a case depends on its own draws alone.
            holder[key] = copy.deepcopy(draws.choice(VALUES))
    return value


def _places(value: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = [(value, key) for key in _keys(value)]
    return found + [place for key in _keys(value) for place in _places(value[key])]


def _keys(value: Any) -> list[Any]:
    return (
        list(value)
        if isinstance(value, dict)
        else list(range(len(value)))
        if isinstance(value, list)
        else []
    )


def _bit(content: bytes, draws: random.Random, words: Sequence[bytes]) -> bytes:
    if not content:
        return content
    at = draws.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << draws.randrange(8)]) + content[at + 1 :]


def _byte(content: bytes, draws: random.Random, words: Sequence[bytes]) -> bytes:
    at = draws.randrange(len(content) + 1)
    return (
        content[:at]
        + bytes([draws.choice((0, 1, 0x7F, 0x80, 0xFF, 10, 34, 44))])
        + content[at + 1 :]
    )


def _span(content: bytes, draws: random.Random) -> tuple[int, int]:
    at = draws.randrange(len(content) + 1)
    return at, min(at + draws.choice((1, 2, 8, 40, 400)), len(content))


def _cut_out(content: bytes, draws: random.Random, words: Sequence[bytes]) -> bytes:
    at, end = _span(content, draws)
    return content[:at] + content[end:]


def _twice(content: bytes, draws: random.Random, words: Sequence[bytes]) -> bytes:
    at, end = _span(content, draws)
    return content[:end] + content[at:end] * draws.choice((1, 1, 2, 50)) + content[end:]


def _elsewhere(content: bytes, draws: random.Random, words: Sequence[bytes]) -> bytes:
    at, end = _span(content, draws)
    there = draws.randrange(len(content) + 1)
    return content[:there] + content[at:end] + content[there + end - at :]


def _end_lost(content: bytes, draws: random.Random, words: Sequence[bytes]) -> bytes:
    return content[: draws.randrange(len(content) + 1)]


def _word_in(content: bytes, draws: random.Random, words: Sequence[bytes]) -> bytes:
    at = draws.randrange(len(content) + 1)
    over = draws.choice((0, 0, 1, 4))
    return content[:at] + draws.choice(words) + content[at + over :]


def _number(content: bytes, draws: random.Random, words: Sequence[bytes]) -> bytes:
    """Another number where one stands."""
    digits = [i for i, byte in enumerate(content[:20_000]) if 48 <= byte <= 57]
    if not digits:
        return content
    at = end = draws.choice(digits)
    while end < len(content) and 48 <= content[end] <= 57:
        end += 1
    return content[:at] + draws.choice(NUMBERS) + content[end:]


def _four_bytes(content: bytes, draws: random.Random, words: Sequence[bytes]) -> bytes:
    """A length, an offset or a count of a binary format."""
    at = draws.randrange(len(content) + 1)
    value = draws.choice((0, 1, 2**31 - 1, 2**31, 2**32 - 1, draws.randrange(2**32)))
    return content[:at] + value.to_bytes(4, "little") + content[at + 4 :]


_DAMAGES: tuple[Callable[[bytes, random.Random, Sequence[bytes]], bytes], ...] = (
    *(
        _bit,
        _bit,
        _byte,
        _cut_out,
        _twice,
        _elsewhere,
        _end_lost,
        _word_in,
        _word_in,
        _number,
        _four_bytes,
    ),
)
