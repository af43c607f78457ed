"""Test which package may import which: dependencies point down, have no cycles, and heavy packages stay in their places."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "fedrift"

# Package, or some files of it: what they may import besides themselves. Other imports are not allowed. A file belongs to the longest name
# with which its path starts: ``clustering/comparison`` are all files that start with it, and ``clustering`` is the rest.
TEXT = {"core", "data", "partition"}
TRAINING = {"core", "algorithms", "simulation"}
CONFIG = {"config", "config/loader", "config/runtime"}
ENGINE = {"engine", "engine/build", "engine/cache", "engine/checks", "engine/loop"}
ALLOWED_IMPORTS = {
    "core": set(),
    "stats": {"core"},
    "data": {"core"},
    "partition": {"core", "data"},
    "models": {"core"},
    "algorithms": {"core"},
    "simulation": {"core", "data"},
    "probes": TEXT | {"models"},
    "engine/loop": TRAINING,
    "clustering": TRAINING,
    "clustering/runtime": TRAINING | {"clustering", "engine/loop"},
    "config/loader": {"core"},
    "config/runtime": {"core"},
    "config": TEXT | TRAINING | {"config/loader", "models", "probes", "clustering"},
    "storage": {"core"},
    "diagnosis": {"core", "storage"},
    "engine/cache": CONFIG | TEXT | {"models"},
    "engine/checks": CONFIG | {"core", "data", "clustering"},
    "engine/build": TEXT | TRAINING | CONFIG | {"models", "probes", "clustering", "clustering/runtime", "engine/cache", "engine/checks"},
    "storage/fork": TRAINING | CONFIG | {"storage", "engine/build"},
    "diagnosis/fork": CONFIG | {"core", "probes", "storage", "storage/fork", "diagnosis"},
    "engine": TRAINING | CONFIG | {"models", "probes", "storage", "storage/fork", "diagnosis"} | ENGINE,
    "studies": CONFIG | ENGINE | {"core", "stats", "storage", "diagnosis"},
    "clustering/comparison": CONFIG | {"core", "clustering", "engine/cache", "stats", "storage", "diagnosis", "studies"},
    "report": TEXT | {"config/loader", "stats", "storage", "diagnosis", "studies"},
    "flower": TEXT | TRAINING | CONFIG | ENGINE | {"models", "storage", "recorder", "conformance"},
    "conformance": TRAINING | {"engine/loop", "stats"},
    "profiling": TRAINING | CONFIG | ENGINE | {"models", "probes", "storage", "storage/fork"},
    "callbacks": ENGINE,
    "partitioners": {"core", "data", "partition"},
    "recorder": {"core", "probes", "storage", "diagnosis"},
    "adapters": {"core", "algorithms", "probes"},
    "api": CONFIG | ENGINE | {"core", "storage", "diagnosis", "studies"},
}
TOP = {"cli", "__init__", "__main__"}  # they may import all packages, and no package imports them
ONLY_IN = {  # external package: the packages of fedrift that may import it
    "duckdb": {"storage"},
    "lm_eval": {"engine"},
    "pyarrow": {"storage", "data", "partition"},
    "ray": {"studies"},
    "submitit": {"studies"},
    "statsmodels": {"stats"},
    "sacrebleu": {"probes"},
    "rouge_score": {"probes"},
    "flwr": {"flower"},
    "transformers": {"models"},
    "peft": {"models"},
    "datasets": {"data"},
    "wordllama": {"data"},
    "sentence_transformers": {"data"},
    "altair": {"report"},
    "vl_convert": {"report"},
    "typst": {"report"},
    "pydantic": {"config"},
    "typer": {"cli"},
    "rich": {"cli"},
}
WITHOUT_TORCH = ("core/errors", "core/records", "core/registry", "data", "partition", "stats", "diagnosis", "report", "config/loader")


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def name_of(path: Path) -> str:
    """Return ``config/schema`` for ``fedrift/config/schema.py`` and ``<package>/__init__`` for a package's own file."""
    return path.relative_to(PACKAGE).with_suffix("").as_posix()


def unit_of(name: str) -> str:
    """Return the entry of ``MAY`` to which a file belongs; its package if there is none."""
    fitting = [unit for unit in ALLOWED_IMPORTS if name == unit or name.startswith(unit if "/" in unit else f"{unit}/")]
    return max(fitting, key=len, default=name.split("/")[0])


def nodes(path: Path, at_import: bool = False) -> Iterator[ast.AST]:
    """Yield all statements of a file; with ``at_import`` without functions and without code for type checkers only."""

    def outside(body: list[ast.stmt]) -> Iterator[ast.AST]:
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                continue
            yield node
            for part in ("body", "orelse", "finalbody"):
                yield from outside(getattr(node, part, []))

    return outside(tree_of(path).body) if at_import else ast.walk(tree_of(path))


def imports(path: Path) -> set[str]:
    """Return the packages outside fedrift that a file imports anywhere."""
    found: set[str] = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(str(node.module).split(".")[0])
    return found


def own_imports(path: Path, at_import: bool = False) -> set[str]:
    """Return the files of fedrift that a file imports, by ``name_of``."""
    package, found = ["fedrift", *path.relative_to(PACKAGE).parent.parts], set()
    for node in nodes(path, at_import):
        if isinstance(node, ast.Import):
            stems = [(name.name, "") for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            stems = [(stem, name.name) for name in node.names]
        else:
            continue
        for stem, name in stems:
            if stem.split(".")[0] == "fedrift":
                place = PACKAGE.joinpath(*stem.split(".")[1:])
                fitting = (place / f"{name}.py", place / name / "__init__.py", place.with_suffix(".py"), place / "__init__.py")
                found.add(name_of(next(file for file in fitting if file.is_file())))
    return found - {name_of(path), "__init__"}  # fedrift itself is imported for its version


def test_packages_import_only_allowed_packages():
    wrong = []
    for path in files():
        unit = unit_of(name_of(path))
        if unit in TOP:
            continue
        assert unit in ALLOWED_IMPORTS, f"{unit} is a new package: ALLOWED_IMPORTS must list what it may import"
        units = {unit_of(name) for name in own_imports(path)} - {unit}
        if not units <= ALLOWED_IMPORTS[unit]:
            wrong.append(f"{name_of(path)} may not import {sorted(units - ALLOWED_IMPORTS[unit])}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "graph",
    [
        {unit: below - {unit} for unit, below in ALLOWED_IMPORTS.items()},
        {name_of(path): own_imports(path, at_import=True) for path in files()},
    ],
    ids=["packages", "files"],
)
def test_imports_have_no_cycles(graph):
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" is imported by ".join(error.args[1]))


def test_heavy_packages_are_imported_only_where_allowed():
    wrong = []
    for path in files():
        name, named = name_of(path), imports(path)
        wrong += [
            f"{name} imports {package}, which only {sorted(rooms)} may import"
            for package, rooms in ONLY_IN.items()
            if package in named and name.split("/")[0] not in rooms
        ]
        if "torch" in named and name.startswith(WITHOUT_TORCH) and unit_of(name) != "diagnosis/fork":
            wrong.append(f"{name} imports torch, and must work without it")
    assert not wrong, "\n".join(wrong)


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    "module",
    [
        "fedrift",
        "fedrift.cli.app",
        "fedrift.api",
        "fedrift.config.schema",
        "fedrift.engine.run",
        "fedrift.storage",
        "fedrift.diagnosis",
        "fedrift.partition",
        "fedrift.report",
        "fedrift.studies",
    ],
)
def test_modules_that_must_start_quickly_do_not_import_torch(module):
    slow = {"torch", "transformers", "flwr", "pandas", "scipy", "statsmodels", "altair"}
    code = f"import sys, {module}; assert not {slow} & set(sys.modules), {slow} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_recorder_of_other_loops_starts_without_transformers():
    """Someone's own PyTorch loop, which may have no language model, waits for torch only."""
    slow = {"transformers", "flwr", "pandas", "scipy", "statsmodels", "altair"}
    code = f"import sys, fedrift; fedrift.Recorder; assert not {slow} & set(sys.modules), {slow} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_file_starts_with_a_docstring():
    assert not [name_of(path) for path in files() if not ast.get_docstring(tree_of(path))]


def test_no_module_imports_the_cli():
    assert not [
        name_of(path)
        for path in files()
        if unit_of(name_of(path)) not in TOP and any(name.startswith("cli/") for name in own_imports(path))
    ]


def test_no_random_number_without_a_named_stream():
    """Global random state and ``hash`` of strings differ between processes."""
    for path in files():
        text = path.read_text()
        for wrong in ("np.random.seed", "np.random.rand", "torch.manual_seed", "import random\n", " hash("):
            assert wrong not in text, f"{wrong} in {path.name}"
