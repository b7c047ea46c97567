"""What the code must look like as a whole: imports point one way, no pickle, small files, a command that starts fast.

The order is that of docs/decisions/0008-artifact-before-study.md; it is held as a table of who may import whom, so that
a new arrow is a change to this file and not an accident.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
SOURCE = REPO / "src" / "fleetune"

# Each level stands on those above it; members of one level do not import one another.
LEVELS: tuple[tuple[str, ...], ...] = (
    ("errors", "seeds", "records"),
    ("config", "durable"),
    ("data", "backbone", "stats"),
    ("methods",),
    ("cohort", "artifact"),
    ("study",),
    ("report",),
    ("serve", "live"),
    ("cli", "api"),
    ("__main__",),
)
# The package's root offers the names of this part, and imports nothing else.
ROOT_OFFERS = "api"
# Finer than the levels: what a part leaves alone although it stands above it.
LEAVES_ALONE: dict[str, frozenset[str]] = {
    "config": frozenset({"seeds", "records"}),
    "durable": frozenset({"errors", "seeds", "records"}),
    "data": frozenset({"config"}),
    "backbone": frozenset({"config"}),
    "stats": frozenset({"config", "durable"}),
    "methods": frozenset({"data", "stats", "durable"}),
    "cohort": frozenset({"stats"}),
    # A model's card says what its scores are worth: artifact/ takes intervals from stats/.
    "artifact": frozenset(),
    "study": frozenset({"stats"}),
    # The report reads what artifact/ wrote: it takes the names of files and tensors from there.
    "report": frozenset({"cohort"}),
}
FOUNDATION = frozenset(name for level in LEVELS[:2] for name in level)
FOLDERS = frozenset(name for level in LEVELS[2:] for name in level)

# Lines of code: docstrings do not count, since saying more about a thing must not be a reason to cut it.
MOST_LINES_A_FILE = 360
MOST_LINES_A_FUNCTION = 60


@cache
def modules() -> dict[Path, ast.Module]:
    """Every module of the package, parsed."""
    return {path: ast.parse(path.read_text("utf-8")) for path in sorted(SOURCE.rglob("*.py"))}


def code_modules() -> dict[Path, ast.Module]:
    """Those that hold anything at all."""
    return {path: tree for path, tree in modules().items() if tree.body}


def place(path: Path, line: int = 1) -> str:
    return f"{path.relative_to(REPO).as_posix()}:{line}"


def part_of(path: Path) -> str:
    """The folder, or the foundation's module, that a file belongs to; `__init__` for the root."""
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def imports() -> Iterator[tuple[Path, int, str]]:
    """(file, line, dotted module) of every import; `from a import b` gives a.b where b is a module."""
    for path, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                yield from ((path, node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{place(path, node.lineno)}: imports are absolute"
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    yield path, node.lineno, inner if is_module(inner) else str(node.module)


def is_module(dotted: str) -> bool:
    first, *rest = dotted.split(".")
    target = SOURCE.joinpath(*rest)
    return first == "fleetune" and (target.with_suffix(".py").is_file() or target.is_dir())


def allowed(part: str) -> frozenset[str]:
    """What a part may import of the package, besides its own folder."""
    if part == "__init__":
        return frozenset({ROOT_OFFERS})
    above: set[str] = set()
    for level in LEVELS:
        if part in level:
            return frozenset(above) - LEAVES_ALONE.get(part, frozenset())
        above |= set(level)
    raise AssertionError(f"{part}: in no level of tests/test_architecture.py; give it its place")


def own_imports() -> Iterator[tuple[Path, int, str, str]]:
    """(file, line, importing part, imported part) within the package; the root (its version) is everybody's."""
    for path, line, name in imports():
        first, *rest = name.split(".")
        if first == "fleetune" and rest:
            yield path, line, part_of(path), rest[0]


def test_every_part_has_a_level() -> None:
    parts = {part_of(path) for path in code_modules()} - {"__init__"}
    assert parts == FOUNDATION | FOLDERS


def test_imports_point_one_way() -> None:
    offences = [
        f"{place(path, line)}: {here} may not import {there}"
        for path, line, here, there in own_imports()
        if here != there and there not in allowed(here)
    ]
    assert not offences, "\n".join(offences)


def test_nothing_imports_the_root_for_more_than_the_version() -> None:
    offences = [
        f"{place(path, node.lineno)}: {alias.name}"
        for path, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "fleetune"
        for alias in node.names
        if alias.name != "__version__"
    ]
    assert not offences, "\n".join(offences)


def test_modules_of_a_folder_do_not_import_each_other_in_a_ring() -> None:
    graph: dict[str, set[str]] = {}
    for path, _, name in imports():
        here = ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts)
        if name.startswith("fleetune.") and name != here:
            graph.setdefault(here, set()).add(name)
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join([*trail[trail.index(module) :], module])
        if module not in done:
            for other in sorted(graph.get(module, ())):
                visit(other, (*trail, module))
            done.add(module)

    for module in sorted(graph):
        visit(module, ())


def test_no_module_is_imported_through_a_package_root() -> None:
    """`from fleetune.data import X` works only for a module X: package roots re-export nothing."""
    offences = [
        f"{place(path, line)}: {name} is a folder; import the module that defines the name"
        for path, line, name in imports()
        if name.startswith("fleetune.") and SOURCE.joinpath(*name.split(".")[1:]).is_dir()
    ]
    roots = [path for path in SOURCE.glob("*/__init__.py") if modules()[path].body]
    offences += [
        f"{place(path)}: a package root holds nothing but its docstring"
        for path in roots
        if len(modules()[path].body) > 1 or ast.get_docstring(modules()[path]) is None
    ]
    assert not offences, "\n".join(offences)


def test_every_module_has_a_docstring() -> None:
    assert [place(p) for p, tree in code_modules().items() if not ast.get_docstring(tree)] == []


Definition = ast.FunctionDef | ast.AsyncFunctionDef


def docstring_lines(node: ast.Module | ast.ClassDef | Definition) -> int:
    if ast.get_docstring(node, clean=False) is None:
        return 0
    return (node.body[0].end_lineno or 0) - node.body[0].lineno + 1


def functions(tree: ast.AST) -> Iterator[Definition]:
    for node in ast.walk(tree):
        if isinstance(node, Definition):
            yield node


def length(node: Definition) -> int:
    """Lines without docstring; of a command of cli/ the parameters are a table of flags, which is its documentation."""
    return (node.end_lineno or 0) - node.lineno + 1 - docstring_lines(node)


def is_flag_table(path: Path, node: Definition) -> bool:
    return part_of(path) == "cli" and any(
        isinstance(inner, ast.Attribute) and inner.attr in ("Option", "Argument")
        for argument in (*node.args.args, *node.args.kwonlyargs)
        if argument.annotation is not None
        for inner in ast.walk(argument.annotation)
    )


def test_files_are_small() -> None:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found: dict[str, int] = {}
    for path, tree in modules().items():
        words = sum(docstring_lines(n) for n in ast.walk(tree) if isinstance(n, documented))
        found[place(path)] = len(path.read_text("utf-8").splitlines()) - words
    assert {name: n for name, n in found.items() if n > MOST_LINES_A_FILE} == {}


def test_functions_are_small() -> None:
    found: dict[str, int] = {}
    for path, tree in modules().items():
        for node in functions(tree):
            lines = length(node)
            if is_flag_table(path, node):
                lines = (node.end_lineno or 0) - node.body[0].lineno + 1 - docstring_lines(node)
            found[f"{place(path, node.lineno)} {node.name}"] = lines
    assert {name: n for name, n in found.items() if n > MOST_LINES_A_FUNCTION} == {}


# --- what is never done


PICKLES = ("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal")


def calls() -> Iterator[tuple[Path, ast.Call, str]]:
    """(file, call, dotted name as written) of every call of a name or attribute."""
    for path, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
                yield path, node, ast.unparse(node.func)


def test_pickle_is_neither_read_nor_written() -> None:
    offences = [
        f"{place(path, line)}: imports {name}"
        for path, line, name in imports()
        if name.split(".")[0] in PICKLES
    ]
    offences += [
        f"{place(path, call.lineno)}: calls {name}"
        for path, call, name in calls()
        if name in ("torch.load", "torch.save", "np.save", "numpy.save")
        or any(k.arg == "allow_pickle" and value_of(k) is not False for k in call.keywords)
    ]
    assert not offences, "\n".join(offences)


def value_of(keyword: ast.keyword) -> object:
    return keyword.value.value if isinstance(keyword.value, ast.Constant) else keyword.value


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("trust_remote_code", False), ("use_safetensors", True), ("safe_serialization", True)],
)
def test_a_keyword_has_one_value(name: str, wanted: bool) -> None:
    """Wherever these are given they are literals: no setting may turn them."""
    offences = [
        f"{place(path, call.lineno)}: {ast.unparse(keyword)}"
        for path, call, _ in calls()
        for keyword in call.keywords
        if keyword.arg == name and value_of(keyword) is not wanted
    ]
    assert not offences, "\n".join(offences)


# PEFT's loader has no `trust_remote_code`, and reads the folder that was written a moment before.
LOADS_ADAPTERS = {"artifact/check.py"}


def test_every_from_pretrained_is_local_and_runs_no_foreign_code() -> None:
    found = [(p, call, name) for p, call, name in calls() if name.endswith(".from_pretrained")]
    assert found, "no from_pretrained was found: does this test still look at the right place?"
    offences: list[str] = []
    for path, call, name in found:
        keywords = {keyword.arg: value_of(keyword) for keyword in call.keywords}
        own = path.relative_to(SOURCE).as_posix()
        if name == "PeftModel.from_pretrained" and own in LOADS_ADAPTERS:
            continue
        wanted: dict[str, object] = {"trust_remote_code": False, "local_files_only": True}
        if "AutoModel" in name:
            wanted["use_safetensors"] = True
        offences += [
            f"{place(path, call.lineno)}: {name} without {key}={value}"
            for key, value in wanted.items()
            if keywords.get(key) is not value
        ]
    assert not offences, "\n".join(offences)


def test_every_from_config_runs_no_foreign_code() -> None:
    offences = [
        place(path, call.lineno)
        for path, call, name in calls()
        if name.endswith(".from_config")
        and {k.arg: value_of(k) for k in call.keywords}.get("trust_remote_code") is not False
    ]
    assert not offences, "\n".join(offences)


def test_global_generators_are_not_drawn_from() -> None:
    """`np.random.X` makes generators and nothing else; torch's is seeded only where it is put back (fork_rng)."""
    makers = ("default_rng", "Generator", "SFC64", "Philox", "PCG64", "SeedSequence")
    offences = [
        f"{place(path, call.lineno)}: {name}"
        for path, call, name in calls()
        if (name.startswith(("np.random.", "numpy.random.")) and not name.endswith(makers))
        or name in ("random.seed", "random.random", "random.shuffle", "random.choice", "set_seed")
    ]
    for path, tree in modules().items():
        inside = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.With)
            and any("fork_rng" in ast.unparse(item.context_expr) for item in node.items)
            for inner in ast.walk(node)
        }
        offences += [
            f"{place(path, node.lineno)}: torch.manual_seed outside fork_rng"
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            and ast.unparse(node.func)
            in ("torch.manual_seed", "torch.default_generator.manual_seed")
            and id(node) not in inside
        ]
    assert not offences, "\n".join(offences)


# --- a command that starts fast


HEAVY = ("torch", "transformers", "peft", "datasets", "sklearn", "scipy", "pyarrow", "matplotlib")


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["train", "--help"]])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    script = (
        "import json, sys\n"
        f"sys.argv = ['fleetune', *{words!r}]\n"
        "from fleetune.cli.main import main\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "sys.stderr.write(json.dumps(heavy))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True
    )
    assert json.loads(done.stderr) == []
    assert "fleetune" in done.stdout


# What tables, reports and own Parquet files need: after the first step.
LATER = ("scipy.stats", "pandas", "pyarrow.compute", "matplotlib", "sklearn", "datasets", "optuna")


def test_training_begins_without_what_comes_after_it() -> None:
    script = (
        "import json, sys\n"
        "import fleetune.live.follow, fleetune.study.fixed, fleetune.study.run\n"
        f"print(json.dumps([name for name in {LATER!r} if name in sys.modules]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True
    )
    assert json.loads(done.stdout) == []
