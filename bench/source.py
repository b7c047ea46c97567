"""The package from another source tree, side by side with the installed one in one process.

Each tree has its own set of modules; `active()` puts it into `sys.modules`, and its attention into transformers' registry, for as
long as it lasts. Objects made under a tree keep the functions of that tree.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

PACKAGE = "fleetune"
ROOT = Path(__file__).resolve().parents[1]


class Source:
    """One tree. where: None for the installed package, a folder that holds `fleetune/`, or a git revision."""

    def __init__(self, where: str | None) -> None:
        self._modules: dict[str, ModuleType] = {}
        self._folder: Path | None = None
        if where is not None:
            folder = Path(where)
            self._folder = folder if (folder / PACKAGE).is_dir() else self._archived(where)

    def _archived(self, revision: str) -> Path:
        done = subprocess.run(
            ["git", "-C", str(ROOT), "archive", revision, "src"], capture_output=True
        )
        if done.returncode:
            raise ValueError(
                f"`tree` must be a folder that holds {PACKAGE}/, or a git revision; got {revision!r}."
            )
        self._kept = tempfile.TemporaryDirectory(prefix="fleetune-tree-")
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
            archive.extractall(self._kept.name, filter="data")
        return Path(self._kept.name) / "src"

    @contextmanager
    def active(self) -> Generator[None]:
        """`import fleetune` means this tree."""
        if self._folder is None:
            _register()
            yield
            return
        others = _take()
        sys.modules.update(self._modules)
        sys.path.insert(0, str(self._folder))
        _register()
        try:
            yield
        finally:
            sys.path.remove(str(self._folder))
            self._modules = _take()
            sys.modules.update(others)


def _take() -> dict[str, ModuleType]:
    """The package's modules, taken out of `sys.modules`."""
    names = [n for n in sys.modules if n == PACKAGE or n.startswith(f"{PACKAGE}.")]
    return {name: sys.modules.pop(name) for name in names}


def _register() -> None:
    """transformers knows attention by name, and the tree that was imported last has the name."""
    attention = sys.modules.get(f"{PACKAGE}.backbone.attention")
    if attention is not None:
        from transformers import AttentionInterface

        AttentionInterface.register(attention.NAME, attention.packed_attention)
