"""The page: nothing on it but the facts, every fact that matters on it, text that stays text, and no way out of it."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from fleetune.report import study_tables, words
from fleetune.report.page import ranges, render, write_report
from fleetune.study import journal
from tests.report.conftest import PLANS, Written, report_of
from tests.report.made_up import Plan, lora, write_run
from tests.report.payloads import PAYLOADS, PLACES, planted
from tests.report.reader import Page

Write = Callable[[str], Written]

# What the page says of itself: the level of its intervals, of "detectable", of bands; years of the sources it names; the
# least seeds of a verdict, the least trials of an importance.
OWN_NUMBERS = {"95", "80", "10", "90", "2019", "5", "30", "0", "100", "256"}
NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?(?![\w])")


def values(found: Any) -> Iterator[Any]:
    """Every key and plain value of nested facts, and the length of every collection."""
    if isinstance(found, dict):
        yield len(found)
        for key, value in found.items():
            yield key
            yield from values(value)
    elif isinstance(found, list | tuple):
        yield len(found)
        for value in found:
            yield from values(value)
    else:
        yield found


def written(value: Any) -> set[str]:
    """All forms in which the page may write a fact."""
    if value is None or isinstance(value, bool):
        return set()
    if isinstance(value, str):
        return {m[0] for m in NUMBER.finditer(value)}
    if not math.isfinite(value):
        return set()
    forms = {
        str(value),
        f"{value:g}",
        f"{value:,}",
        f"{value:.4f}",
        f"{value:.3f}",
        f"{value:+.3f}",
    }
    forms |= {
        f"{value:.4g}",
        f"{value:.3g}",
        f"{value:.2g}",
        f"{value:.2f}",
        f"{100 * value:.2f}",
        f"{100 * value:+.2f}",
    }
    forms |= {f"{value / size:.3g}" for size in (2**20, 1e3, 1e6)}
    forms |= {
        f"{value:.0f}",
        f"{value:,.0f}",
        f"{value / 60:.0f}",
        f"{value / 3600:.1f}",
        f"{value / 2**30:.2f}",
    }
    return {form.lstrip("+") for form in forms} | {form for form in forms if form[0] == "+"}


def strange_numbers(page: Written, html: str | None = None) -> set[str]:
    """Numbers that are read on the page and stand in no fact."""
    known = set(OWN_NUMBERS)
    for value in values([page.facts, page.page]):
        known |= written(value)
    ids = Counter(t["status"] for t in page.facts["trials"])
    known |= {str(n) for n in ids.values()} | {str(len(page.facts["trials"]) - ids["unfinished"])}
    text = (page.read if html is None else Page(html)).text
    text = re.sub(r"[0-9a-f]{64}|sha256|\d+x\d+", " ", text)
    told = {m[0] for m in NUMBER.finditer(text)}
    return {
        t
        for t in told
        if t.lstrip("+") not in known and t.strip(",") not in known and t not in known
    }


def test_facts_of_the_page_are_plain_values(write: Write) -> None:
    """They can be written as JSON: no array, no path, no number that JSON lacks."""
    for name in ("study", "rank", "regression", "begun"):
        page = write(name)
        assert json.loads(json.dumps(page.facts, allow_nan=False)).keys() == page.facts.keys()
        assert json.loads(json.dumps(page.page, allow_nan=False)).keys() == page.page.keys()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in ("sets", "classes", "tasks") else name
        for name in PLANS
    ],
)
def test_every_number_on_the_page_is_in_the_facts(write: Write, name: str) -> None:
    page = write(name)
    extra = {str(len({t["seed"] for t in page.facts["trials"]}))}
    extra |= {str(len({t["seed"] for t in page.facts["trials"] if t["phase"] != "search"}))}
    assert strange_numbers(page) <= extra


def test_a_number_that_is_no_fact_would_be_found(write: Write) -> None:
    """The test above can fail: a page of other facts does not pass for this one."""
    page = write("train")
    facts = planted(page.facts, {})
    facts["estimates"][0]["value"] += 0.0123
    assert strange_numbers(page, render(facts, page.page)) != set()


def test_the_table_of_methods_holds_every_estimate(write: Write) -> None:
    page = write("study")
    rows = page.read.table("Methods on the test sets").rows[1:]
    wanted = [
        [
            e["metric"], f"{100 * e['value']:.2f}", f"[{100 * e['low']:.2f}, {100 * e['high']:.2f}]", str(e["n"]),
            str(e["seeds"]), f"{e['trainable_parameters']['encoder']:,}", f"{e['trainable_parameters']['head']:,}",
        ]
        for e in page.facts["estimates"]
    ]  # fmt: skip
    assert [row[1:8] for row in rows] == wanted
    assert [row[0].removesuffix(" winner") for row in rows] == ["bitfit", "lora r=8", "head"]
    winners = [row[0] for row in rows if row[0].endswith("winner")]
    assert winners == ["lora r=8 winner"]


def test_the_table_of_verdicts_holds_every_verdict(write: Write) -> None:
    page = write("study")
    rows = page.read.table("Each method against").rows[1:]
    wanted = [
        [
            v["method"], v["reference"], v["verdict"], f"{100 * v['difference']:+.2f}",
            f"[{100 * v['low']:+.2f}, {100 * v['high']:+.2f}]",
        ]
        for v in page.facts["verdicts"]
    ]  # fmt: skip
    assert wanted and [row[:5] for row in rows] == wanted
    for v, row in zip(page.facts["verdicts"], rows, strict=True):
        assert row[7:] == [
            f"{100 * v['detectable']:.2f}", f"{100 * v['probability_better']:.2f}", str(v["n"]), str(v["seeds"]),
        ]  # fmt: skip


@pytest.mark.parametrize("name", PLANS)
def test_every_trial_is_on_the_page(write: Write, name: str) -> None:
    page = write(name)
    (table,) = [t for t in page.read.tables if " trials. Selection" in t.caption]
    assert [row[0] for row in table.rows[1:]] == [t["id"] for t in page.facts["trials"]]
    for t, row in zip(page.facts["trials"], table.rows[1:], strict=True):
        assert row[1] == (f"{t['status']}: {t['reason']}" if t["reason"] else t["status"])
        assert str(t["seed"]) in row


def test_what_is_needed_to_do_it_again_is_on_the_page(write: Write) -> None:
    page = write("study")
    environment = page.facts["study"]["environment"]
    needed = [
        environment["data"]["checksum"], environment["backbone"]["checksum"], environment["commit"],
        environment["data"]["source"], environment["backbone"]["source"], "1000 to 1005", "holdout", "float32",
        page.page["again"], *(f"{k} {v}" for k, v in environment["packages"].items()),
    ]  # fmt: skip
    assert [text for text in needed if text not in page.read.text] == []
    toml = re.sub(r"[ \n]+", " ", (page.folder / "study.toml").read_text("utf-8"))
    assert toml.strip() in page.read.text


def test_the_first_screen_asks_and_answers(write: Write) -> None:
    page = write("study")
    text = page.read.text
    assert "bitfit, lora or head: which is best on rte with roberta-base?" in text
    answer = text.index("Answer")
    for v in page.facts["verdicts"]:
        sentence = {
            "better": "is better than",
            "worse": "is worse than",
            "cannot tell": "cannot be told from",
        }
        said = f"{v['method']} {sentence[v['verdict']]} {v['reference']}: {100 * v['difference']:+.2f} points of accuracy"
        assert answer < text.index(said) < text.index("Methods compared")
    assert "fleetune predict study --text" in text
    assert text.index("What this run cannot tell") < text.index("Methods compared")


def test_two_seeds_are_never_more_than_cannot_tell(write: Write) -> None:
    page = write("train")
    text = page.read.text
    assert {v["verdict"] for v in page.facts["verdicts"]} == {"cannot tell"}
    for v in page.facts["verdicts"]:
        assert f"{v['method']} cannot be told from {v['reference']}" in text
    assert "an estimate here rests on 2 seeds, and 5 are the least for a verdict" in text
    assert "adjusted p" not in text[: text.index("Methods compared")]
    rows = page.read.table("Each method against").rows[1:]
    assert rows and all(row[5:9] == ["-"] * 4 for row in rows), "no p, nothing detectable, no share"


def test_cannot_tell_is_said_with_what_could_not_be_seen(write: Write) -> None:
    page = write("tasks")
    told = [v for v in page.facts["verdicts"] if v["verdict"] == "cannot tell"]
    assert told
    for v in told:
        assert (
            f"A run like this finds a difference of {100 * v['detectable']:.2f} points four times out of five"
            in page.read.text
        )
        assert f"Whether {v['method']} and {v['reference']} differ on {v['task']}" in page.read.text


@pytest.mark.parametrize(
    ("name", "drawn", "absent"),
    [
        ("train", ["Every seed", "Differences to the reference", "Score against parameters", "Score against memory",
                   "Selection score by epoch",
                   "Trials over time",
                   "Confusion of the winner", "Calibration of the winner", "Singular values of LoRA's updates"],
         ["Rank against score", "Search history",
          "How far BitFit moved the biases"]),
        ("study", ["Differences to the reference", "Every seed", "Search history", "Expected best against budget",
                   "Settings of lora-r8", "What mattered for lora-r8"], ["Rank against score"]),
        ("rank", ["Rank against score", "Differences to the reference"], ["What mattered for lora-r1"]),
        ("regression", ["Every seed"], ["Confusion of the winner", "Calibration of the winner"]),
        ("begun", ["Trials over time"], ["Every seed", "Confusion of the winner", "Search history"]),
        ("classes", ["Calibration of the winner"], ["Confusion of the winner"]),
    ],
)  # fmt: skip
def test_each_picture_is_there_or_says_why_not(
    write: Write, name: str, drawn: list[str], absent: list[str]
) -> None:
    page = write(name)
    figures = set(re.findall(r'class="picture">([^<]*)<', page.html.replace("&#39;", "'")))
    assert set(drawn) <= figures
    for title in absent:
        assert title not in figures
        assert re.search(rf"{re.escape(title)}[^:]*: not shown, since \w", page.read.text), title


def test_several_sets_and_tasks_are_told_apart(write: Write) -> None:
    rows = write("sets").read.table("Methods on the test sets").rows
    assert [row[1] for row in rows] == [
        "Test set",
        "matched",
        "mismatched",
        "matched",
        "mismatched",
    ]
    text = write("tasks").read.text
    assert "lora r=8" in text and " on rte: " in text and " on sst2: " in text
    assert "Every seed: sst2" in text


def test_a_regression_shows_the_farthest_predictions(write: Write) -> None:
    page = write("regression")
    worst = page.page["winner"]["model"]["worst"]
    errors = [abs(w["error"]) for w in worst]
    assert errors == sorted(errors, reverse=True) and len(worst) == 20
    assert f"off by {worst[0]['error']:+.3f}" in page.read.text


def test_failed_and_unfinished_trials_are_told(write: Write) -> None:
    text = write("broken").read.text
    assert "Not finished. 9 of 10 trials have ended" in text
    assert "failed: the loss was not finite at step 12" in text
    assert "5 (1 failed)" in text
    assert (
        "1 of 10 failed; an estimate counts a training that failed as one that learned nothing"
        in text
    )
    assert "1 failed training counted as having learned nothing" in text
    assert "1 failed training counts as giving the most frequent label for every row" in text


def test_a_run_without_an_end_has_no_answer_and_no_winner(write: Write) -> None:
    text = write("begun").read.text
    assert "No trial has ended well yet, so there is no answer." in text
    assert "there is no winner yet" in text


def test_optimistic_numbers_carry_their_stamp_in_every_place(write: Write) -> None:
    page, stamp = write("sets"), "optimistic"
    assert page.facts["study"]["optimistic"]
    methods = page.read.table("Methods on the test sets").rows[1:]
    assert all(row[2].endswith(stamp) for row in methods)
    (trials,) = [t for t in page.read.tables if " trials. Selection" in t.caption]
    assert all(row[trials.rows[0].index("Test, %")].endswith(stamp) for row in trials.rows[1:])
    answers = page.html.split('<ul class="answers">')[1].split("</ul>")[0]
    told = re.findall(r"<li.*?</li>", answers, re.S)
    assert told and all(stamp in li for li in told)
    figures = re.findall(r'class="picture">(.*?)</h3>', page.html, re.S)
    assert figures and all(stamp in f for f in figures)
    for heading in ("The winner, and how to use it", "Worst errors", "All trials"):
        assert re.search(rf"{heading} {stamp}", page.read.text), heading
    assert "the test scores were not looked at" not in page.read.text


def test_honest_numbers_carry_no_stamp(write: Write) -> None:
    assert "optimistic" not in write("study").read.text.lower()


# --- what a reader without eyes, and a suspicious one, gets


@pytest.mark.parametrize("name", PLANS)
def test_the_page_can_be_heard(write: Write, name: str) -> None:
    """One h1, no heading level skipped, a caption for each table, a scope for each heading cell, words for each picture."""
    page = write(name)
    levels = [int(e.tag[1]) for e in page.read.elements if re.fullmatch("h[1-6]", e.tag)]
    assert levels.count(1) == 1 and levels[0] == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))
    assert all(t.caption.strip() for t in page.read.tables)
    heads = [e for e in page.read.elements if e.tag == "th"]
    assert all(e.attributes.get("scope") in ("row", "col") for e in heads)
    pictures = [e for e in page.read.elements if e.tag == "svg"]
    ids = [e.attributes["id"] for e in page.read.elements if "id" in e.attributes]
    assert len(ids) == len(set(ids))
    for svg in pictures:
        assert svg.attributes["role"] == "img"
        assert set(svg.attributes["aria-labelledby"].split()) <= set(ids)
    regions = [e for e in page.read.elements if e.attributes.get("role") == "region"]
    assert all(e.attributes["aria-label"] and e.attributes["tabindex"] == "0" for e in regions)
    assert page.html.startswith('<!doctype html>\n<html lang="en">')


def test_links_lead_to_places_on_the_page(write: Write) -> None:
    page = write("study")
    ids = {e.attributes["id"] for e in page.read.elements if "id" in e.attributes}
    links = [e.attributes["href"] for e in page.read.elements if "href" in e.attributes]
    assert links and all(link[0] == "#" and link[1:] in ids for link in links)


@pytest.mark.parametrize("name", PLANS)
def test_nothing_can_be_asked_for_and_nothing_else_can_run(write: Write, name: str) -> None:
    page = write(name)
    policy = next(
        e.attributes["content"]
        for e in page.read.elements
        if e.attributes.get("http-equiv") == "Content-Security-Policy"
    )
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert directives["default-src"] == "'none'"
    for tag, directive in (("style", "style-src"), ("script", "script-src")):
        (body,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page.html, re.S)
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert directives[directive] == f"'sha256-{digest}'"
    loads = {"src", "srcset", "action", "formaction", "poster", "data", "background", "style"}
    for e in page.read.elements:
        assert not loads & e.attributes.keys(), e
        assert not [a for a in e.attributes if a.startswith("on")], e
    assert not re.search(r"url\((?!#)|@import|https?://", page.html)


@pytest.mark.parametrize(
    "first",
    [0, *(pytest.param(at, marks=pytest.mark.slow) for at in range(8, len(PAYLOADS), 8))],
)
def test_hostile_text_stays_text(marked: Written, first: int) -> None:
    """Whatever a user writes adds no element and no attribute, and is there to be read."""
    payload = " ".join(PAYLOADS[first : first + 8])
    payloads = dict.fromkeys(PLACES, payload)
    html = render(planted(marked.facts, payloads), planted(marked.page, payloads))
    read = Page(html)

    def outside(page: Page) -> Counter[tuple[str, tuple[str, ...]]]:
        found = (e for e in page.elements if "svg" not in e.within)
        return Counter((e.tag, tuple(e.attributes)) for e in found)

    assert outside(read) == outside(marked.read)
    # Within a picture the room that a name takes moves ticks, so their number may differ; their kinds may not.
    kinds = [{(e.tag, *sorted(e.attributes)) for e in p.elements} for p in (read, marked.read)]
    assert kinds[0] == kinds[1]
    shown = re.sub(r"\s+", " ", read.text)
    for one in PAYLOADS[first : first + 8]:
        wanted = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in one)
        assert shown.count(re.sub(r"\s+", " ", wanted)) >= len(PLACES)


def test_every_place_is_shown(marked: Written) -> None:
    """The places that the hostile texts are put in are on the page at all."""
    assert [place for place in PLACES if f"MARK{place}" not in marked.read.text] == []
    drawn = " ".join(marked.read.drawn)
    assert "MARKlabel" in drawn


def test_the_same_facts_give_the_same_bytes(write: Write) -> None:
    page = write("study")
    assert render(page.facts, page.page) == page.html


@pytest.mark.slow
def test_a_hundred_trials_fit_in_a_megabyte(tmp_path: Path) -> None:
    plan = Plan(
        arms=[lora(r, 0.7 + r / 100) for r in (1, 2, 4, 8)],
        seeds=range(1000, 1025),
        phase="confirm",
        ranks=True,
    )
    page = report_of(write_run(tmp_path / "run", plan))
    assert len(page.facts["trials"]) == 100
    assert len(page.html.encode()) <= 1_000_000


def test_the_table_of_searches_has_each_arms_own_metric(write: Write) -> None:
    page = write("study")
    facts = copy.deepcopy(page.facts)
    arm = next(a for a in facts["arms"] if a["arm"] != facts["trials"][0]["method"])
    arm["score"] = 0.43215
    for trial in facts["trials"]:
        if trial["id"] in (*arm["search"]["trials"], *arm["confirm"]["trials"]):
            trial["training"] = {**trial["training"], "metric_for_best_model": "loss"}
    head, *rows = Page(render(facts, page.page)).table("What was searched").rows
    told = {row[0]: dict(zip(head, row, strict=True))["Selection"] for row in rows}
    others = {a["arm"]: f"{100 * a['score']:.2f}" for a in facts["arms"] if a is not arm}
    assert told == {**others, arm["arm"]: "0.4321"}


def test_a_search_whose_survivors_failed_says_what_was_chosen(write: Write) -> None:
    page = write("study")
    facts = copy.deepcopy(page.facts)
    trials = {t["id"]: t for t in facts["trials"]}
    early, shaky, none = facts["arms"]
    for ident in early["search"]["trials"]:
        trials[ident]["status"] = "stopped"
    shaky["search"]["trials"] = [t["id"] for t in facts["trials"] if t["phase"] == "search"][:3]
    trials[shaky["search"]["trials"][1]]["status"] = "failed"
    trials[shaky["search"]["trials"][2]]["status"] = "done"
    none["chosen"], none["search"] = (
        None,
        {**none["search"], "stopped": 2, "failed": 1, "trials": []},
    )
    head, *rows = Page(render(facts, page.page)).table("What was searched").rows
    told = [dict(zip(head, row, strict=True))["Chosen"] for row in rows]
    assert told[0].endswith("(stopped early: in all that went on, trials failed)")
    assert told[1].endswith("(1 of its 3 trials failed)")
    assert told[2] == "none: all that were not stopped early failed"
    shown = study_tables.found(facts)
    assert all(" ".join(row.split()[-3:]) in " ".join(shown.split()) for row in told)


def test_the_table_of_ranks_says_what_each_costs(write: Write) -> None:
    page = write("rank")
    (study,) = page.facts["rank"]
    head, *rows = page.read.table("Ranks of lora").rows
    for row, rank in zip(rows, study["ranks"], strict=True):
        told = dict(zip(head, row, strict=True))
        assert told["r"] == str(rank["r"])
        assert told["Score, %"] == f"{100 * rank['value']:.2f}"
        assert told["Encoder"] == f"{rank['trainable_parameters']['encoder']:,}"
        assert told["Tokens/s"] == f"{round(rank['tokens_per_second']):,}"


def test_writing_leaves_a_whole_file_where_it_was_asked_for(write: Write, tmp_path: Path) -> None:
    page = write("train")
    path = write_report(page.folder, tmp_path / "deep" / "it.html")
    assert path == tmp_path / "deep" / "it.html"
    assert path.read_text("utf-8") == page.html


def test_damaged_files_leave_out_a_part_and_not_the_page(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "hurt", Plan(arms=(lora(8),), seeds=(1,)))
    (folder / "trials" / "lora-r8-s1" / "adapter_model.safetensors").write_bytes(b"torn")
    (folder / "trials" / "lora-r8-s1" / "fleetune.json").write_text("{", encoding="utf-8")
    page = report_of(folder)
    assert re.search(
        r"Singular values of LoRA's updates: not shown, since hurt/trials/\S+ .*unreadable",
        page.read.text,
    )
    assert (
        "Confusion of the winner and Calibration of the winner: not shown, since hurt/trials"
        in page.read.text
    )
    assert str(tmp_path) not in page.html, "a page that is sent on names no folders of this machine"


@pytest.mark.parametrize("lost", ["bitfit-s1000", "*"])
def test_lost_models_leave_out_their_methods_and_say_so(tmp_path: Path, lost: str) -> None:
    folder = write_run(tmp_path / "hurt", Plan(phase="confirm", search=3))
    for path in (folder / "trials").glob(lost):
        shutil.rmtree(path)
    page = report_of(folder)
    assert {e["method"] for e in page.facts["estimates"]} == (set() if lost == "*" else {"lora"})
    assert "since trials/bitfit-s1000/predictions.parquet is missing" in page.read.text
    assert len(page.read.table(f"{len(page.facts['trials'])} trials").rows) == 1 + 16
    assert str(tmp_path) not in page.html
    assert ("No trial has ended well yet" in page.read.text) is False
    assert ("fleetune predict hurt" in page.read.text) is (lost != "*")
    assert ("Its saved model is missing or damaged" in page.read.text) is (lost == "*")


# --- small parts


@pytest.mark.parametrize(
    ("numbers", "wanted"),
    [
        ([], "none"),
        ([3], "3"),
        ([3, 1, 2], "1 to 3"),
        ([0, 42, 43, 7], "0, 7, 42 to 43"),
        ([5, 5], "5"),
    ],
)
def test_ranges(numbers: list[int], wanted: str) -> None:
    assert ranges(numbers) == wanted


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(0.5, "0.50"), (0.0321, "0.032"), (0.00021, "0.00021"), (1e-9, "< 0.0001"), (1.0, "1.00")],
)
def test_p_values(value: float, wanted: str) -> None:
    assert words.p_value(value) == wanted
    assert words.p_equals(value) == (f"p {wanted}" if "<" in wanted else f"p = {wanted}")


def contrast(a: str, b: str) -> float:
    """The ratio of WCAG 2.2, from relative luminance."""

    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_can_be_read(write: Write, theme: str) -> None:
    """Text has 4.5 to 1 against what it stands on, lines of pictures 3 to 1 (WCAG 2.2, 1.4.3 and 1.4.11)."""
    blocks = re.findall(r":root\{([^}]*)\}", write("train").html)
    found = dict(re.findall(r"--([\w-]+):(#[0-9a-f]{6})", blocks[0 if theme == "light" else 1]))
    for ink in ("ink", "muted", "link", "good", "bad"):
        assert contrast(found[ink], found["paper"]) >= 4.5, ink
    assert contrast(found["ink"], found["soft"]) >= 4.5
    assert contrast(found["warn-ink"], found["warn"]) >= 4.5
    for series in range(1, 7):
        assert contrast(found[f"s{series}"], found["paper"]) >= 3, series


def test_a_stopped_trial_ends_in_the_timeline_when_it_was_stopped(write: Write) -> None:
    page = write("study")
    events = journal.read(page.folder / journal.NAME)
    (stopped,) = (e for e in events if e["kind"] == "trial-stopped")
    row = next(r for r in page.page["timeline"] if r["id"] == stopped["id"])
    assert row["end"] == pytest.approx(stopped["time"] - events[0]["time"], abs=1e-3)
    assert (row["phase"], row["status"]) == ("search", "stopped")


def test_cohorts_are_listed_with_what_they_reached(write: Write) -> None:
    page = write("study")
    assert [c["stage"] for c in page.facts["cohorts"]] == ["rte/search/0", "rte/confirm/0"]
    assert sum(len(c["trials"]) for c in page.facts["cohorts"]) == len(page.facts["trials"])
    assert {r["cohort"] for r in page.page["timeline"]} == {"rte/search/0", "rte/confirm/0"}
    table = page.html.partition("Cohorts: trials that trained together")[2].partition("</table>")[0]
    for told in ("rte/search/0", "118 MiB", "942 MiB", "&lt;b&gt;states&lt;/b&gt;"):
        assert told in table, told


def test_a_journal_without_cohorts_is_shown_by_its_phases(write: Write) -> None:
    page = write("regression")
    assert page.facts["cohorts"] == []
    assert "Cohorts: trials" not in page.html and "Trials over time" in page.html
    assert {r["cohort"] for r in page.page["timeline"]} == {None}


def test_the_memory_of_a_method_is_that_of_its_parameters_and_adam(write: Write) -> None:
    for e in write("study").facts["estimates"]:
        count = e["trainable_parameters"]
        # float32: a parameter, its gradient, two moments.
        assert e["memory_bytes"] == 4 * 4 * (count["encoder"] + count["head"])
