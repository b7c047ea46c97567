"""The documents as a site of HTML pages, built by Sphinx with MyST and the furo theme (`make site`): build/site/index.html.

The pages of docs/ are read as they are on any forge. For the site they are laid out once more in build/pages, with README,
CONTRIBUTING and CHANGELOG beside them, and the notebook as a page; a link to what is no page becomes its name. Warnings are
errors, so a link or heading that is not there ends the build. Nothing is fetched when it is built, and its pages ask nobody
but their own folder.

Why Sphinx: it is kept up by many, its licence is BSD's, and it checks links and anchors. MkDocs has had no release since 2024
and Material for MkDocs is at its end; Zensical, which follows them, is not yet stable. MyST and furo have the MIT licence.
"""

from __future__ import annotations

import posixpath
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import nbformat

REPO = Path(__file__).resolve().parents[1]
DOCS, PAGES, SITE = REPO / "docs", REPO / "build" / "pages", REPO / "build" / "site"
BESIDE = {"README.md": "readme.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}  # fmt: skip
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
PICTURES = (".png", ".svg")
SETTINGS: dict[str, Any] = {
    "project": "Fleetune",
    "extensions": ["myst_parser"],
    "myst_heading_anchors": 4,
    "html_theme": "furo",
    "html_title": "Fleetune",
    "html_copy_source": False,
    "html_show_sphinx": False,
    "html_show_copyright": False,
    "smartquotes": False,
}


def lay_out() -> None:
    """Write the pages that Sphinx reads, from nothing."""
    shutil.rmtree(PAGES, ignore_errors=True)
    texts = {p.relative_to(DOCS).as_posix(): p.read_text("utf-8") for p in DOCS.rglob("*.md")}
    texts |= {new: (REPO / old).read_text("utf-8") for old, new in BESIDE.items()}
    texts["notebook.md"] = notebook_page(DOCS / "notebook.ipynb")
    known = set(texts) | {
        p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*") if p.suffix in PICTURES
    }
    texts["index.md"] += contents(sorted(texts, key=lambda n: order(n, texts["index.md"])))
    for name, text in texts.items():
        path = PAGES / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(relinked(name, text, known), encoding="utf-8")
    for path in DOCS.rglob("*"):
        if path.suffix in PICTURES:
            target = PAGES / path.relative_to(DOCS)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)


def order(name: str, index: str) -> tuple[int, str]:
    """The place of a page in the reading order of docs/index.md; what it does not name comes last."""
    old = {new: f"../{old}" for old, new in BESIDE.items()}.get(name, name)
    old = "notebook.ipynb" if name == "notebook.md" else old
    at = index.find(f"]({old}")
    return (at if at >= 0 else len(index), name)


def contents(names: list[str]) -> str:
    """The table of contents for the sidebar."""
    entries = "\n".join(n.removesuffix(".md") for n in names if n != "index.md")
    return f"\n\n```{{toctree}}\n:hidden:\n\n{entries}\n```\n"


def relinked(name: str, text: str, known: set[str]) -> str:
    """A page with links as they are in the layout; what is no page there stands as its name."""
    folder = "" if name in BESIDE.values() else posixpath.join("docs", posixpath.dirname(name))

    def link(found: re.Match[str]) -> str:
        picture, told, target = found.groups()
        if re.match(r"[a-z]+:|#", target):
            return found[0]
        path, hash_, anchor = target.partition("#")
        place = posixpath.normpath(posixpath.join(folder, path))
        place = BESIDE.get(place, place.removeprefix("docs/"))
        place = place.replace("notebook.ipynb", "notebook.md")
        if place not in known:
            return told
        here = posixpath.relpath(place, posixpath.dirname(name) or ".")
        return f"{picture}[{told}]({here}{hash_}{anchor})"

    parts = FENCE.split(text)
    return "".join(p if p.startswith("```") else LINK.sub(link, p) for p in parts)


def notebook_page(path: Path) -> str:
    """A notebook as Markdown: cells of code, and what came out of them as text."""
    notebook: Any = nbformat.read(path, as_version=4)
    parts: list[str] = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        told = "".join(
            out.text if out.output_type == "stream" else f"{out.data['text/plain']}\n"
            for out in cell.outputs
        )
        if told:
            parts.append(f"```text\n{told.rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def build() -> int:
    """Build the site from the layout; 0 where nothing was to warn of."""
    from sphinx.application import Sphinx

    shutil.rmtree(SITE, ignore_errors=True)
    app = Sphinx(
        srcdir=PAGES, confdir=None, outdir=SITE, doctreedir=PAGES.parent / "doctrees",
        buildername="html", confoverrides=SETTINGS, warningiserror=True, status=None, freshenv=True,
    )  # fmt: skip
    app.build()
    return app.statuscode


def main() -> None:
    """Lay out, build, and say where it is."""
    lay_out()
    code = build()
    if code == 0:
        sys.stdout.write(f"{SITE / 'index.html'}\n")
    sys.exit(code)


if __name__ == "__main__":
    main()
