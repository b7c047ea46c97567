"""Write the pages of docs/ that come from the code: `python -m scripts.docs`, or `make docs`.

`--check` writes nothing and exits 1 when a page is not what the code says now.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from scripts import page_cli, page_methods, page_settings

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES: dict[str, Callable[[], str]] = {
    "cli.md": page_cli.render,
    "methods.md": page_methods.render,
    "settings.md": page_settings.render,
}


def stale() -> dict[str, str]:
    """Each page that is not what the code says now, with what it should be."""
    made = {name: render() for name, render in PAGES.items()}
    return {name: text for name, text in made.items() if _there(name) != text}


def _there(name: str) -> str | None:
    path = DOCS / name
    return path.read_text(encoding="utf-8") if path.is_file() else None


def main(words: list[str]) -> int:
    """Write what is stale, or say so; the exit code."""
    if words not in ([], ["--check"]):
        sys.stderr.write("usage: python -m scripts.docs [--check]\n")
        return 2
    found = stale()
    for name, text in found.items():
        if not words:
            (DOCS / name).write_text(text, encoding="utf-8")
        sys.stderr.write(f"docs/{name}: {'stale; run make docs' if words else 'written'}\n")
    return int(bool(words and found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
