"""The site is built without a warning and asks nobody; the notebook holds a real run, and runs."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from scripts import notebook, site

from tests.test_tutorial import masked

NOTEBOOK = nbformat.read(notebook.NOTEBOOK, as_version=4)
CODE = [cell for cell in NOTEBOOK.cells if cell.cell_type == "code"]
# What a page fetches by itself, beside what it links to.
FETCHED = re.compile(
    r"<(?:script|img|iframe|source|audio|video)\b[^>]*\bsrc=\"([^\"]+)\"|<link\b[^>]*\bhref=\"([^\"]+)\""
    r"|url\(\s*['\"]?([^'\")]+)|@import\s+['\"]([^'\"]+)"
)


def printed(cell) -> list[str]:
    """The lines below a cell."""
    told = [o.text if o.output_type == "stream" else o.data["text/plain"] for o in cell.outputs]
    return "\n".join(told).splitlines()


def test_the_notebook_was_run_from_top_to_bottom() -> None:
    nbformat.validate(NOTEBOOK)
    assert [cell.execution_count for cell in CODE] == list(range(1, len(CODE) + 1))
    assert not [o for cell in CODE for o in cell.outputs if o.output_type == "error"]
    # The cell that trains prints nothing; every other shows something.
    assert [i for i, cell in enumerate(CODE) if not cell.outputs] == [2]


def test_the_notebook_says_nothing_of_the_machine() -> None:
    text = Path(notebook.NOTEBOOK).read_text("utf-8")
    assert not re.search(r"/(home|root|tmp|Users|work)\b", text)


@pytest.mark.slow
def test_the_notebook_runs_and_shows_what_it_shows(tmp_path: Path) -> None:
    """Numbers, names of winners and verdicts may be others on another machine; all else comes out again."""
    again = [c for c in notebook.tidied(notebook.execute(tmp_path)).cells if c.cell_type == "code"]
    for shown, now in zip(CODE, again, strict=True):
        assert [masked(x) for x in printed(now)] == [masked(x) for x in printed(shown)]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_the_site_is_built_strictly_and_asks_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site, "PAGES", tmp_path / "build" / "pages")
    monkeypatch.setattr(site, "SITE", tmp_path / "site")
    site.lay_out()
    assert site.build() == 0
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) >= len(list(site.DOCS.rglob("*.md")))
    fetched = {
        place
        for path in (tmp_path / "site").rglob("*")
        if path.suffix in (".html", ".css")
        for found in FETCHED.findall(path.read_text("utf-8"))
        for place in found
        if place
    }
    assert fetched and not [p for p in fetched if re.match(r"(https?:)?//", p)]


@pytest.mark.parametrize(
    ("page", "text", "made"),
    [
        ("data.md", "see [files](files.md#a-run)", "see [files](files.md#a-run)"),
        ("decisions/0001.md", "[x](../files.md)", "[x](../files.md)"),
        ("index.md", "[README](../README.md)", "[README](readme.md)"),
        ("index.md", "[nb](notebook.ipynb)", "[nb](notebook.md)"),
        ("readme.md", "[tutorial](docs/tutorial.md)", "[tutorial](tutorial.md)"),
        ("readme.md", "the [law](LICENSE)", "the law"),
        ("data.md", "[card](../src/x/README.md)", "card"),
        ("data.md", "[hub](https://example.org)", "[hub](https://example.org)"),
        ("data.md", "```\n[x](y)\n```", "```\n[x](y)\n```"),
    ],
)
def test_links_lead_where_they_did(page: str, text: str, made: str) -> None:
    known = {"files.md", "readme.md", "notebook.md", "tutorial.md", "data.md", "index.md"}
    assert site.relinked(page, text, known) == made
