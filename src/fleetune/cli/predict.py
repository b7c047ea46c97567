"""`fleetune predict`: labels and probabilities of new texts."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from fleetune.cli.options import (
    AsJson,
    Device,
    Dtype,
    out,
    say,
    shortened,
    tell_cut,
    visible_json,
)
from fleetune.errors import DataError, RefusedError, SettingsError, counted

# Other formats that a table is looked for in: JSON Lines under such a name could not be opened.
_NOT_WRITTEN = (".tsv", ".parquet", ".xlsx")
# A file of a run lies in its folder, in one below, or in that of a trial.
_DEEPEST = 3
# What is written of every prediction, in one format or another.
_OWN = ("label", "probability", "probabilities")


def register(app: typer.Typer) -> None:
    app.command("predict")(predict)


def predict(
    model: Annotated[
        Path,
        typer.Argument(help="A trial's folder, one of export --format hf, or a run (its winner)."),
    ],
    text: Annotated[
        list[str] | None,
        typer.Option(help="A text; for a model of pairs give --text twice a pair."),
    ] = None,
    input_file: Annotated[
        Path | None, typer.Option("--input", help="CSV, TSV, JSONL or Parquet with texts.")
    ] = None,
    output_file: Annotated[
        Path | None,
        typer.Option(
            "--output",
            help="Write here instead of stdout: JSONL; or CSV with label and probability, where the name ends in .csv. A file "
            "that is there is replaced, but none in the folder of a run or a model.",
        ),
    ] = None,
    text_column: Annotated[
        list[str] | None,
        typer.Option(
            help="Column of the text in --input; twice for pairs. By default as it was called in training."
        ),
    ] = None,
    keep_column: Annotated[
        list[str] | None,
        typer.Option(
            help="Column of --input to copy beside each prediction, such as an id; give it again for more. Its cells are texts, "
            "integers or booleans, and in CSV and TSV may be empty."
        ),
    ] = None,
    dtype: Dtype = None,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Predict labels. Texts come from --text, or --input, or stdin, one a line.

    Example: fleetune predict runs/first --text "Not once in three years has it let me down."
    """
    kept = tuple(dict.fromkeys(keep_column or ()))
    if problems := _misused(text, input_file, output_file, text_column, kept, as_json):
        raise SettingsError("predict", problems)
    if output_file is not None:
        _check_output(output_file, input_file)
    from fleetune.serve.predictor import Predictor

    predictor = Predictor(model, dtype=dtype, device=device)
    (first, second), beside = _given(predictor, text, input_file, text_column, kept)
    found = predictor.predict(first, second)
    tell_cut(predictor.truncated, "the input", predictor.record.max_length)
    if output_file is not None:
        from fleetune.durable import write_bytes

        write_bytes(output_file, _file_of(found, beside, output_file.suffix.lower()).encode())
        say(f"{counted(len(found), 'prediction')} written to {output_file}")
    elif as_json:
        objects = [of_row | p.as_json() for of_row, p in zip(beside, found, strict=True)]
        out(visible_json(json.dumps(objects, ensure_ascii=False)))
    else:
        from fleetune.report.tables import grid

        pairs = [first] if second is None else [first, second]
        rows = [
            [
                *(
                    shortened(cell if isinstance(cell, str) else json.dumps(cell))
                    for cell in of_row.values()
                ),
                shortened(p.label),
                f"{max(p.probabilities.values()):.3f}" if p.probabilities else "",
                *(shortened(t) for t in texts),
            ]
            for of_row, p, texts in zip(beside, found, zip(*pairs, strict=True), strict=True)
        ]
        names = ("text", "second text")[: len(pairs)]
        out(grid([*kept, "label", "probability", *names], rows, right=(len(kept) + 1,)))
        if not found:
            say("there was no text, so nothing was predicted")
        elif input_file is None:
            say(
                f"next: fleetune predict {shlex.quote(str(model))} --input FILE --output labels.jsonl"
            )


def _misused(
    text: list[str] | None,
    input_file: Path | None,
    output_file: Path | None,
    columns: list[str] | None,
    kept: Sequence[str],
    as_json: bool,
) -> list[str]:
    """Flags that exclude one another."""
    problems: list[str] = []
    if text and input_file:
        problems.append("give --text or --input, and not both")
    if columns and input_file is None:
        problems.append("--text-column names a column of --input; leave it out, or give --input")
    if kept and input_file is None:
        problems.append("--keep-column names a column of --input; leave it out, or give --input")
    problems += [
        f'--keep-column "{name}": predictions have a {name} of their own; call the column otherwise in --input'
        for name in kept
        if name in _OWN
    ]
    if as_json and output_file:
        problems.append("--json prints and --output writes; give one of them")
    return problems


def _check_output(output: Path, source: Path | None) -> None:
    """What cannot or must not be written is said before the model is loaded."""
    from fleetune.artifact import layout
    from fleetune.durable import check_place
    from fleetune.study import journal

    if output.suffix.lower() in _NOT_WRITTEN:
        raise SettingsError(
            "predict",
            [f"--output {output}: CSV (.csv) and JSON Lines (.jsonl) can be written; give it such a name"],
        )  # fmt: skip
    if source is not None and source.resolve() == output.resolve():
        raise RefusedError(f"{output}: is the input; give --output another file")
    names = (journal.NAME, layout.RECORD)
    above = output.resolve().parents[:_DEEPEST]
    owners = (folder / name for folder in above for name in names)
    if output.is_file() and any(owner.is_file() for owner in owners):
        raise RefusedError(
            f"{output}: exists, in the folder of a run or a model; give --output another file"
        )
    check_place(output)


def _file_of(found: Sequence[Any], beside: Sequence[dict[str, Any]], ending: str) -> str:
    """The content of the output file; beside: what goes in front of each prediction.

    In CSV a cell that a spreadsheet would run gets an apostrophe (trial_tables.py).
    """
    rows = list(zip(beside, found, strict=True))
    if ending != ".csv":
        objects = (of_row | p.as_json() for of_row, p in rows)
        return "".join(f"{json.dumps(one, ensure_ascii=False)}\n" for one in objects)
    from fleetune.errors import safe_text
    from fleetune.report.trial_tables import as_csv

    cells = [
        {**of_row, "label": p.label, "probability": max(p.probabilities.values(), default=None)}
        for of_row, p in rows
    ]
    return f"{as_csv(cells, told=safe_text)}\n" if cells else "label,probability\n"


def _given(
    predictor: Any, text: Sequence[str] | None, file: Path | None, columns: Sequence[str] | None,
    kept: Sequence[str],
) -> tuple[tuple[Sequence[str], Sequence[str] | None], list[dict[str, Any]]]:  # fmt: skip
    """The texts, first and second ones, and of each row the cells that go along."""
    if file is None:
        texts = _typed(predictor, text)
        return texts, [{} for _ in texts[0]]
    from fleetune.data.sources import read_file
    from fleetune.serve.predictor import check_columns

    names = columns or predictor.record.text_columns
    check_columns(names, predictor.record)
    rows = read_file(file, names, None, kept=kept)
    beside = [{name: cells[i] for name, cells in rows.kept.items()} for i in range(len(rows))]
    return (rows.texts[0], rows.texts[1] if len(rows.texts) == 2 else None), beside


def _typed(
    predictor: Any, text: Sequence[str] | None
) -> tuple[Sequence[str], Sequence[str] | None]:
    """Texts of the command line, else of stdin."""
    from fleetune.data.formats import text_problem

    texts = list(text) if text else _stdin()
    where, unit = ("--text", "text") if text else ("stdin", "line")
    problems = [
        f"{unit} {i}: {problem}"
        for i, t in enumerate(texts, 1)
        if (problem := text_problem(t, unit)) is not None
    ]
    if problems:
        raise DataError(where, problems)
    names = predictor.record.text_columns
    if not predictor.pairs:
        return texts, None
    if len(texts) % 2:
        count = f"{len(texts)} {unit}{'s' * (len(texts) != 1)}"
        problem = (
            f"this model reads pairs ({names[0]}, {names[1]}), two {unit}s each, but got {count}; give both, or --input FILE "
            "with both columns"
        )
        raise SettingsError(where, [problem])
    return texts[::2], texts[1::2]


def _stdin() -> list[str]:
    from fleetune.data.textfile import decoded

    stdin: Any = sys.stdin  # None where it is closed
    if stdin is None or stdin.isatty():
        raise SettingsError(
            "predict", ["nothing to predict; give --text, --input, or lines on stdin"]
        )
    text = decoded(stdin.buffer.read(), "stdin")
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    return lines
