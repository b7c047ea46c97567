"""The command `fleetune`: every command is thin and imports what is heavy only when it runs.

Data goes to stdout, everything else to stderr. Exit codes: see errors.py.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from typing import Any

import typer

from fleetune import __version__
from fleetune.errors import INTERRUPTED, STOPPED, EnvironmentProblem, FleetuneError

# A disk that is full, a quota or a limit that is reached.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What a disk does that was well before.
_LASTING = (*_FULL, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM)

app = typer.Typer(
    name="fleetune",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Fine-tune a fleet of small adapters on one frozen encoder, and say honestly which one is best.",
)


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"fleetune {__version__}\n")
        raise typer.Exit


# Where these stopped, the same command goes on; what the others had begun is not kept.
_GO_ON = ("demo", "train", "study")
_command: str | None = None


@app.callback()
def _root(
    context: typer.Context,
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    del version
    global _command
    _command = context.invoked_subcommand


def main() -> None:
    """Run the command line; the process ends with one of the exit codes of errors.py."""
    from fleetune.cli import (
        demo,
        evaluate,
        export,
        info,
        predict,
        report,
        serve,
        show,
        study,
        train,
    )
    from fleetune.cli.shell import finish

    for module in (demo, train, study, show, report, predict, evaluate, export, serve, info):
        module.register(app)
    finish(app)
    _open_closed()
    signal.signal(signal.SIGTERM, _terminated)
    # Warnings of libraries are for those who program with them; FLEETUNE_WARNINGS=1 brings them back.
    if not os.environ.get("FLEETUNE_WARNINGS"):
        import warnings

        warnings.simplefilter("ignore")
    try:
        app()
    except FleetuneError as error:
        _last_word(str(error))
        sys.exit(error.exit_code)
    except SystemExit as end:
        # typer makes this of Ctrl-C, and says nothing.
        if end.code == INTERRUPTED:
            # What is left after the last word is the interpreter's own end.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            _last_word(f"interrupted{_going_on('; ')}")
        raise
    except BrokenPipeError:
        # The reader of our output has gone (`| head`); nothing more can be said.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        _last_word(_disk_problem(error))
        sys.exit(EnvironmentProblem.exit_code)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        _last_word(f"out of memory{_going_on('; ')}; there may be more of it when others need less")
        sys.exit(STOPPED)


def _last_word(text: str) -> None:
    """Say why the command ends; where stderr is what is full or closed, the exit code alone says it."""
    from fleetune.cli.options import say

    try:
        say(f"fleetune: {text}")
        sys.stderr.flush()
    except OSError:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def _disk_problem(error: OSError) -> str:
    """Which file, what is wrong, how much is free there, and what to do."""
    place = f"{error.filename}: " if error.filename else ""
    remedy = "give another place, or mend this one"
    if error.errno in _FULL:
        remedy = "make room"
    if error.errno in _LASTING:
        remedy += _going_on(", and ")
    free = _free(error.filename) if error.errno in (*_FULL, *_LASTING) else ""
    return f"{place}{error.strerror or error}{free}; {remedy}"


def _free(name: Any) -> str:
    """The free bytes of the disk that a path is on."""
    if not isinstance(name, str):
        return ""
    place = os.path.abspath(name)
    while not os.path.isdir(place) and place != os.path.dirname(place):
        place = os.path.dirname(place)
    try:
        found = os.statvfs(place)
    except OSError:
        return ""
    return f" ({found.f_bavail * found.f_frsize:,} bytes free)"


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return True
    # torch is loaded where its errors come from, and only then.
    if "torch" not in sys.modules:
        return False
    from fleetune.backbone.shortage import is_out_of_memory

    return is_out_of_memory(error)


def _terminated(number: int, frame: Any) -> None:
    del frame
    sys.stderr.write(f"fleetune: terminated{_going_on('; ')}\n")
    sys.exit(128 + number)


def _going_on(link: str) -> str:
    """What follows from being stopped, after a link to what stands before it; empty where nothing was kept."""
    run = sys.modules.get("fleetune.study.run")
    begun = run is not None and run.Run.begun and _command in _GO_ON
    return f"{link}the same command goes on from here" if begun else ""


def _open_closed() -> None:
    """A stream that the caller closed (`>&-`) is None here; nobody reads it, and a file opened later must not take its place."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115


if __name__ == "__main__":
    main()
