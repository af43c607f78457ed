"""Write docs/reference/*.md from the code: every key, command, algorithm, partition, probe and detector.

``python scripts/make_reference.py`` writes the pages; with ``--check`` it only reports pages that are not current, with exit code 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import sys
import types
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "reference"
NOTICE = "<!-- Written by `make reference` from the code. Do not edit. -->\n"
SECTION = re.compile(r"^(Args|Attributes|Returns|Raises|Example|Examples|Yields):\s*$", re.MULTILINE)
BOUND_SIGNS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}


def main() -> None:
    """Write or check all pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only report pages that are not current")
    is_check = parser.parse_args().check
    stale = [name for name, text in make_pages().items() if not is_current(name, text)]
    if is_check:
        for name in stale:
            print(f"docs/reference/{name} is not current: run `make reference`")
        sys.exit(bool(stale))
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in make_pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    print(f"{len(stale)} pages changed in {FOLDER.relative_to(ROOT)}")


def is_current(name: str, text: str) -> bool:
    """Return whether a committed page has the text that the code gives."""
    path = FOLDER / name
    return path.is_file() and path.read_text(encoding="utf-8") == text


def make_pages() -> dict[str, str]:
    """Return the text of every page by its file name. The notice is last, because mkdocs takes the title of a page from its first line."""
    pages = {
        "config.md": config_page(),
        "commands.md": commands_page(),
        "algorithms.md": algorithms_page(),
        "partitions.md": partitions_page(),
        "probes.md": probes_page(),
        "detectors.md": detectors_page(),
    }
    return {name: f"{text.rstrip()}\n\n{NOTICE}" for name, text in pages.items()}


# Docstrings and fields


def split_docstring(thing: Any) -> tuple[str, dict[str, str]]:
    """Return the text of a docstring before its sections, and its sections by name."""
    text = inspect.cleandoc(thing.__doc__ or "")
    parts = SECTION.split(text)
    return parts[0].strip(), dict(zip(parts[1::2], parts[2::2], strict=True))


def entries(section: str) -> dict[str, str]:
    """Return the entries ``name: description`` of a section ``Args`` or ``Attributes``."""
    found: dict[str, str] = {}
    for line in inspect.cleandoc(section).splitlines():
        start = re.match(r"(\w+)(?: \([^)]*\))?: (.*)", line)
        if start and not line.startswith(" "):
            name = start[1]
            found[name] = start[2]
        elif found and line.strip():
            found[name] += " " + line.strip()
    return found


def field_comments(cls: type) -> dict[str, str]:
    """Return the comment at the end of the line of each field, for classes without a section ``Args``."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if is_dataclass(base):
            for line in inspect.getsource(base).splitlines():
                match = re.match(r"    (\w+): .*?  # (.+)", line)
                if match:
                    found[match[1]] = match[2]
    return found


def describe_fields(cls: type) -> dict[str, str]:
    """Return the description of every field of a dataclass, from its docstrings and those of its base classes."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        sections = split_docstring(base)[1] if base.__module__.startswith("fedrift") else {}
        found |= entries(sections.get("Args", "") or sections.get("Attributes", ""))
    return {name: re.sub(r"\bNone: ", "null: ", text) for name, text in (field_comments(cls) | found).items()}  # as the file spells it


def to_markdown(text: str) -> str:
    """Convert the double backticks of docstrings to single ones, and join lines of a table cell."""
    return re.sub(r"``([^`]+)``", r"`\1`", text)


def cell(text: str) -> str:
    """Return text as one cell of a Markdown table."""
    return " ".join(to_markdown(text).replace("|", "\\|").split())


def default_of(field: Field[Any]) -> str:
    """Return the default of a field as YAML would show it."""
    if field.default is MISSING and field.default_factory is MISSING:
        return "required"
    value = field.default if field.default is not MISSING else field.default_factory()  # type: ignore[misc]
    return f"`{plain(value)}`"


def plain(value: Any) -> str:
    """Return a value in the notation of YAML."""
    if is_dataclass(value) and not isinstance(value, type):
        inner = {f.name: getattr(value, f.name) for f in fields(value) if getattr(value, f.name) != f.default}
        return (
            f"{{type: {type(value).__name__}{''.join(f', {key}: {plain(part)}' for key, part in inner.items())}}}"
            if inner
            else type(value).__name__
        )
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(plain, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return '""' if value == "" else f"{value:g}" if isinstance(value, float) else str(value)


def describe_type(hint: Any) -> str:
    """Return the type and the range of a field in words: ``integer ≥ 1``, ``one of a, b``."""
    if get_origin(hint) is Annotated:
        inner, *metadata = get_args(hint)
        bounds = [bound for part in metadata for bound in bounds_of(part)]
        nonempty = "non-empty " if any(getattr(part, "min_length", 0) for part in metadata) else ""
        return nonempty + describe_type(inner) + (f" {' and '.join(bounds)}" if bounds else "")
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(f"`{plain(value)}`" for value in get_args(hint))
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(describe_type(part) for part in get_args(hint))
    if get_origin(hint) is tuple:
        return f"list of: {describe_type(get_args(hint)[0])}"
    names = {int: "integer", float: "number", str: "text", bool: "true or false", type(None): "null"}
    return names.get(hint) or getattr(hint, "__name__", str(hint))


def bounds_of(part: Any) -> Iterator[str]:
    """Return the bounds that one annotation sets."""
    if isinstance(part, Iterable) and not isinstance(part, str):
        for inner in part:
            yield from bounds_of(inner)
        return
    for name, sign in BOUND_SIGNS.items():
        value = getattr(part, name, None)
        if value is not None:
            yield f"{sign} {value:,}" if isinstance(value, int) else f"{sign} {value:g}"


def field_rows(cls: type, prefix: str = "", skip: Iterable[str] = ()) -> Iterator[str]:
    """Return one row of a table for each field of a dataclass."""
    hints, descriptions = get_type_hints(cls, include_extras=True), describe_fields(cls)
    for field in fields(cls):
        if field.name not in skip and field.init:
            yield (
                f"| `{prefix}{field.name}` | {default_of(field)} | {cell(describe_type(hints[field.name]))} | "
                f"{cell(descriptions.get(field.name, ''))} |"
            )


def table(rows: Iterable[str], key: str = "key") -> str:
    """Return a table of fields; "" without rows."""
    lines = list(rows)
    return "\n".join([f"| {key} | default | type and range | meaning |", "|---|---|---|---|", *lines]) + "\n" if lines else ""


def class_section(cls: type, name: str = "") -> str:
    """Return the section of one class that an experiment can name: its docstring and its keys."""
    text, sections = split_docstring(cls)
    example = sections.get("Example", "").strip("\n")
    parts = [f"### {name or cls.__name__}\n", to_markdown(text) + "\n", table(field_rows(cls))]
    if example:
        parts.append(f"```python\n{inspect.cleandoc(example)}\n```\n")
    return "\n".join(part for part in parts if part)


def registry_section(module: types.ModuleType, title: str, intro: str) -> str:
    """Return the section of all classes that a module lists in ``__all__``."""
    classes = [thing for name in module.__all__ if is_dataclass(thing := getattr(module, name)) and isinstance(thing, type)]
    return f"## {title}\n\n{intro}\n\n" + "\n".join(class_section(cls) for cls in classes)


# Pages


def config_page() -> str:
    """Return the page of every key of an experiment and of a study."""
    from fedrift.config.schema import EvaluationConfig, ExperimentConfig, ForkConfig, TrainingConfig
    from fedrift.data import DatasetConfig
    from fedrift.data.synthetic.language import SyntheticConfig
    from fedrift.models import trainable
    from fedrift.studies import Study

    parts = [
        "# Configuration keys\n",
        "Every key of an experiment with its default, type and range. `backend` and `executor` are given as overrides and are no part of an"
        " experiment. `fedrift validate FILE` prints a whole experiment with all defaults. "
        "Unknown keys and values outside their range are refused with one line each. Losses are in nats per token.\n",
        "## Experiment\n",
        table(field_rows(ExperimentConfig, skip=("fork", "model_fingerprint"))),
        "A key whose value is a class is written `algorithm: FedProx` or `algorithm: {type: FedProx, mu: 0.1}`.\n",
    ]
    for prefix, cls in (
        ("dataset", DatasetConfig),
        ("dataset.synthetic", SyntheticConfig),
        ("training", TrainingConfig),
        ("evaluation", EvaluationConfig),
    ):
        parts += [f"## {prefix}\n", to_markdown(split_docstring(cls)[0]) + "\n", table(field_rows(cls, f"{prefix}."))]
    parts += [
        registry_section(trainable, "trainable", "Which parameters are trained."),
        "## algorithm, partition, clustering, evaluation.probes\n",
        "See [algorithms](algorithms.md), [partitions](partitions.md) and [probes](probes.md).\n",
        "## fork\n",
        "`fedrift fork` writes these keys; they are not written by hand.\n",
        table(field_rows(ForkConfig, "fork.")),
        "## Study\n",
        to_markdown(split_docstring(Study)[0]) + "\n",
        table(field_rows(Study)),
    ]
    return "\n".join(parts)


def algorithms_page() -> str:
    """Return the page of algorithms, aggregators, optimizers and clustering strategies."""
    from fedrift import algorithms, clustering
    from fedrift.algorithms import aggregators
    from fedrift.core import optimizers

    return "\n".join(
        [
            "# Algorithms\n",
            "Every algorithm with its paper, equation and keys. An experiment names it as `algorithm: {type: NAME, key: value}`. "
            "[Own algorithms](../how-to/own-algorithm.md) are one class.\n",
            registry_section(algorithms, "Algorithms", "The key `algorithm` of an experiment."),
            registry_section(
                aggregators, "Aggregators", "The key `algorithm.aggregator`: how the server combines the updates of a cohort."
            ),
            registry_section(optimizers, "Optimizers", "The keys `training.client_optimizer` and `algorithm.server_optimizer`."),
            registry_section(clustering, "Clustering", "The key `clustering`: which clients share a model."),
        ]
    )


def partitions_page() -> str:
    """Return the page of partitions."""
    from fedrift import partition

    return "\n".join(
        [
            "# Partitions\n",
            "Every way to assign documents to clients, with its keys. At severity 0 each is the IID baseline. "
            "[Own partitions](../how-to/own-partition.md) are one class; [pathologies](../pathologies.md) has measured values.\n",
            registry_section(partition, "Partitions", "The key `partition` of an experiment."),
        ]
    )


def probes_page() -> str:
    """Return the page of probe groups, from the docstrings of their factories, and of their modules where these have one group."""
    from fedrift import probes as registry

    pairs: dict[str, list[Callable[..., Any]]] = {}
    source = inspect.getsource(registry)
    for constant, factory in re.findall(r"\((\w+_GROUP), (\w+)\)", source):
        pairs.setdefault(getattr(registry, constant), []).append(getattr(registry, factory))
    parts = [
        "# Probes\n",
        "Every group of probes that `evaluation.probes` may name. [Probes](../probes.md) lists the metrics with formula and unit; "
        "[own probes](../how-to/own-probe.md) are one function.\n",
        "| group | by default | what it measures |",
        "|---|---|---|",
    ]
    from fedrift.config.schema import EvaluationConfig

    for group, factories in sorted(pairs.items()):
        text = " ".join(split_docstring(factory)[0] for factory in factories)
        parts.append(f"| `{group}` | {'yes' if group in EvaluationConfig().probes else ''} | {cell(text)} |")
    parts.append("")
    num_groups = Counter(module for factories in pairs.values() for module in {factory.__module__ for factory in factories})
    for group, factories in sorted(pairs.items()):
        parts.append(f"## {group}\n")
        for factory in factories:
            parts.append(to_markdown(split_docstring(factory)[0]) + "\n")
            if num_groups[factory.__module__] == 1:
                details = inspect.cleandoc(sys.modules[factory.__module__].__doc__ or "").partition("\n\n")[2]
                parts += [to_markdown(details) + "\n"] if details else []
    return "\n".join(parts)


def detectors_page() -> str:
    """Return the page of detectors and of their thresholds."""
    from fedrift.diagnosis import detectors, finding

    parts = [
        "# Detectors\n",
        "Every detector of `fedrift diagnose`, with what it detects. [Detectors](../detectors.md) explains how findings are graded, and "
        "[calibration](../calibration.md) how often each errs.\n",
        "| detector | what it detects |",
        "|---|---|",
        *(f"| `{detector.__name__}` | {cell(split_docstring(detector)[0])} |" for detector in detectors.ALL_DETECTORS),
        "\n## How each decides\n",
    ]
    for module in dict.fromkeys(sys.modules[detector.__module__] for detector in detectors.ALL_DETECTORS):
        parts.append(to_markdown(inspect.cleandoc(module.__doc__ or "")) + "\n")
    path = Path(inspect.getfile(finding)).with_name("thresholds.yaml")
    parts += ["## Thresholds\n", "`fedrift/diagnosis/thresholds.yaml`:\n", f"```yaml\n{path.read_text(encoding='utf-8').rstrip()}\n```\n"]
    return "\n".join(parts)


def commands_page() -> str:
    """Return the page of every command with its arguments and options."""
    import click
    from typer.main import get_command

    from fedrift.cli.app import app

    group = get_command(app)
    parts = ["# Commands\n", to_markdown(inspect.cleandoc(group.help or "")) + "\n"]
    context = click.Context(group, info_name="fedrift")

    def add(command: Any, name: str) -> None:
        if hasattr(command, "commands"):
            for inner, sub in command.commands.items():
                add(sub, f"{name} {inner}")
            return
        words = [param.metavar or param.name.upper() for param in command.params if param.param_type_name == "argument"]
        parts.append(f"## {name}\n")
        parts.append(f"```text\n{' '.join([name, *words])} [OPTIONS]\n```\n")
        parts.append(to_markdown(inspect.cleandoc(command.help or "")) + "\n")
        rows = [option_row(param) for param in command.params if param.name not in ("verbose", "help")]
        parts.append("\n".join(["| argument or option | default | meaning |", "|---|---|---|", *rows]) + "\n")

    for name in group.list_commands(context):  # type: ignore[attr-defined]
        add(group.get_command(context, name), f"fedrift {name}")  # type: ignore[attr-defined]
    return "\n".join(parts)


def option_row(param: Any) -> str:
    """Return the row of one argument or option."""
    is_option = param.param_type_name == "option"
    name = ", ".join([*param.opts, *param.secondary_opts]) if is_option else (param.metavar or param.name)
    default = "" if param.default is None or callable(param.default) or param.required else str(param.default)
    if default in ("False", "[]", "()") or dataclasses.is_dataclass(param.default):
        default = ""
    escaped = name.replace("|", "\\|")
    return f"| `{escaped}` | {f'`{default}`' if default else ''} | {cell(getattr(param, 'help', '') or '')} |"


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
