"""Hand-made runs that the tests of the report read and none changes, with their facts and pages."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from fleetune.report.facts import run_facts
from fleetune.report.page import render
from fleetune.report.page_facts import page_facts
from tests.report.made_up import BITFIT, Arm, Plan, lora, write_run
from tests.report.reader import Page

HEAD = Arm(method="head", skill=0.68, encoder=0)
RANKS = tuple(lora(r, 0.74 + 0.02 * i) for i, r in enumerate((1, 2, 4, 8)))
PLANS: dict[str, Plan] = {
    "train": Plan(arms=(BITFIT, lora(8), HEAD), seeds=(42, 43)),
    "study": Plan(
        arms=(BITFIT, lora(8, 0.86), HEAD), search=31, phase="confirm",
        seeds=range(1000, 1006), stopped=("lora-q1-3",),
    ),
    "rank": Plan(arms=RANKS, phase="confirm", ranks=True, search=4),
    "regression": Plan(
        tasks=("stsb",), regression=True, labels=("score",), seeds=(1, 2), cohorts=False,
    ),
    "sets": Plan(
        tasks=("mnli",), tests={"matched": 90, "mismatched": 95}, labels=("e", "n", "c"),
        protocol="paper", seeds=(1, 2),
    ),
    "tasks": Plan(tasks=("rte", "sst2"), phase="confirm"),
    "broken": Plan(failed=("lora-r8-s1001",), unfinished=("bitfit-s1004",)),
    "begun": Plan(seeds=(1,), unfinished=("bitfit-s1", "lora-r8-s1")),
    "classes": Plan(labels=[f"label {i}" for i in range(20)], seeds=(1,)),
}  # fmt: skip


@dataclass(frozen=True)
class Written:
    """A run with all that is said of it."""

    folder: Path
    facts: dict[str, Any]
    page: dict[str, Any]

    @cached_property
    def html(self) -> str:
        """The page itself; drawing it takes a second."""
        before = copy.deepcopy((self.facts, self.page))
        html = render(self.facts, self.page)
        assert (self.facts, self.page) == before, "to print the facts must not change them"
        return html

    @cached_property
    def read(self) -> Page:
        """The page as a browser has it."""
        return Page(self.html)


@pytest.fixture(scope="session")
def write(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Written]:
    """A planned run by name, written once."""
    folder, made = tmp_path_factory.mktemp("made-up"), dict[str, Written]()

    def written(name: str) -> Written:
        if name not in made:
            made[name] = report_of(write_run(folder / name, PLANS[name]))
        return made[name]

    return written


@pytest.fixture(scope="session")
def marked(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """A run with a mark in every place where a user can put a text; see payloads.py."""
    folder = tmp_path_factory.mktemp("marked")
    file = folder / "rows.csv"
    rows = [f"MARKtext {i},{'MARKlabel' if i % 2 else 'other'}" for i in range(40)]
    file.write_text("\n".join(["text,label", *rows]) + "\n", encoding="utf-8")
    arms = [BITFIT, lora(4), Arm(method="head", hyperparameters={"terms": "MARKsetting"})]
    plan = Plan(
        arms=arms, file=file, tests={"test": 40}, tasks=("MARKtask",), labels=("MARKlabel", "other"),
        source="MARKbackbone", processor="MARKmachine", reason="MARKreason",
        failed=("lora-r4-s1001",), search=5, phase="confirm",
    )  # fmt: skip
    return report_of(write_run(folder / "MARKrun", plan))


def report_of(folder: Path) -> Written:
    facts = run_facts(folder)
    return Written(folder, facts, page_facts(folder, facts))
