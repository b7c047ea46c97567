"""Every command on local files in one process that notes what it unpickles, connects to and starts.

`python -m tests.hostile.chain FOLDER` prints one JSON object: events by name, and the exit code of each command. The folder must
hold train.csv and tiny/ (a backbone).
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

WATCHED = (
    *("pickle.find_class", "socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"),
    *("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "shutil.unpack_archive", "http.client.connect"),
)  # fmt: skip


def watch() -> dict[str, list[str]]:
    seen: dict[str, list[str]] = {}

    def hook(event: str, found: tuple[Any, ...]) -> None:
        if event in WATCHED:
            seen.setdefault(event, []).append(repr(found)[:200])

    sys.addaudithook(hook)
    return seen


def commands(folder: Path) -> list[list[str]]:
    run, rows = f"{folder}/run", f"{folder}/train.csv"
    train = ["train", "--data", rows, "--test-data", rows, "--backbone", f"{folder}/tiny"]
    train += [
        "--methods",
        "lora,bitfit",
        "--max-steps",
        "2",
        "--dtype",
        "float32",
        "--output-dir",
        run,
    ]
    (folder / "study.toml").write_text(
        f'[data]\nfile = "{rows}"\n[backbone]\nname = "{folder}/tiny"\ndtype = "float32"\n'
        '[training]\nmax_steps = 2\n[[methods]]\nmethod = "head"\nlearning_rate = [1e-3, 2e-3]\n'
        '[search]\ntrials_per_method = 2\nsampler = "grid"\n[confirm]\nseeds = 1\n'
    )
    return [
        train,
        train,
        ["study", f"{folder}/study.toml", "--output-dir", f"{folder}/study"],
        ["show", run],
        ["show", run, "--json"],
        ["show", run, "--csv"],
        ["show", run, "lora-s42"],
        ["report", run],
        ["predict", run, "--text", "w1 w2", "--json"],
        ["predict", run, "--input", rows, "--output", f"{folder}/out.csv"],
        ["evaluate", run, "--data", rows],
        ["export", run, "--output", f"{folder}/model"],
        ["predict", f"{folder}/model", "--text", "w1"],
        ["export", f"{folder}/study", "--format", "optuna", "--output", f"{folder}/study.db"],
        ["methods"],
        ["doctor"],
    ]


def main(folder: Path) -> None:
    seen = watch()
    from tests.runs import run_cli

    codes: dict[str, int] = {}
    said: list[str] = []
    for number, words in enumerate(commands(folder)):
        found = run_cli(*words)
        codes[f"{number} {words[0]}"] = found.code
        said += [found.out, found.err]
        if found.code:
            said.append(f"{words} ended with {found.code}")
    (folder / "said.txt").write_text("".join(said), "utf-8", "surrogateescape")
    print(json.dumps({"codes": codes, "events": seen}))


if __name__ == "__main__":
    with contextlib.suppress(KeyError):
        del os.environ["HF_HUB_OFFLINE"]
    main(Path(sys.argv[1]))
