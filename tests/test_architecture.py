"""Who may import whom: arrows point down, and heavy packages stay in the rooms that need them."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "fedrift"

# Room -> rooms that it may import. What is not named here may not be imported; every room may import itself.
GROUND = {"errors", "seeds"}
TENSORS = GROUND | {"tree", "streams"}
VALUES = TENSORS | {"memory", "values", "optimizers"}
MAY = {
    "errors": set(),
    "seeds": set(),
    "streams": {"seeds"},
    "tree": set(),
    "records": {"errors"},
    "memory": {"tree"},
    "values": {"memory", "tree"},
    "optimizers": {"tree"},
    "corpus": GROUND,
    "partition": GROUND | {"corpus"},
    "models": VALUES,
    "algorithms": VALUES - {"errors"} | {"errors"},
    "fleet": VALUES | {"corpus"},
    "rounds": VALUES | {"algorithms", "fleet"},
    "mitigation": VALUES | {"algorithms", "fleet", "rounds"},
    "probes": VALUES | {"records", "corpus", "models", "partition"},
    "store": {"errors", "records"},
    "detectors": {"records"},
    "diagnose": {"records", "detectors", "store"},
    "calibrate": VALUES | {"algorithms", "conform", "corpus", "detectors", "diagnose", "experiment", "fleet", "models",
                           "partition", "probes", "records", "rounds", "run", "setting", "stock", "store"},
    "report": {"errors", "records", "store", "detectors", "diagnose", "corpus", "partition", "statistics", "study"},
    "yaml_text": {"errors"},
    "config": {"errors", "yaml_text"},
    "experiment": VALUES | {"config", "corpus", "partition", "algorithms", "fleet", "mitigation", "models", "probes"},
    "folders": set(),
    "runtime": {"errors", "folders"},
    "stock": {"corpus", "models", "runtime"},
    "measuring": VALUES | {"algorithms", "corpus", "experiment", "models", "partition", "probes", "stock"},
    "setting": VALUES | {"algorithms", "corpus", "experiment", "fleet", "measuring", "mitigation", "models", "partition",
                         "probes", "rounds", "runtime", "stock"},
    "recording": VALUES | {"algorithms", "experiment", "fleet", "setting", "store"},
    "run": VALUES | {"detectors", "experiment", "fleet", "models", "probes", "recording", "records", "rounds", "runtime",
                     "setting", "stock", "store"},
    "likeness": VALUES | {"experiment", "probes", "recording", "setting", "stock", "store"},
    "replay": VALUES | {"config", "diagnose", "experiment", "probes", "recording", "records", "store"},
    "profile": VALUES | {"algorithms", "experiment", "fleet", "models", "probes", "recording", "records", "rounds", "run",
                         "runtime", "setting", "stock", "store"},
    "statistics": GROUND,
    "study": GROUND | {"config", "detectors", "experiment", "records", "run", "runtime", "setting", "statistics", "stock",
                       "store"},
    "sinks": {"errors", "records", "store"},
    "watch": {"config", "detectors", "diagnose", "errors", "report", "store", "study"},
    "arms": {"config", "detectors", "diagnose", "errors", "experiment", "records", "statistics", "stock", "store", "study"},
    "flower": VALUES | {"algorithms", "config", "corpus", "experiment", "fleet", "folders", "models", "rounds", "run", "runtime",
                        "setting", "stock", "store"},
    "conform": VALUES | {"algorithms", "fleet", "rounds", "statistics"},
}
ONLY_IN = {  # package -> the rooms that may name it
    "duckdb": {"store"},
    "pyarrow": {"store", "corpus", "partition"},
    "ray": {"study"},
    "submitit": {"study"},
    "statsmodels": {"statistics"},
    "sacrebleu": {"probes"},
    "rouge_score": {"probes"},
    "flwr": {"flower", "conform"},
    "transformers": {"models"},
    "peft": {"models"},
    "datasets": {"corpus"},
    "wordllama": {"corpus"},
    "sentence_transformers": {"corpus"},
    "altair": {"report"},
    "vl_convert": {"report"},
    "typst": {"report"},
    "pydantic": {"config"},
    "typer": {"cli"},
    "rich": {"cli"},
}
WITHOUT_TORCH = {"errors", "seeds", "records", "corpus", "partition", "detectors", "diagnose", "report", "config", "statistics",
                 "watch"}


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


@cache
def imports(path: Path) -> set[str]:
    """The absolute names of all modules that a file imports, wherever in it it does."""
    package = ["fedrift", *path.relative_to(PACKAGE).parent.parts]
    found: set[str] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            found |= {stem} if stem != "fedrift" else {f"fedrift.{name.name}" for name in node.names}
    return found


def test_arrows_point_down():
    wrong = []
    for path in files():
        room = room_of(path)
        if room in ("cli", "__init__"):
            continue
        assert room in MAY, f"{room} is a new package: MAY must list what it may import"
        rooms = {name.split(".")[1] for name in imports(path) if name.startswith("fedrift.")} - {room, "__version__"}
        if not rooms <= MAY[room]:
            wrong.append(f"{path.relative_to(PACKAGE)} may not import {sorted(rooms - MAY[room])}")
    assert not wrong, "\n".join(wrong)


def test_heavy_packages_stay_in_their_rooms():
    wrong = []
    for path in files():
        room, named = room_of(path), {name.split(".")[0] for name in imports(path)}
        wrong += [f"{path.relative_to(PACKAGE)} imports {package}, which only {sorted(rooms)} may import"
                  for package, rooms in ONLY_IN.items() if package in named and room not in rooms]
        if "torch" in named and room in WITHOUT_TORCH:
            wrong.append(f"{path.relative_to(PACKAGE)} imports torch, and {room} must work without it")
    assert not wrong, "\n".join(wrong)


def test_every_file_begins_with_a_docstring():
    assert not [str(path.relative_to(PACKAGE)) for path in files() if not ast.get_docstring(tree_of(path))]


def test_the_cli_is_imported_by_nobody():
    assert not [path for path in files() if room_of(path) != "cli" and any(n.startswith("fedrift.cli") for n in imports(path))]


def test_no_draw_without_a_name():
    """Global random state and ``hash`` of strings differ from process to process."""
    for path in files():
        text = path.read_text()
        for wrong in ("np.random.seed", "np.random.rand", "torch.manual_seed", "import random\n", " hash("):
            assert wrong not in text, f"{wrong} in {path.name}"
