"""The first look at a text file: where exactly it is damaged, also at the edges of chunks."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetune.data import textfile


def test_whole_files(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for content in (b"", b"a\nb", "é\U0001f600".encode(), b"\xef\xbb\xbfa"):
        path.write_bytes(content)
        assert textfile.text_problem(path) is None


@settings(max_examples=300, deadline=None)
@given(content=st.binary(max_size=24), chunk=st.integers(1, 8))
def test_byte_is_the_one_python_names(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, chunk: int
) -> None:
    path = tmp_path_factory.mktemp("bytes") / "a.txt"
    path.write_bytes(content)
    try:
        content.decode()
        bad = len(content)
    except UnicodeDecodeError as error:
        bad = error.start
    first = min(bad, content.index(0)) if 0 in content else bad
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(textfile, "_CHUNK", chunk)
        found = textfile.text_problem(path)
    if content.startswith((b"\xff\xfe", b"\xfe\xff")) and chunk > 1:
        assert found is not None and "UTF-16" in found
    elif any(content.startswith(s) and chunk >= len(s) for s in (b"\x1f\x8b", b"PK\x03\x04")):
        assert found is not None and "unpack it" in found
    elif first == len(content):
        assert found is None
    else:
        line = len(content[:first].replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n"))
        assert found is not None and f"line {line}, byte {first}: " in found


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (gzip.compress(b"text,label\na,b\n", mtime=0), "compressed by gzip"),
        (b"PK\x03\x04\x14\x00\x06\x00\x08\x00", "zip archive"),
    ],
)
def test_packed_files_are_told_as_such(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(content)
    found = textfile.text_problem(path)
    assert found is not None and told in found and "iconv" not in found
