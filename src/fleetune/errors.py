"""Every error that Fleetune raises on purpose, and the exit code that the command line gives it.

    FleetuneError            1    a command failed
    |- SettingsError         2    a setting is wrong; names all that are wrong
    |- DataError             4    a data file is wrong; names file, line and column
    |- EnvironmentProblem    5    this machine lacks something: a package, a file, the network
    |- RefusedError          6    doing it would overwrite, mix or trust something that must not be

A message says the rule, the value and the remedy. `ValueError` is raised where a caller from Python passes a wrong
argument; `assert` marks states that cannot happen. Other exit codes: 0 done, 3 done but some trials failed, 75 stopped
and can be resumed, 130 and 143 ended by a signal.
"""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterable, Iterator, Sequence

DONE = 0
SOME_TRIALS_FAILED = 3
STOPPED = 75
INTERRUPTED = 130


class FleetuneError(Exception):
    """The root of the tree: something failed, and the message says what to do."""

    exit_code = 1


class SettingsError(FleetuneError):
    """Settings that cannot be used, all of them at once.

    where: the file or the command that holds them.
    problems: one sentence for each, with rule, value and remedy.
    """

    exit_code = 2

    def __init__(self, where: str, problems: Sequence[str]) -> None:
        self.where = where
        self.problems = tuple(one_line(problem) for problem in problems)
        super().__init__(_listing(where, self.problems))


class DataError(FleetuneError):
    """Data that cannot be used. Each problem starts with line and column where they are known."""

    exit_code = 4

    def __init__(self, where: str, problems: Sequence[str]) -> None:
        self.where = where
        self.problems = tuple(one_line(problem) for problem in problems)
        super().__init__(_listing(where, self.problems))


class EnvironmentProblem(FleetuneError):
    """This machine lacks what the command needs."""

    exit_code = 5


class RefusedError(FleetuneError):
    """The command would overwrite, mix or trust something that must not be."""

    exit_code = 6


# More would scroll the first, most useful ones off the screen.
MAX_PROBLEMS_SHOWN = 20
# A problem may quote what a file holds, and a cell may hold megabytes. Longer ones lose their middle: place and rule stand
# at the beginning, the remedy at the end.
MAX_PROBLEM_LENGTH = 1000


def one_line(text: str) -> str:
    """A sentence that quotes foreign text as one line: what does not print is escaped, so that nobody forges a line of ours."""
    if len(text) > MAX_PROBLEM_LENGTH:
        half = MAX_PROBLEM_LENGTH // 2
        text = f"{text[:half]} ... {text[-half:]}"
    return printable(text)


def printable(text: str) -> str:
    """The text with what does not print as escapes: it may not move a cursor, forge a line, or reorder what stands around it.

    XML has no place for most control characters either.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


# What ends a line, and what turns the direction of all that follows it.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def safe_text(text: str) -> str:
    """The text with what could move a cursor, forge a line or turn what stands around it as escapes, and all else as it is: an
    emoji's joiners and a hard blank do not print, and belong to their text."""
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def counted(n: int, noun: str) -> str:
    """So many of something whose plural takes an s."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def disk_error(error: BaseException) -> OSError | None:
    """Where a disk failed and not the network: the error in the chain that has a number and names a file that is there."""
    return next(
        (
            e
            for e in chain(error)
            if isinstance(e, OSError) and e.errno not in (None, errno.ENOENT) and e.filename
        ),
        None,
    )


def reason(error: Exception) -> str:
    """What an error says, without the number and the path that the system puts around it: the message names the file."""
    said = error.strerror if isinstance(error, OSError) else None
    return said.lower() if said else str(error)


def without_passwords(text: str) -> str:
    """The text, its addresses without user name and password."""
    return re.sub(r"(\w://)[^\s/]*@", r"\1", text)


def unreadable(path: object, error: Exception) -> DataError:
    """The error for a file of a run or a model that cannot be read."""
    return DataError(str(path), [f"unreadable: {reason(error)}; restore it from a copy"])


def _listing(where: str, problems: Sequence[str]) -> str:
    where = one_line(where)
    shown = [f"  - {problem}" for problem in problems[:MAX_PROBLEMS_SHOWN]]
    if len(problems) > MAX_PROBLEMS_SHOWN:
        shown.append(f"  ... and {len(problems) - MAX_PROBLEMS_SHOWN} more")
    return "\n".join([f"{where}: {counted(len(problems), 'problem')}", *shown])


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `, did you mean "x"?` for the nearest known name, or the whole choice when none is near."""
    choices = sorted(known)
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.6)
    if near:
        return f', did you mean "{near[0]}"?'
    return f"; choose from {', '.join(choices)}" if choices else ""
