"""The page in a real Chromium (Debian's package, driven by playwright): silent, still, and right at every width.

Skipped only where there is no browser; the same properties without one are in test_page.py.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fleetune.report.page import render
from tests.report.conftest import Written
from tests.report.payloads import PAYLOADS, PLACES, planted

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine"),
    # playwright leaves the loop of its own thread to the garbage collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        # Chromium refuses its own sandbox to root, as whom containers run; what it opens here is our own page.
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


class Watched:
    """A tab that writes down whatever a page should never do."""

    def __init__(self, browser: Any, **settings: Any) -> None:
        self.context = browser.new_context(**settings)
        self.tab = self.context.new_page()
        self.seen: list[str] = []
        self.tab.on("dialog", self._dialog)
        self.tab.on("console", lambda m: self.seen.append(f"console: {m.text}"))
        self.tab.on("pageerror", lambda e: self.seen.append(f"error: {e}"))
        self.tab.on("request", lambda r: self.seen.append(f"request: {r.url}"))
        self.tab.on("popup", lambda p: self.seen.append("popup"))

    def _dialog(self, dialog: Any) -> None:
        self.seen.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def open(self, path: Path) -> None:
        """Open a file and use everything on it; the file itself is the one request that may be."""
        self.seen.clear()
        self.tab.goto(path.as_uri())
        self.tab.evaluate(
            "() => { document.querySelectorAll('details').forEach((d) => d.open = true);"
            " document.querySelectorAll('thead button').forEach((b) => b.click());"
            " document.querySelectorAll('*').forEach((e) => ['mouseover', 'focus', 'toggle', 'load', 'error']"
            ".forEach((kind) => e.dispatchEvent(new Event(kind)))); }"
        )
        self.tab.wait_for_timeout(30)
        self.seen = [s for s in self.seen if s != f"request: {path.as_uri()}"]


COUNT = "document.querySelectorAll('body *:not(svg *)').length"


@pytest.fixture(scope="module")
def plain_count(browser: Any, marked: Written, tmp_path_factory: pytest.TempPathFactory) -> int:
    """How many elements the page has outside of its pictures before anything hostile is in it."""
    path = tmp_path_factory.mktemp("plain") / "plain.html"
    path.write_text(marked.html, encoding="utf-8")
    watched = Watched(browser)
    watched.open(path)
    assert watched.seen == []
    return watched.tab.evaluate(COUNT)


@pytest.mark.parametrize("payload", PAYLOADS)
def test_hostile_text_does_nothing(
    browser: Any, marked: Written, plain_count: int, tmp_path: Path, payload: str
) -> None:
    """Each of 30 payloads in 8 places: no dialog, no console message, no request, no element of its own."""
    payloads = dict.fromkeys(PLACES, payload)
    html = render(planted(marked.facts, payloads), planted(marked.page, payloads))
    path = tmp_path / "report.html"
    path.write_bytes(html.encode("utf-8", "backslashreplace"))
    watched = Watched(browser)
    watched.open(path)
    assert watched.seen == []
    assert watched.tab.evaluate(COUNT) == plain_count


@pytest.mark.parametrize(
    "name", ["train", "study", "rank", "regression", "sets", "begun", "classes"]
)
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_its_window(
    browser: Any, write: Callable[[str], Written], tmp_path: Path, name: str, width: int
) -> None:
    path = tmp_path / "report.html"
    path.write_text(write(name).html, encoding="utf-8")
    watched = Watched(browser, viewport={"width": width, "height": 800})
    watched.open(path)
    assert watched.seen == []
    assert watched.tab.evaluate("document.documentElement.scrollWidth") == width
    # No text of a picture is cut by its edge: half a pixel is rounding.
    cut = watched.tab.evaluate(
        "[...document.querySelectorAll('svg.chart text')].filter((t) => {"
        " const a = t.getBoundingClientRect(), b = t.closest('svg').getBoundingClientRect();"
        " return a.left < b.left - 0.5 || a.right > b.right + 0.5 || a.top < b.top - 0.5 || a.bottom > b.bottom + 0.5;"
        "}).map((t) => t.textContent)"
    )
    assert cut == []


def test_tables_sort_up_down_and_back(
    browser: Any, write: Callable[[str], Written], tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    path.write_text(write("study").html, encoding="utf-8")
    watched = Watched(browser)
    watched.tab.goto(path.as_uri())
    head = watched.tab.get_by_role("region", name="Table of methods").get_by_role(
        "columnheader", name="Encoder"
    )
    cells = "[...document.querySelector('#answer table').tBodies[0].rows].map((r) => r.cells[6].textContent)"
    before = watched.tab.evaluate(cells)
    numbers = sorted((int(c.replace(",", "")) for c in before), reverse=True)
    for direction, wanted in (("ascending", numbers[::-1]), ("descending", numbers)):
        head.get_by_role("button").press("Enter")
        assert head.get_attribute("aria-sort") == direction
        assert [int(c.replace(",", "")) for c in watched.tab.evaluate(cells)] == wanted
    head.get_by_role("button").press("Space")
    assert head.get_attribute("aria-sort") is None
    assert watched.tab.evaluate(cells) == before


def test_light_and_dark_follow_the_reader(
    browser: Any, write: Callable[[str], Written], tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    path.write_text(write("train").html, encoding="utf-8")
    seen: dict[str, tuple[str, str]] = {}
    for scheme in ("light", "dark"):
        watched = Watched(browser, color_scheme=scheme)
        watched.open(path)
        ink = "getComputedStyle(document.querySelector('svg.chart text')).fill"
        paper = "getComputedStyle(document.body).backgroundColor"
        seen[scheme] = (watched.tab.evaluate(ink), watched.tab.evaluate(paper))
    assert seen["light"] == ("rgb(22, 24, 27)", "rgb(255, 255, 255)")
    assert seen["dark"] == ("rgb(232, 234, 237)", "rgb(20, 23, 26)")


def test_it_prints(browser: Any, write: Callable[[str], Written], tmp_path: Path) -> None:
    """As PDF in dark mode: on white, with nothing cut off at the right."""
    path = tmp_path / "report.html"
    path.write_text(write("study").html, encoding="utf-8")
    watched = Watched(browser, color_scheme="dark", viewport={"width": 700, "height": 900})
    watched.tab.goto(path.as_uri())
    assert watched.tab.pdf(format="A4").startswith(b"%PDF")
    watched.tab.emulate_media(media="print")
    assert (
        watched.tab.evaluate("getComputedStyle(document.body).backgroundColor")
        == "rgb(255, 255, 255)"
    )
    assert watched.tab.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert watched.tab.evaluate("document.documentElement.scrollWidth") == 700
