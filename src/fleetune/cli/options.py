"""What several commands share: where data and backbone come from, training settings as flags, `--set`."""

from __future__ import annotations

import difflib
import inspect
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer

from fleetune.cli import shell
from fleetune.config import TrainingSettings
from fleetune.errors import SettingsError, did_you_mean, printable

Task = Annotated[
    str | None,
    typer.Option(
        help="A GLUE task (cola, sst2, mrpc, qqp, stsb, mnli, qnli, rte, wnli), demo-sentiment or demo-entailment.",
        autocompletion=shell.tasks,
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the task in GLUE's TSV layout, or its parent; without it the hub is asked."
    ),
]
DataFile = Annotated[
    Path | None,
    typer.Option("--data", help="Own rows instead of a task: CSV, TSV, JSONL or Parquet."),
]
TextColumn = Annotated[
    list[str] | None,
    typer.Option(help="Column of the text; twice for pairs. Guessed from the names when left out."),
]
OwnFile = Annotated[
    str | None,
    typer.Argument(
        metavar="[FILE]",
        help="Own rows, as --data: CSV, TSV, JSONL or Parquet; or the name of a task.",
    ),
]
LabelColumn = Annotated[
    str | None, typer.Option(help="Column of the label. Guessed when left out.")
]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="Compute dtype of the encoder: auto, bfloat16, float32 or float64.",
        autocompletion=shell.choices(*shell.DTYPES),
    ),
]
Device = Annotated[
    str,
    typer.Option(
        help="cpu, or cuda where there is one.", autocompletion=shell.choices("cpu", "cuda")
    ),
]
ReportTo = Annotated[
    list[str] | None,
    typer.Option(
        help="Also write what is found for TensorBoard or trackio: tensorboard, trackio, or both with a comma. Default: none.",
        autocompletion=shell.choices("tensorboard", "trackio"),
    ),
]
SaveSteps = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Also save where the trials stand after so many optimizer steps of one. Without it: where an epoch ends, every "
        "five minutes, and on Ctrl-C or SIGTERM. Changes no number.",
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Print trials, cohorts, parameters, and estimates of time, memory and disk; write nothing.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of a table.")]


def check_destination(command: str, output_dir: Path | None, dry_run: bool) -> None:
    """SettingsError where a run has no place to be in, and is not only to be looked at."""
    if output_dir is None and not dry_run:
        raise SettingsError(command, ["--output-dir is needed, or --dry-run to see what would run"])


def with_training_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one flag for each training setting; it receives those that were used as `training`.

    The command's own last parameter must be `training`.
    """
    signature = inspect.signature(command, eval_str=True)
    own = [p for p in signature.parameters.values() if p.name != "training"]
    flags = [_flag(name) for name in TrainingSettings.model_fields]

    def run(**values: Any) -> None:
        used = {p.name: values.pop(p.name) for p in flags}
        training = {name: value for name, value in used.items() if value is not None}
        if isinstance(kwargs := training.get("lr_scheduler_kwargs"), str):
            training["lr_scheduler_kwargs"] = _json_object("lr_scheduler_kwargs", kwargs)
        command(**values, training=training)

    run.__signature__ = signature.replace(parameters=[*own, *flags])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in (*own, *flags)}
    run.__doc__ = command.__doc__
    run.__name__ = command.__name__
    return run


def _flag(name: str) -> inspect.Parameter:
    field = TrainingSettings.model_fields[name]
    default = field.get_default(call_default_factory=True)
    shown = "" if default is None or default == {} else f" Default: {default}."
    flag = f"--{name.replace('_', '-')}"
    kind = _flag_type(field.annotation)
    if kind is bool:
        flag = f"{flag}/--no-{name.replace('_', '-')}"
    option = typer.Option(
        flag, help=f"{field.description}{shown}", show_default=False, rich_help_panel="Training"
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, option],
    )


def _flag_type(annotation: Any) -> type:
    """The type that a flag is read as: a union's first member, a literal as text, a dictionary as JSON text."""
    if annotation in (int, float, bool, str):
        return annotation
    members = [a for a in get_args(annotation) if a is not type(None)]
    if get_origin(annotation) is not None and members and members[0] in (int, float, bool, str):
        return members[0]
    return str


def parse_set(pairs: Sequence[str], methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`--set r=2` for every method that knows `r`; `--set lora.r=2` for one. Returns settings by method.

    Values are read as JSON where they are JSON (2, 0.1, true, ["query"]), and as text otherwise. SettingsError for a
    key that no named method knows.
    """
    from fleetune.methods.table import method_class

    classes = {name: method_class(name) for name in methods}
    found: dict[str, dict[str, Any]] = {name: {} for name in methods}
    problems: list[str] = []
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            problems.append(f"--set {pair}: must have the form key=value")
            continue
        prefix, dot, rest = key.rpartition(".")
        targets = [prefix] if dot else [n for n, c in classes.items() if rest in c.model_fields]
        if dot and prefix not in classes:
            problems.append(
                f'--set {pair}: method "{prefix}" is not trained here{did_you_mean(prefix, classes)}'
            )
            continue
        if not targets or (dot and rest not in classes[prefix].model_fields):
            known = [
                f for n, c in classes.items() if not dot or n == prefix for f in c.model_fields
            ]
            hint = _training_hint(rest) or _nearest(rest, set(known))
            problems.append(
                f"--set {pair}: unknown setting of {', '.join([prefix] if dot else methods)}{hint}"
            )
            continue
        for name in targets:
            found[name][rest] = _value(text)
    if problems:
        raise SettingsError("--set", problems)
    return found


# What other tools and papers call them.
_OTHER_NAMES = {
    "rank": "r",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "targets": "target_modules",
}


def _nearest(name: str, known: set[str]) -> str:
    others = {other: own for other, own in _OTHER_NAMES.items() if own in known}
    near = difflib.get_close_matches(name, [*known, *others], n=1, cutoff=0.6)
    return (
        f', did you mean "{others.get(near[0], near[0])}"?' if near else did_you_mean(name, known)
    )


def _training_hint(name: str) -> str:
    return (
        f"; it is a training setting: --{name.replace('_', '-')}"
        if name in TrainingSettings.model_fields
        else ""
    )


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _json_object(name: str, text: str) -> dict[str, Any]:
    value = _value(text)
    if not isinstance(value, dict):
        raise SettingsError(
            "training",
            [f'{name}: must be a JSON object such as {{"min_lr": 1e-5}}, but got {text!r}'],
        )
    return value


def out(text: str, *, flush: bool = False) -> None:
    """Print data; flush: at once, for a reader that waits for it."""
    sys.stdout.write(f"{_written(text, sys.stdout.encoding)}\n")
    if flush:
        sys.stdout.flush()


def _written(text: str, encoding: str | None) -> str:
    """A text as a stream can hold it: what its encoding lacks as JSON escapes, which are right within JSON too."""
    try:
        text.encode(encoding or "utf-8")
    except UnicodeEncodeError:
        return "".join(c if _holds(encoding, c) else json.dumps(c)[1:-1] for c in text)
    return text


def _holds(encoding: str | None, character: str) -> bool:
    try:
        character.encode(encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def say(text: str) -> None:
    """Print talk."""
    sys.stderr.write(f"{visible_lines(text)}\n")


def shortened(text: str) -> str:
    """A text of the user's, as far as a table or a sentence has room for it."""
    return text if len(text) <= 60 else f"{text[:57]}..."


def terminal_width() -> int | None:
    """Columns of the terminal that data goes to; None where it goes elsewhere, and may be as wide as it is."""
    if not sys.stdout.isatty():
        return None
    return shutil.get_terminal_size().columns


def tell_cut(count: int, what: str, max_length: int) -> None:
    """That rows lost their end; silent where none did."""
    from fleetune.data.notes import cut_rows

    if count:
        say(cut_rows(count, what, max_length))


def dump(value: Any) -> None:
    """Print a value as JSON for machines."""
    out(visible_json(json.dumps(value, indent=2, ensure_ascii=False)))


def visible_lines(text: str) -> str:
    """Several lines with what else could move the cursor escaped.

    Lines of ours that follow the first are indented; one that is not came in with a name, and is no line.
    """
    first, *rest = text.split("\n")
    told = [first]
    for line in rest:
        if not line or line.startswith("  "):
            told.append(line)
        else:
            told[-1] += f"\n{line}"
    return "\n".join(printable(line) for line in told)


def visible_json(text: str) -> str:
    """The same JSON with everything escaped that does not print; JSON itself leaves some of it raw."""
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def split_names(values: Sequence[str]) -> list[str]:
    """`bitfit,lora` as two names."""
    return [part.strip() for value in values for part in value.split(",") if part.strip()]
