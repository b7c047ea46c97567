"""requirements.lock as `make lock` writes it: a version and a hash each, and no address."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet
from scripts.lock import lock

ROOT = Path(__file__).resolve().parents[1]


def _item(name: str, **info: object) -> dict:
    return {
        "metadata": {"name": name, "version": "1.2"},
        "download_info": {"url": "https://example.invalid/x", **info},
    }


def test_each_package_has_its_hash_and_no_address() -> None:
    hashed = {"archive_info": {"hashes": {"sha256": "ab" * 32}}}
    said = lock(
        {"install": [_item("zlib-ng", **hashed), _item("Attrs", **hashed), _item("fleetune")]}
    )
    head, *lines = said.splitlines()
    assert head.startswith("# Made by `make lock` for ")
    assert lines == [
        f"Attrs==1.2 --hash=sha256:{'ab' * 32}",
        f"zlib-ng==1.2 --hash=sha256:{'ab' * 32}",
    ]


def test_a_build_of_another_index_is_named_and_not_locked() -> None:
    item = _item("torch", archive_info={"hashes": {"sha256": "ab" * 32}})
    item["metadata"]["version"] = "2.13.0+cpu"
    (line,) = lock({"install": [item]}).splitlines()[1:]
    assert line.startswith("# torch 2.13.0+cpu:") and "sha256" not in line


def test_a_package_without_a_hash_is_refused() -> None:
    with pytest.raises(ValueError, match=r"x 1\.2: pip tells no sha256"):
        lock({"install": [_item("x", dir_info={})]})


def test_every_pinned_package_runs_on_the_lowest_python() -> None:
    """Else pip finds no way out on a machine whose Python is older than the one that the pins were made with."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lowest = project["requires-python"].removeprefix(">=") + ".0"
    pinned = {
        line.partition("==")[0].strip()
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    }
    here = {d.metadata["Name"].casefold(): d for d in distributions()}
    asked = {
        n: here[n.casefold()].metadata["Requires-Python"] for n in pinned if n.casefold() in here
    }
    assert len(asked) > 50
    assert {n: s for n, s in asked.items() if s and not SpecifierSet(s).contains(lowest)} == {}


def test_the_lowest_versions_are_those_that_are_allowed() -> None:
    """`make test-lowest` tries them; torch's lowest has no build without CUDA."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [
        *project["dependencies"],
        *(w for e in ("serve", "onnx", "tensorboard") for w in extras[e]),
    ]
    allowed = dict(re.findall(r"^([\w-]+)>=([\d.]+)", "\n".join(wanted), re.MULTILINE))
    lines = (ROOT / "constraints-lowest.txt").read_text().splitlines()
    tried = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert allowed.keys() == tried.keys()
    for name in allowed.keys() - {"torch"}:
        assert [*map(int, tried[name].split("."))][: allowed[name].count(".") + 1] == [
            *map(int, allowed[name].split("."))
        ], name
