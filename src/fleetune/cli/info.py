"""`fleetune methods` and `fleetune doctor`: what can be trained; what this machine has."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from fleetune.cli.options import AsJson, dump, out, say
from fleetune.errors import EnvironmentProblem


def register(app: typer.Typer) -> None:
    app.command("methods")(methods)
    app.command("doctor")(doctor)


def methods(
    name: Annotated[str | None, typer.Argument(help="One method, with all its settings.")] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Also count the parameters on this backbone.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the methods, or the settings of one.

    Example: fleetune methods lora --backbone minilm
    """
    from fleetune.report.methods import method_facts
    from fleetune.report.tables import grid

    facts = method_facts(name, backbone)
    if as_json:
        dump(facts)
        return
    rows = [_row(m, backbone is not None) for m in facts]
    header = ["method", "what", "default learning rate", "source"]
    out(grid(header + (["encoder", "head"] if backbone else []), rows, right=(2, 4, 5)))
    for m in facts if name else []:
        out("")
        out(
            grid(
                ["setting", "default", "meaning"],
                [[s["name"], s["default"], s["meaning"]] for s in m["settings"]],
            )
        )
        if m["roles"]:
            where = (
                f"on {backbone}" if backbone else "of all families (--backbone says which one has)"
            )
            out(f"\nroles {where}: {', '.join(m['roles'])}")
    if name:
        say(f"next: fleetune train reviews.csv --method {name} --output-dir runs/{name}")
    else:
        say("next: fleetune methods lora   (its settings)")


def _row(m: dict[str, Any], counted: bool) -> list[str]:
    row = [m["name"], m["summary"], f"{m['default_learning_rate']:g}", m["source"]]
    if counted:
        count = m["trainable_parameters"]
        row += [f"{count['encoder']:,}", f"{count['head']:,}"] if count else ["refused", "-"]
    return row


def doctor(as_json: AsJson = False) -> None:
    """Report versions, processor, memory, disk, GPU, cache, backbone and hub, and what to mend.

    Example: fleetune doctor
    """
    from fleetune.report.doctor import examine
    from fleetune.report.tables import grid

    found = examine()
    if as_json:
        dump(found)
    else:
        out(
            grid(
                ["", "what", "found"],
                [["ok" if c["ok"] else "!!", c["name"], c["found"]] for c in found],
            )
        )
    wrong = [c for c in found if not c["ok"]]
    for c in wrong:
        say(f"{c['name']}: {c['remedy']}")
    if any(c["needed"] for c in wrong):
        raise EnvironmentProblem("something that is needed is missing; see above")
    say("next: fleetune demo   (a few minutes, offline)")
