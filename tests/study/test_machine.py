"""What a run says of the source that made it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from fleetune.study import machine


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit, as if the package lay in it."""
    source = tmp_path / "src/fleetune/study/machine.py"
    source.parent.mkdir(parents=True)
    source.write_text("first\n")
    (tmp_path / "notes.md").write_text("first\n")
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for words in (["init", "-q"], ["add", "-A"], [*who, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    monkeypatch.setattr(machine, "__file__", str(source))
    return tmp_path


def test_the_commit_of_the_source(repository: Path) -> None:
    words = ["git", "-C", str(repository), "rev-parse", "HEAD"]
    head = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    found = machine.commit()
    assert found is not None and len(found) == 12 and head.startswith(found)


def test_a_changed_source_is_marked_and_a_changed_page_is_not(repository: Path) -> None:
    clean = machine.commit()
    (repository / "notes.md").write_text("second\n")
    assert machine.commit() == clean
    (repository / "src/fleetune/study/machine.py").write_text("second\n")
    assert machine.commit() == f"{clean}+changes"


def test_an_installed_package_has_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "lib/python/site/fleetune/machine.py"))
    assert machine.commit() is None
