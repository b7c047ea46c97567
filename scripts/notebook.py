"""docs/notebook.ipynb: run it in an empty folder and keep what came out, without what says more of the machine than of the run.

`python -m scripts.notebook`, a few minutes; the notebook itself is the source.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "notebook.ipynb"
SECONDS = 3600


def execute(folder: Path) -> Any:
    """The notebook with what came out when it was run in this folder."""
    notebook: Any = nbformat.read(NOTEBOOK, as_version=4)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    places = {"metadata": {"path": str(folder)}}
    client = NotebookClient(
        notebook, kernel_name="python3", timeout=SECONDS, startup_timeout=600, resources=places
    )
    client.execute()
    return notebook


def tidied(notebook: Any) -> Any:
    """Without times of execution and warnings of other packages, and with the metadata that the file had."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
    notebook.metadata.language_info = {"name": "python"}
    return notebook


def main() -> None:
    """Run the notebook and write it back."""
    with tempfile.TemporaryDirectory() as folder:
        found = tidied(execute(Path(folder)))
    nbformat.write(found, NOTEBOOK)


if __name__ == "__main__":
    main()
