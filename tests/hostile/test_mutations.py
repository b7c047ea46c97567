"""A damaged value depends on its own draws alone, so that a case that failed can be made again by its number."""

from __future__ import annotations

from tests.hostile.mutations import case, damaged_value

SOUND = {"a": [1, {"b": "c"}], "d": {"e": [None, 2.5]}}


def test_a_case_alone_is_the_case_after_many_others() -> None:
    many = [repr(damaged_value(SOUND, case("x", number))) for number in range(3000)]
    for number in (0, 1500, 2999):
        assert repr(damaged_value(SOUND, case("x", number))) == many[number]
    assert SOUND == {"a": [1, {"b": "c"}], "d": {"e": [None, 2.5]}}
    assert len(set(many)) > 100
