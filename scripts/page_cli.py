"""docs/cli.md: every command with its synopsis, arguments, options, defaults, examples and exit codes.

Commands are found as modules of `fleetune.cli` that have `register` and that `main` registers; a new one needs no change here.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import pkgutil
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_origin
from unittest import mock

import typer
from typer.main import get_command_name, get_params_from_function
from typer.models import ArgumentInfo, OptionInfo, ParameterInfo, ParamMeta

import fleetune.cli
from fleetune import errors
from fleetune.cli import main
from scripts import markdown as md


@dataclass(frozen=True)
class Parameter:
    """An argument or option as a user meets it."""

    name: str
    """Of an argument its name in capitals; of an option its first flag."""
    flags: tuple[str, ...]
    """Every spelling, `--no-...` included; empty for an argument."""
    value: str
    """What follows the flag; empty for a switch."""
    help: str
    default: str
    required: bool
    repeated: bool
    panel: str


@dataclass(frozen=True)
class Command:
    """One command of the command line."""

    name: str
    module: ModuleType
    call: Callable[..., Any]
    parameters: tuple[Parameter, ...]

    @property
    def summary(self) -> list[str]:
        """The docstring's paragraphs without its examples."""
        text = re.split(r"\n\s*\n", inspect.cleandoc(self.call.__doc__ or ""))
        return [part for part in text if not part.startswith("Example")]

    @property
    def examples(self) -> list[str]:
        """The command lines that the docstring gives."""
        text = inspect.cleandoc(self.call.__doc__ or "")
        return re.findall(r"(?:^|\s)(fleetune .*)$", text, re.MULTILINE)

    @property
    def arguments(self) -> list[Parameter]:
        return [p for p in self.parameters if not p.flags]

    @property
    def options(self) -> list[Parameter]:
        return [p for p in self.parameters if p.flags]


def registered() -> frozenset[str]:
    """The names of the commands that `main` offers: it is run for its help, on an app of ours."""
    app = typer.Typer(callback=lambda: None)
    with (
        mock.patch.object(main, "app", app),
        mock.patch.object(main.signal, "signal"),
        mock.patch.object(sys, "argv", ["fleetune", "--help"]),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.suppress(SystemExit),
        warnings.catch_warnings(),
    ):
        main.main()
    return frozenset(entry.name or "" for entry in app.registered_commands)


def commands() -> list[Command]:
    """Every command, by name."""
    found: list[Command] = []
    offered = registered()
    for info in pkgutil.iter_modules(fleetune.cli.__path__):
        module = importlib.import_module(f"fleetune.cli.{info.name}")
        if not hasattr(module, "register"):
            continue
        app = typer.Typer()
        module.register(app)
        for entry in app.registered_commands:
            assert entry.callback is not None
            name = entry.name or get_command_name(entry.callback.__name__)
            parameters = get_params_from_function(entry.callback)
            found.append(
                Command(name, module, entry.callback, tuple(_parameters(parameters.values())))
            )
    return sorted((c for c in found if c.name in offered), key=lambda command: command.name)


def _parameters(metas: Any) -> Iterator[Parameter]:
    for meta in metas:
        if isinstance(meta.default, ParameterInfo):
            yield _parameter(meta, meta.default)


def _parameter(meta: ParamMeta, info: ParameterInfo) -> Parameter:
    # typer fills in what `Annotated` leaves out: the default of the function's own signature.
    required = info.default is ...
    value = None if required or callable(info.default) else info.default
    single, repeated = _inner(meta.annotation)
    text, panel = info.help or "", getattr(info, "rich_help_panel", None) or ""
    if isinstance(info, ArgumentInfo):
        name = meta.name.upper().rstrip("_")
        return Parameter(name, (), "", text, _default(value), required, repeated, panel)
    assert isinstance(info, OptionInfo)
    plain = meta.name.replace("_", "-")
    # typer gives a switch without declared flags a second one that turns it off.
    own = list(info.param_decls or ()) or [
        f"--{plain}/--no-{plain}" if single is bool else f"--{plain}"
    ]
    flags = tuple(flag for declared in own for flag in declared.split("/"))
    kind = "" if single is bool else _VALUES.get(single, "TEXT")
    return Parameter(flags[0], flags, kind, text, _default(value), required, repeated, panel)


_VALUES: dict[Any, str] = {int: "INTEGER", float: "NUMBER", Path: "PATH"}


def _inner(annotation: Any) -> tuple[Any, bool]:
    """The type of one value, and whether the parameter may be given several times."""
    members = [a for a in get_args(annotation) if a is not type(None)]
    if get_origin(annotation) is list:
        return members[0], True
    return _inner(members[0]) if members else (annotation, False)


def _default(value: Any) -> str:
    if value is None or value is False or value == []:
        return "-"
    return md.code(md.shown(value))


def synopsis(command: Command) -> str:
    """The command with what it must be given."""
    words = ["fleetune", command.name]
    words += [p.name if p.required else f"[{p.name}]" for p in command.arguments]
    words += [f"{p.name} {p.value}" for p in command.options if p.required]
    return " ".join([*words, "[OPTIONS]"])


def exit_codes() -> list[tuple[str, str]]:
    """(code, meaning) of all commands, from `errors`."""
    kinds = {
        errors.FleetuneError: "failed",
        errors.SettingsError: "wrong usage, or a setting that cannot be used",
        errors.DataError: "a data file or a saved file that cannot be used",
        errors.EnvironmentProblem: "this machine lacks something: a package, a file, the network",
        errors.RefusedError: "refused: it would overwrite, mix or trust something that must not be",
    }
    codes = {errors.DONE: "done", **{kind.exit_code: text for kind, text in kinds.items()}}
    codes[errors.SOME_TRIALS_FAILED] = "done, but some trials failed"
    goes_on = "the same train, study or demo goes on from here"
    codes[errors.STOPPED] = f"out of memory; {goes_on}"
    codes[errors.INTERRUPTED] = f"interrupted (Ctrl-C); {goes_on}"
    codes[143] = f"ended by SIGTERM; {goes_on}"
    return [(str(code), text) for code, text in sorted(codes.items())]


# Which codes only some commands give: those whose module names the constant.
_RARE = {"SOME_TRIALS_FAILED": str(errors.SOME_TRIALS_FAILED)}


def codes_of(command: Command) -> list[str]:
    """The exit codes of one command."""
    absent = {code for name, code in _RARE.items() if not hasattr(command.module, name)}
    return [code for code, _ in exit_codes() if code not in absent]


def render() -> str:
    """The page."""
    found = commands()
    parts = [
        md.paragraph(
            "Data goes to stdout, everything else to stderr. `--help` after any command prints what stands here; "
            "`fleetune --version` prints the version. Flags may stand in any order. `fleetune --install-completion` "
            "sets up completion of commands, flags, tasks and methods in your shell, and `--show-completion` prints it."
        ),
        md.table(
            ["command", "does"],
            [[f"[`{c.name}`](#fleetune-{c.name})", c.summary[0]] for c in found],
        ),
        "## Exit codes",
        md.table(["code", "meaning"], exit_codes()),
        "## Environment variables",
        md.table(["variable", "meaning"], _VARIABLES),
    ]
    for command in found:
        parts += _section(command)
    return md.page("Command line", parts)


_VARIABLES = (
    ("`FLEETUNE_CACHE`", "folder of tokenised data; else `$XDG_CACHE_HOME/fleetune`, else `~/.cache/fleetune`"),
    ("`FLEETUNE_WARNINGS`", "set to 1, warnings of libraries are printed"),
    ("`HF_ENDPOINT`", "address of the hub, where it is another one"),
    ("`HF_HUB_OFFLINE`", "set to 1, nothing is asked of the hub and only its cache is read"),
    ("`HF_TOKEN`", "token for gated and private models"),
)  # fmt: skip


def _section(command: Command) -> list[str]:
    parts = [f"## fleetune {command.name}", *map(md.paragraph, command.summary)]
    parts.append(md.block(synopsis(command), "text"))
    if command.examples:
        parts.append(md.block("\n".join(f"$ {line}" for line in command.examples)))
    if command.arguments:
        rows = [[_name(p), p.help, p.default] for p in command.arguments]
        parts.append(md.columns(["argument", "meaning", "default"], rows))
    for panel in dict.fromkeys(p.panel for p in command.options):
        if panel:
            parts.append(
                f"### {panel} settings of {command.name}\n\nAlso in [settings](settings.md)."
            )
        rows = [[_name(p), p.help, p.default] for p in command.options if p.panel == panel]
        parts.append(md.columns(["option", "meaning", "default"], rows))
    parts.append(f"Exit codes: {', '.join(codes_of(command))}.")
    return parts


def _name(parameter: Parameter) -> str:
    if not parameter.flags:
        return md.code(parameter.name) + (" (required)" if parameter.required else "")
    told = ", ".join(md.code(flag) for flag in parameter.flags)
    value = f" {parameter.value}" if parameter.value else ""
    marks = [
        mark
        for mark, here in (("required", parameter.required), ("repeatable", parameter.repeated))
        if here
    ]
    return told + value + (f" ({', '.join(marks)})" if marks else "")
