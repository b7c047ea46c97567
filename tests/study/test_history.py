"""What a journal tells, against walking through all of its events."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fleetune.study.history import ENDINGS, History

idents = st.sampled_from(["a", "b", "c"])
events = st.lists(
    st.one_of(
        st.fixed_dictionaries({"kind": st.just("trial-started"), "id": idents, "step": st.integers(0, 9)}),
        st.fixed_dictionaries(
            {"kind": st.just("epoch"), "id": idents, "epoch": st.integers(1, 3), "loss": st.integers(0, 99)}
        ),
        st.fixed_dictionaries({"kind": st.sampled_from(ENDINGS), "id": idents}),
        st.fixed_dictionaries({"kind": st.sampled_from(["planned", "stage-done"]), "stage": idents}),
    ),
    max_size=30,
)  # fmt: skip


@given(events)
def test_it_finds_what_a_walk_finds(told: list[dict[str, Any]]) -> None:
    history = History(told[:5])
    for event in told[5:]:
        history.add(event)
    assert list(history) == told and len(history) == len(told)
    begun, ends = {}, {}
    for e in told:
        if e["kind"] == "trial-started":
            begun.setdefault(e["id"], e)
        elif e["kind"] in ENDINGS:
            ends.setdefault(e["id"], e)
    assert (dict(history.begun), dict(history.ends)) == (begun, ends)
    for ident in "abc":
        last = {e["epoch"]: e for e in told if e["kind"] == "epoch" and e["id"] == ident}
        assert history.epochs(ident) == [last[n] for n in sorted(last)]
        for kind in ("epoch", "planned", "trial-done"):
            mine = [e for e in told if e["kind"] == kind and e.get("id") == ident]
            assert history.all(kind, id=ident) == mine
            assert history.first(kind, id=ident) == next(iter(mine), None)
    over = [e for e in told if e["kind"] in ("stage-done", "trial-failed")]
    assert history.last_of("stage-done", "trial-failed") == next(reversed(over), None)


def test_a_fact_that_is_null_is_no_fact_that_is_missing() -> None:
    history = History([{"kind": "chosen", "picks": None}, {"kind": "chosen"}])
    assert history.all("chosen", picks=None) == [history[0]]
