"""Pictures for the documents, of a real run: the report as a browser shows it.

`python -m scripts.pictures RUN` writes docs/pictures/report.png and report-phone.png with Chromium, by default of runs/demo, the
folder that `make demo` fills. The command that made a picture stands beneath it in the documents.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from fleetune.report.page import write_report

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "pictures"
# (file, width, height): what is seen before anything is scrolled, and two screens of a phone.
VIEWS = (("report.png", 1180, 900), ("report-phone.png", 390, 1000))


def draw(run: Path) -> list[Path]:
    """Write the pictures of a run's report; their paths."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    FOLDER.mkdir(exist_ok=True)
    found: list[Path] = []
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page = write_report(run, Path(folder) / "report.html")
        opened = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        for name, width, height in VIEWS:
            tab = opened.new_page(viewport={"width": width, "height": height})
            tab.goto(page.as_uri())
            tab.screenshot(path=FOLDER / name)
            found.append(FOLDER / name)
        opened.close()
    return found


if __name__ == "__main__":
    for path in draw(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo")):
        sys.stdout.write(f"{path}\n")
