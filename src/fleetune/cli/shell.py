"""What every command has besides its own work: examples in its help, the nearest flag for a wrong one, completion of names."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand

# What other programs call a flag, and what it is here.
OTHER_NAMES = {
    "--lr": "--learning-rate",
    "--epochs": "--num-train-epochs",
    "--steps": "--max-steps",
    "--batch-size": "--per-device-train-batch-size",
    "--grad-accum": "--gradient-accumulation-steps",
    "--warmup": "--warmup-steps",
    "--warmup-ratio": "--warmup-steps",
    "--scheduler": "--lr-scheduler-type",
    "--model": "--backbone",
    "--model-name": "--backbone",
    "--model-name-or-path": "--backbone",
    "--encoder": "--backbone",
    "--dataset": "--task",
    "--task-name": "--task",
    "--train-file": "--data",
    "--file": "--data",
    "--validation-file": "--test-data",
    "--test-file": "--test-data",
    "--max-seq-length": "--max-length",
    "--out": "--output",
    "--out-dir": "--output-dir",
    "--output-path": "--output-dir",
    "--peft": "--method",
    "--rank": "--set",
    "--r": "--set",
    "--lora-r": "--set",
    "--lora-alpha": "--set",
    "--lora-dropout": "--set",
    "--target-modules": "--set",
    "--bf16": "--dtype",
    "--fp16": "--dtype",
    "--gpu": "--device",
    "--cuda": "--device",
}
# What a word that no command expects was meant for.
_WORDS = {"predict": "a text is given with --text, a file of texts with --input"}
# The table of methods imports torch, which a pressed tab does not wait for; a test compares the two.
METHODS = ("bitfit", "full", "head", "lora")
DTYPES = ("auto", "bfloat16", "float32", "float64")


class Command(TyperCommand):
    """A command that answers a wrong flag with the right one."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As the base class; a flag of another program is answered with ours, and a word too many with its place.

        Of a flag that takes one value the last counts, as everywhere. Not of --task: who gives two wants both.
        """
        given = list(args)
        try:
            found = super().parse_args(ctx, args)  # which --help does not leave
            if not ctx.resilient_parsing:
                _refuse_second_task(ctx, self.make_parser(ctx), given)
            return found
        except Exception as error:
            # The class lies in click, or in typer's own copy of it, by the version.
            if type(error).__name__ == "NoSuchOption":
                _point_out(error, {flag for p in self.params for flag in p.opts})
            elif "unexpected extra argument" in str(error):
                remedy = _WORDS.get(self.name or "", "words that belong together stand in quotes")
                error.message = f"{error.message}; {remedy}"  # type: ignore[attr-defined]
            raise


def _refuse_second_task(ctx: Any, parser: Any, args: list[str]) -> None:
    if any(word.partition("=")[0] == "--task" for word in args):
        _, _, order = parser.parse_args(args)
        if sum(param.name == "task" for param in order) > 1:
            told = "several are trained by a study (docs/studies.md), or by a command each"
            ctx.fail(f"--task takes one task; {told}")


def _point_out(error: Any, known: set[str]) -> None:
    from fleetune.config import instead_of

    other = OTHER_NAMES.get(error.option_name.replace("_", "-"))
    told = instead_of(error.option_name.lstrip("-").replace("-", "_"))
    dashed = error.option_name.replace("_", "-")
    if dashed in known:
        error.possibilities = [dashed]
    elif other in known:
        error.possibilities = [other]
    elif told is not None and "--num-train-epochs" in known:  # a command that trains
        error.message, error.possibilities = f"{error.message.rstrip('.')}; {told}", None
    elif error.possibilities:
        error.possibilities = [p for p in error.possibilities if p != "--help"] or None


def finish(app: typer.Typer) -> None:
    """Give the registered commands their class, and their examples a line each in the help."""
    for command in app.registered_commands:
        command.cls = Command
        command.help = help_of(command.callback)


def help_of(call: Callable[..., Any] | None) -> str:
    """A docstring as help: prose flows, and each `Example: ...` stands on a line of its own."""
    parts = re.split(r"\n\s*\n", inspect.cleandoc((call and call.__doc__) or ""))
    prose = [p for p in parts if not p.startswith("Example")]
    examples = [line for p in parts if p.startswith("Example") for line in p.splitlines()]
    lines = [f"  {line.removeprefix('Example:').strip()}" for line in examples]
    if lines:
        # \b keeps click from flowing the lines together.
        prose.append("\n".join(["\b", "Examples:" if len(lines) > 1 else "Example:", *lines]))
    return "\n\n".join(prose)


def tasks(incomplete: str) -> list[str]:
    """Completion of --task."""
    from fleetune.data.load import TASK_NAMES

    return _starting(incomplete, TASK_NAMES)


def methods(incomplete: str) -> list[str]:
    """Completion of --method, also of the last of several with commas."""
    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in METHODS if name.startswith(last)]


def choices(*names: str) -> Callable[[str], list[str]]:
    """Completion of a flag with a few fixed values."""
    return lambda incomplete: _starting(incomplete, names)


def _starting(incomplete: str, names: tuple[str, ...]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
