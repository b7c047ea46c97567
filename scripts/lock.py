"""constraints.txt with hashes: `python -m scripts.lock REPORT`, where REPORT is what `pip install --dry-run --report` wrote.

`make lock` runs both. Each line of requirements.lock is a package, its version, and the sha256 of the one file that pip chose on
this machine; addresses of registries are left out. Limit: the hashes are of one platform and Python, which the first line names;
elsewhere run `make lock` again. A version such as 2.13.0+cpu is of an index of its own, so torch may stand there as a comment
alone: install it first. `pip install --require-hashes --no-deps -r requirements.lock` takes these files and no others.
"""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path
from typing import Any

LOCK = Path(__file__).resolve().parents[1] / "requirements.lock"


def lock(report: Any) -> str:
    """The lines of the lock. ValueError for a package without a sha256, such as one from a folder that is not this project."""
    lines = [
        f"# Made by `make lock` for {platform.system()} {platform.machine()}, Python {platform.python_version()}."
    ]
    for item in sorted(report["install"], key=lambda i: str(i["metadata"]["name"]).lower()):
        name, version = item["metadata"]["name"], item["metadata"]["version"]
        if name == "fleetune":
            continue
        if "+" in version:
            lines.append(f"# {name} {version}: of an index of its own; install {name} first")
            continue
        digest = item["download_info"].get("archive_info", {}).get("hashes", {}).get("sha256")
        if not digest:
            raise ValueError(f"{name} {version}: pip tells no sha256 of it")
        lines.append(f"{name}=={version} --hash=sha256:{digest}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    LOCK.write_text(lock(json.loads(Path(sys.argv[1]).read_text("utf-8"))), "utf-8")
    sys.stdout.write(f"{LOCK.name}: {len(LOCK.read_text('utf-8').splitlines()) - 1} packages\n")
