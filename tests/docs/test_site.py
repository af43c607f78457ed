"""Test that the pages of the documentation are complete, current and linked, and that their examples run."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from typer.main import get_command

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = ("install.md", "tutorial.md", *sorted(f"how-to/{path.name}" for path in (DOCS / "how-to").glob("*.md")))


def read(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", read(name), re.DOTALL)


def commands(name: str) -> list[list[str]]:
    """Return the arguments of every ``fedrift`` command in the shell blocks of a page."""
    lines = [line.split("   #")[0] for block in blocks(name, "sh") for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("fedrift ")]


def load_script(name: str):
    """Return a module of ``scripts/``."""
    spec = spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_reference_pages_are_current():
    module = load_script("make_reference")
    pages = module.make_pages()
    stale = [name for name, text in pages.items() if not module.is_current(name, text)]
    assert not stale, f"run `make reference`: {stale}"
    assert "`training.client_optimizer`" in pages["config.md"] and "## fedrift drop-state" in pages["commands.md"]
    assert all(f"### {name}\n" in pages["algorithms.md"] for name in ("FedAvg", "Scaffold", "Median", "AdamW", "IFCA"))
    assert "≤ 16,384" in pages["config.md"] and "`dead_model`" in pages["detectors.md"] and "### Dirichlet" in pages["partitions.md"]


def test_every_page_is_in_the_navigation_once():
    def files(part):
        return (
            [part]
            if isinstance(part, str)
            else [name for inner in (part.values() if isinstance(part, dict) else part) for name in files(inner)]
        )

    listed = files(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert sorted(listed) == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


@pytest.mark.parametrize("name", sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")))
def test_a_page_begins_with_its_title(name):
    # mkdocs takes the title from the first line only; a comment before it makes the navigation show the name of the file
    assert read(name).startswith("# ")


def test_long_cells_of_tables_keep_a_readable_width():
    hook = load_script("mkdocs_links").on_page_content
    short, long = "<td><code>" + "a" * 40 + "</code></td>", "<td>a  <code>b</code>\n" + "c" * 37 + "</td>"
    assert hook(short + long) == short + long.replace("<td>", '<td class="long">')
    assert "td.long { min-width" in read("assets/site.css")


def test_the_paper_is_not_the_first_result_of_every_search():
    hook = load_script("mkdocs_links").on_page_markdown
    boosts = []
    for name in ("study/paper.md", "reference/config.md"):
        page = SimpleNamespace(file=SimpleNamespace(src_uri=name), meta={})
        assert hook("text", page) == "text"
        boosts.append(page.meta.get("search", {}).get("boost", 1))
    assert boosts[0] < boosts[1]


@pytest.mark.parametrize("name", ["index.md", *PAGES])
def test_links_lead_to_files(name):
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[\w-]+)?\)", read(name)):
        assert ((DOCS / name).parent / target).exists(), target


@pytest.mark.parametrize("name", PAGES)
def test_commands_of_a_page_are_accepted(name):
    from fedrift.cli.app import app

    group = get_command(app)
    for words in commands(name):
        command, rest = group.commands[words[0]], words[1:]
        if hasattr(command, "commands"):
            command, rest = command.commands[rest[0]], rest[1:]
        command.make_context(words[0], rest)


def test_the_python_of_the_page_on_tasks_runs():
    for code in blocks("how-to/downstream.md", "python"):
        exec(code, {})


def environment(tmp_path: Path) -> dict[str, str]:
    """Return an environment in which ``fedrift`` and ``python`` are those of this test."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, command in (("fedrift", f"{sys.executable} -m fedrift"), ("python", sys.executable)):
        (tools / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        (tools / name).chmod(0o755)
    path = os.pathsep.join([str(tools), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "MPLBACKEND": "agg"}


@pytest.mark.slow
def test_the_tutorial_runs_as_written(tmp_path):
    (tmp_path / "work").mkdir()
    script = "set -e\n" + "\n".join(blocks("tutorial.md", "sh"))
    done = subprocess.run(
        ["sh", "-c", script], cwd=tmp_path / "work", env=environment(tmp_path), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "text column 'body', label column 'kind'" in done.stdout and "the matched IID baseline's" in " ".join(done.stdout.split())


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path):
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert cells and not any(cell["outputs"] for cell in cells)
    (tmp_path / "notebook.py").write_text("\n\n".join("".join(cell["source"]) for cell in cells))
    done = subprocess.run(
        [sys.executable, "notebook.py"], cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
