"""Own Parquet files: string columns for texts; string, integer or boolean columns for labels.

Dictionary-encoded and large columns count as what they hold. Every batch is validated in full before
any value of it is used (Arrow's advice for files of unknown origin). Rows are counted from 1, for
there are no lines.

Fifty kilobytes can hold a text of a megabyte twenty thousand times. So columns are read batch by
batch as dictionaries, and what they unpack to is counted before it is unpacked. Limit: a page whose
own header lies about its length is unpacked before it is refused, to 2 GB at most.
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

# ArrowInvalid is a ValueError; a broken footer comes as OSError; a length that nobody has as MemoryError.
_UNREADABLE = (pa.ArrowException, OSError, ValueError, MemoryError)

# Texts compress five to tenfold, and labels take no room at all: no file of rows that differ comes near this.
MOST_UNPACKED_RATIO = 100
ALWAYS_UNPACKED = 256_000_000
"""So many bytes are unpacked whatever the ratio."""
_STRING_BYTES = 50
"""What Python spends on a short string and its place in a list."""


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
            kinds={f.name: kind for f in schema if (kind := _kind(f.type)) is not None},
        )
    check_names(path, header)
    return header


def _kind(type_: pa.DataType) -> type[bool] | type[int] | None:
    inner = type_.value_type if pa.types.is_dictionary(type_) else type_
    return bool if pa.types.is_boolean(inner) else int if pa.types.is_integer(inner) else None


def _rows(
    path: Path, names: Sequence[str], scalars: frozenset[str], problems: list[str], decimals: bool
) -> Iterator[Row]:
    row = 0
    for columns in _batches(path, names, scalars, problems, decimals):
        for cells in zip(*columns, strict=True):
            row += 1
            wrong = len(problems)
            for name, cell in zip(names, cells, strict=True):
                problem = (
                    "null; every row needs a value" if cell is None else character_problem(cell)
                )
                if problem is not None:
                    problems.append(f"row {row}, column {name}: {problem}")
            if len(problems) == wrong:
                yield row, cells
            elif len(problems) >= MAX_PROBLEMS:
                return


def _batches(
    path: Path, names: Sequence[str], scalars: frozenset[str], problems: list[str], decimals: bool
) -> Iterator[list[list[str | None]]]:
    """The named columns, batch by batch."""
    room = _room(path)
    with _opened(path) as file:
        try:
            schema = file.schema_arrow
            for name in names:
                problem = _type_problem(schema.field(name).type, name in scalars, decimals)
                if problem is not None:
                    problems.append(f"column {name}: {problem}")
            if problems:
                return
            texts = [name for name in names if pa.types.is_string(schema.field(name).type)]
            check_promised(path, file.metadata, len(names))
        except _UNREADABLE as error:
            raise _damaged(path, error) from error
    with _opened(path, texts) as file:
        try:
            for batch in file.iter_batches(columns=list(names)):
                batch.validate(full=True)
                columns = [batch.column(name) for name in names]
                room -= sum(map(_unpacked, columns))
                if room < 0:
                    raise _too_large(path)
                yield [_strings(column) for column in columns]
        except _UNREADABLE as error:
            raise _damaged(path, error) from error


def _room(path: Path) -> int:
    """How many bytes a file may unpack to."""
    return max(ALWAYS_UNPACKED, MOST_UNPACKED_RATIO * path.stat().st_size)


def check_promised(path: Path, metadata: Any, columns: int) -> None:
    """DataError where the file itself says that it unpacks to more than there is room for; columns: those to be read."""
    promised = metadata.num_rows * columns * _STRING_BYTES
    # Not by column: pyarrow 26 ends the whole process (std::terminate) where a column's own statistics are damaged and its
    # metadata is asked for; the row group has the sum.
    promised += sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    if promised > _room(path):
        raise _too_large(path)


def _unpacked(column: pa.Array) -> int:
    """Bytes of the strings that a column holds, however often it repeats them."""
    if not pa.types.is_dictionary(column.type):
        try:
            held = column.nbytes
        except pa.ArrowTypeError:  # of views of strings, below pyarrow 24
            held = column.get_total_buffer_size()
        return held + _STRING_BYTES * len(column)
    if not _is_text(column.type):
        return _STRING_BYTES * len(column)
    import pyarrow.compute as pc

    compute: Any = pc  # its functions are made when it is imported, which no type checker sees
    lengths = compute.binary_length(column.dictionary).take(column.indices)
    return int(compute.sum(lengths.cast(pa.int64())).as_py() or 0) + _STRING_BYTES * len(column)


def _too_large(path: Path) -> DataError:
    size = path.stat().st_size
    problem = (
        f"{size:,} bytes that unpack to more than {MOST_UNPACKED_RATIO} times as much (and more than "
        f"{ALWAYS_UNPACKED / 1e6:.0f} MB); a file this repetitive is taken for damage; give CSV or JSONL"
    )
    return DataError(str(path), [problem])


def _opened(path: Path, dictionaries: Sequence[str] = ()) -> Any:
    """dictionaries: string columns that are to be read with each text once."""
    from pyarrow import parquet

    try:
        # Not read_table: it would add columns from folder names such as `x=1`.
        return parquet.ParquetFile(
            path, page_checksum_verification=True, read_dictionary=list(dictionaries)
        )
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


def _type_problem(kind: pa.DataType, scalar: bool, decimal: bool) -> str | None:
    if _is_text(kind) or (scalar and _is_scalar(kind)):
        return None
    if scalar and decimal and (pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        return None
    wanted = "strings, integers or booleans" if scalar else "strings"
    wanted = "numbers" if scalar and decimal else wanted
    # Tables in memory turn integers into these where one is missing.
    filled = (
        "; make whole numbers integers or strings, which needs that no cell is empty"
        if scalar and pa.types.is_floating(kind)
        else ""
    )
    return f"holds {kind}, but must hold {wanted}{filled}"


def _strings(column: pa.Array) -> list[str | None]:
    if pa.types.is_dictionary(column.type):
        held = _strings(column.dictionary)
        return [None if at is None else held[at] for at in column.indices.to_pylist()]
    values = column.to_pylist()
    if _is_text(column.type):
        return values
    words = {True: "true", False: "false"} if pa.types.is_boolean(column.type) else None
    return [
        None if value is None else words[value] if words is not None else str(value)
        for value in values
    ]


PARQUET = Format(header=_header, rows=_rows, unit="row")
