"""Tables from bench/results, for a terminal and for docs/benchmarks.md.

`python -m bench.tables` rewrites, in docs/benchmarks.md, what stands between `<!-- bench:NAME -->` and `<!-- /bench:NAME -->`
from bench/results/NAME.json, for every NAME that stands there; `--check` only says whether the page is what it would write.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.store import ROOT, read

PAGE = ROOT / "docs" / "benchmarks.md"
RESULTS = ROOT / "bench" / "results"
MARKED = re.compile(
    r"(?P<open><!-- bench:(?P<name>[\w-]+) -->\n).*?(?P<close><!-- /bench:(?P=name) -->)", re.DOTALL
)
Found = dict[str, Any]
Table = tuple[list[str], list[list[str]]]


def figure(spread: dict[str, float] | None, form: str = ".0f", factor: float = 1.0) -> str:
    """`median [low, high]`, or the one value where there is one."""
    if not spread:
        return "-"
    low, mid, high = (format(spread[n] * factor, form) for n in ("low", "median", "high"))
    return mid if spread["n"] == 1 else f"{mid} [{low}, {high}]"


def cohort_tables(told: Found) -> dict[str, Table]:
    """One table a group: a row for each cohort size."""
    peers = list(dict.fromkeys(p for row in told["summary"] for p in row["peers"]))
    found: dict[str, Table] = {}
    for row in told["summary"]:
        head = ["K", "examples/s", "of limit", "s a trial and step", "peak MiB"]
        head += [f"x {peer}" for peer in peers]
        _, lines = found.setdefault(row["group"], (head, []))
        ratios = [figure(row["peers"].get(peer, {}).get("ratio"), ".2f") for peer in peers]
        lines.append(
            [
                str(row["trials"]),
                figure(row["examples_per_second"], ".1f"),
                f"{row['share_of_limit']['median']:.0%}" if "share_of_limit" in row else "-",
                figure(row["seconds_per_trial_step"], ".2f"),
                figure(row["peak_mib"]),
                *ratios,
            ]
        )
    return found


def peer_table(told: Found) -> Table:
    """What the peers did by themselves, at the smallest cohort beside which they were measured with all their trials."""
    lines: list[list[str]] = []
    seen: dict[tuple[str, str], Found] = {}
    for row in told["summary"]:
        for name, peer in row["peers"].items():
            key = (row["group"], f"{name} K{row['trials']}" if name == "adapters" else name)
            seen[key] = peer
    for (group, name), peer in seen.items():
        lines.append([group, name, figure(peer["examples_per_second"], ".1f"), figure(peer["peak_mib"])])  # fmt: skip
    return ["group", "side", "examples/s", "peak MiB"], lines


def about(told: Found) -> list[str]:
    """Where and with what it was measured."""
    machine, packages = told.get("machine", {}), told.get("packages", {})
    lines = [f"{told.get('command', '')}", f"commit {told.get('commit')}, code {told['setup'].get('code')}"]  # fmt: skip
    if machine:
        device = machine.get("gpu", machine["processor"])
        lines.append(
            f"{device}, {machine['cores']} cores, {machine['threads']} threads, {machine['memory_gib']} GiB; "
            + ", ".join(f"{n} {v}" for n, v in packages.items())
        )
    from bench.summary import best_rates

    for backbone, rates in best_rates(told["cells"]).items():
        told_rates = ", ".join(f"{v / 1e9:.0f} GFLOP/s {k}" for k, v in rates.items())
        lines.append(f"matrix rate at {backbone}'s shapes: {told_rates}")
    lines += [f"failed: {k}: {c['failed']}" for k, c in told["cells"].items() if "failed" in c]
    return lines


def cohort_text(told: Found) -> str:
    """All tables of bench.cohort for a terminal."""
    parts = ["\n".join(about(told))]
    for group, table in cohort_tables(told).items():
        parts.append(f"{group}\n{plain(table)}")
    parts.append(f"the peers\n{plain(peer_table(told))}")
    return "\n\n".join(parts) + "\n"


def cohort_markdown(told: Found) -> str:
    """The same for the page."""
    parts = ["\n".join(f"- {line}" for line in about(told))]
    parts += [f"`{group}`\n\n{pipes(table)}" for group, table in cohort_tables(told).items()]
    parts.append(f"The peers by themselves:\n\n{pipes(peer_table(told))}")
    return "\n\n".join(parts)


def simple_markdown(told: Found) -> str:
    """Of a file that holds its own table ("head", "rows") and words on where it was measured ("about")."""
    lines = "\n".join(f"- {line}" for line in told["about"])
    return f"{lines}\n\n{pipes((told['head'], told['rows']))}"


def keep(name: str, about: list[str], table: Table, **more: Any) -> None:
    """Write bench/results/NAME.json as `simple_markdown` reads it, with whatever else is to be kept, and print the table."""
    head, rows = table
    told = {"about": about, "head": head, "rows": rows, **more}
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(told, indent=1, default=str) + "\n")
    sys.stdout.write("\n".join(about) + "\n\n" + plain(table) + "\n")


def plain(table: Table) -> str:
    """Columns under one another, numbers to the right."""
    head, rows = table
    widths = [max(len(line[i]) for line in [head, *rows]) for i in range(len(head))]
    lines = [head, ["-" * w for w in widths], *rows]
    return "\n".join(
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    )  # fmt: skip


def pipes(table: Table) -> str:
    """A table in Markdown."""
    head, rows = table
    rule = [":--", *["--:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, rule, *rows])


def filled(page: str, results: Path = RESULTS) -> str:
    """The page with every marked place written anew; a place without results says so."""

    def write(match: re.Match[str]) -> str:
        told = read(results / f"{match['name']}.json")
        if told is None:
            text = f"Not measured yet: there is no bench/results/{match['name']}.json."
        else:
            form: Callable[[Found], str] = simple_markdown if "head" in told else cohort_markdown
            text = form(told)
        return f"{match['open']}\n{text}\n\n{match['close']}"

    return MARKED.sub(write, page)


def main(words: Sequence[str] | None = None) -> None:
    """Rewrite docs/benchmarks.md, or check it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args(words)
    page = PAGE.read_text()
    new = filled(page)
    if given.check:
        sys.exit(0 if new == page else f"{PAGE.name} is not what bench/results gives; run python -m bench.tables")  # fmt: skip
    PAGE.write_text(new)


if __name__ == "__main__":
    main()
