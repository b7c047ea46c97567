"""Fleetune: fine-tune a fleet of small adapters on one frozen encoder, and say honestly which one is best.

    import fleetune

    found = fleetune.train("reviews.csv", methods=["bitfit", "lora"], seeds=5, output_dir="runs/reviews")
    print(found)
    fleetune.load("runs/reviews").predict(["Not once in three years has it let me down."])

`train`, `study`, `load`, `compare` and `Result` come from api.py when they are first used (PEP 562), so that importing the
package loads nothing heavy. docs/python.md shows each.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fleetune.api import Result as Result
    from fleetune.api import compare as compare
    from fleetune.api import load as load
    from fleetune.api import study as study
    from fleetune.api import train as train

__version__ = "0.1.0"
__all__ = ("Result", "__version__", "compare", "load", "study", "train")

if not TYPE_CHECKING:  # a checker that saw it would take every misspelt name for one that exists

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module("fleetune.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _StudyFolder(ModuleType):
    """The folder study/, which can be called as the function of the same name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return import_module("fleetune.api").study(*args, **kwargs)


class _Package(ModuleType):
    """This package. Importing a module of study/ binds `fleetune.study` to the folder; it must still be the function."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "study" and isinstance(value, ModuleType):
            value.__class__ = _StudyFolder
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
