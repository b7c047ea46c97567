"""Run the rows that have not passed yet and print the table: `python -m tests.torture`, or `make torture`.

Each row that is done is kept in bench/results/torture.json at once, so a run that is cut goes on where it stopped; one that
passed with as many cases is not run again unless --again says so. Of a row that is cut, or has used up its --minutes, the cases
that were tried are kept, and it is run again the next time. docs/reliability.md shows the table between its markers.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
RESULTS = REPO / "bench" / "results" / "torture.json"
PAGE = REPO / "docs" / "reliability.md"
BEGIN, END = "<!-- torture: written by make torture -->", "<!-- torture: end -->"
MOST_FAILURES_KEPT = 10


def main(words: Sequence[str]) -> int:
    """The exit code: 0 where every row that was asked for has passed."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("rows", nargs="*", help="beginnings of names; by default all rows")
    parser.add_argument("--again", action="store_true", help="also those that have passed")
    parser.add_argument("--share", type=float, default=1.0, help="of each row's cases; default 1")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="most of a row")
    parser.add_argument("--list", action="store_true", help="print the table and run nothing")
    parser.add_argument("--results", type=Path, default=RESULTS)
    asked = parser.parse_args(words)
    _quiet()
    from tests.torture.row import rows

    known = [r for r in rows() if not asked.rows or r.name.startswith(tuple(asked.rows))]
    if not asked.list:
        for row in known:
            count = max(round(row.count * asked.share), 1)
            if asked.again or not _passed(_read(asked.results), row.name, count):
                found = _try(row, count, asked.minutes)
                cut = found.pop("cut")
                if found["count"]:
                    _keep(asked.results, row.name, found)
                if cut:
                    break
    results = _read(asked.results)
    table = render(results, [r.name for r in rows()])
    if asked.results == RESULTS and not asked.list:
        _write_page(table, results)
    sys.stdout.write(table)
    return int(not all(_passed(results, row.name, 1) for row in known))


def _quiet() -> None:
    """One thread, offline, a token cache of its own: before torch is imported."""
    os.environ.update(
        OMP_NUM_THREADS="1",
        HF_HUB_OFFLINE="1",
        HF_HUB_DISABLE_PROGRESS_BARS="1",
        TOKENIZERS_PARALLELISM="false",
    )
    os.environ["FLEETUNE_CACHE"] = tempfile.mkdtemp(prefix="torture-cache-")


def _try(row: Any, count: int, minutes: float) -> dict[str, Any]:
    """All cases of a row, or as many as there is time for; what came of them. "cut": Ctrl-C came."""
    began, passed, tried = time.monotonic(), 0, 0
    failures: list[str] = []
    cut = False
    # A folder of the row's own inside one, since rows share what lies beside it.
    with tempfile.TemporaryDirectory(prefix="torture-") as top:
        folder = Path(top) / "row"
        folder.mkdir()
        try:
            for told in row.run(folder, count):
                tried += 1
                passed += not told
                failures += [told] if told else []
                if sys.stderr.isatty():
                    sys.stderr.write(f"\r{row.name}: {passed} of {tried}/{count}   ")
                    sys.stderr.flush()
                if time.monotonic() - began > 60 * minutes:
                    count = tried
                    break
        except KeyboardInterrupt:
            count, cut = tried, True
        except Exception:
            failures.append(traceback.format_exc(limit=-6))
    told = [f"{row.name}: {passed} of {tried}/{count}", *failures[:MOST_FAILURES_KEPT]]
    sys.stderr.write(("\r" if sys.stderr.isatty() else "") + "\n  ".join(told) + "\n")
    return {
        "count": count,
        "passed": passed,
        "seconds": round(time.monotonic() - began, 1),
        "failures": failures[:MOST_FAILURES_KEPT],
        "cut": cut,
        **_provenance(),
    }


def _provenance() -> dict[str, Any]:
    from fleetune.study.machine import commit, hardware

    machine = hardware("cpu")
    return {
        "commit": commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": f"{machine['processor']}, {machine['cores']} cores",
    }


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_bytes()) if path.is_file() else {}


def _passed(results: dict[str, Any], name: str, count: int) -> bool:
    found = results.get(name)
    return found is not None and found["passed"] >= found["count"] >= count


def _keep(path: Path, name: str, found: dict[str, Any]) -> None:
    """Read again before writing: another command may have done other rows meanwhile."""
    from fleetune.durable import write_json

    write_json(path, {**_read(path), name: found})


def render(results: dict[str, Any], names: Sequence[str]) -> str:
    """The table in Markdown; rows that were never run say so."""
    lines = ["| test | count | passed | seconds |", "| --- | ---: | ---: | ---: |"]
    for name in names:
        r = results.get(name)
        told = f"{r['count']:,} | {r['passed']:,} | {r['seconds']:,.0f}" if r else "not run | - | -"
        lines.append(f"| {name} | {told} |")
    return "\n".join(lines) + "\n"


def _write_page(table: str, results: dict[str, Any]) -> None:
    """Replace what stands between the markers of docs/reliability.md."""
    from fleetune.durable import write_bytes

    if not PAGE.is_file() or not results:
        return
    before, begin, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        return
    machines = sorted({r["machine"] for r in results.values()})
    dates = sorted({r["date"] for r in results.values()})
    commits = sorted({r["commit"] or "unknown" for r in results.values()})
    when = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    told = f"{'; '.join(machines)}; {when}; commits {', '.join(commits)}."
    write_bytes(PAGE, f"{before}{BEGIN}\n\n{table}\n{told}\n\n{END}{after}".encode())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
