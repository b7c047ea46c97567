"""Own Parquet files: string columns for texts; string, integer or boolean columns for labels.

Dictionary-encoded and large columns count as what they hold. A file is validated in full before any
value is used (Arrow's advice for files of unknown origin). Rows are counted from 1, for there are
no lines.
"""

# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false
# (pyproject.toml turns these off for packages that ship no types, but `strict` there overrides it)

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from fleetune.data.formats import Format, Header, Row, character_problem, check_names
from fleetune.data.textfile import MAX_PROBLEMS
from fleetune.errors import DataError

# ArrowInvalid is a ValueError; a broken footer comes as OSError.
_UNREADABLE = (pa.ArrowException, OSError, ValueError)


def _header(path: Path) -> Header:
    with _opened(path) as file:
        try:
            schema = file.schema_arrow
        except _UNREADABLE as error:
            raise _damaged(path, error) from error
        if not schema.names:
            raise DataError(str(path), ["the file is empty; it has no columns"])
        header = Header(
            columns=tuple(schema.names),
            texts=tuple(field.name for field in schema if _is_text(field.type)),
            scalars=tuple(field.name for field in schema if _is_scalar(field.type)),
            line=None,
        )
    check_names(path, header)
    return header


def _rows(
    path: Path, names: Sequence[str], scalars: frozenset[str], problems: list[str]
) -> Iterator[Row]:
    with _opened(path) as file:
        try:
            table = file.read(columns=list(names))
            table.validate(full=True)
            for name in names:
                problem = _type_problem(table.schema.field(name).type, name in scalars)
                if problem is not None:
                    problems.append(f"column {name}: {problem}")
            if problems:
                return
            columns = [_strings(table.column(name)) for name in names]
        except _UNREADABLE as error:
            raise _damaged(path, error) from error
    for row, cells in enumerate(zip(*columns, strict=True), start=1):
        wrong = len(problems)
        for name, cell in zip(names, cells, strict=True):
            problem = "null; every row needs a value" if cell is None else character_problem(cell)
            if problem is not None:
                problems.append(f"row {row}, column {name}: {problem}")
        if len(problems) == wrong:
            yield row, cells
        elif len(problems) >= MAX_PROBLEMS:
            return


def _opened(path: Path) -> Any:
    from pyarrow import parquet

    try:
        # Not read_table: it would add columns from folder names such as `x=1`.
        return parquet.ParquetFile(path, page_checksum_verification=True)
    except _UNREADABLE as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> DataError:
    reason = str(error).strip().splitlines()
    said = reason[0].rstrip(".") if reason else type(error).__name__
    problem = f"not a whole, valid Parquet file ({said}); write it again, or give CSV or JSONL"
    return DataError(str(path), [problem])


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_text(kind: pa.DataType) -> bool:
    kind = _plain(kind)
    return (
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def _is_scalar(kind: pa.DataType) -> bool:
    plain = _plain(kind)
    return _is_text(kind) or pa.types.is_integer(plain) or pa.types.is_boolean(plain)


def _type_problem(kind: pa.DataType, scalar: bool) -> str | None:
    if _is_text(kind) or (scalar and _is_scalar(kind)):
        return None
    wanted = "strings, integers or booleans" if scalar else "strings"
    return f"holds {kind}, but must hold {wanted}"


def _strings(column: pa.ChunkedArray) -> list[str | None]:
    values = column.to_pylist()
    if _is_text(column.type):
        return values
    words = {True: "true", False: "false"} if pa.types.is_boolean(_plain(column.type)) else None
    return [
        None if value is None else words[value] if words is not None else str(value)
        for value in values
    ]


PARQUET = Format(header=_header, rows=_rows, unit="row")
