"""Test that the committed paper and the findings of the README are those of the committed archives of the registered studies."""

from __future__ import annotations

import pytest

from scripts import study_paper
from scripts.study_paper import README_MARKERS, ROOT, STUDIES
from tests.docs.claims.stores import extract_study

ARCHIVED = [name for name in STUDIES if (ROOT / "studies" / "results" / f"{name}.zip").is_file()]


@pytest.fixture(scope="module")
def stored_studies(tmp_path_factory):
    """The registered studies whose archives are committed, and the folder into which they are extracted."""
    root = tmp_path_factory.mktemp("stores")
    for name in ARCHIVED:
        extract_study(root, name)
    return root, study_paper.load_studies([root])


def test_the_text_and_tables_of_the_paper_are_computed_from_the_archives(stored_studies):
    stored = (ROOT / "docs" / "study" / "paper.md").read_text(encoding="utf-8").splitlines()
    computed = study_paper.to_markdown(study_paper.build_paper(stored_studies[1]), "paper").splitlines()
    assert stored == computed


def test_the_findings_of_the_readme_are_those_of_the_archives(stored_studies):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    findings = text.split(README_MARKERS[0])[1].split(README_MARKERS[1])[0].strip()
    assert findings and findings == study_paper.readme_findings(stored_studies[1]).strip()


def test_the_abstract_is_short():
    paper = (ROOT / "docs" / "study" / "paper.md").read_text(encoding="utf-8")
    assert len(paper.split("**Abstract.**")[1].split("## ")[0].split()) <= 380


@pytest.mark.slow
def test_the_paper_is_rebuilt_byte_for_byte(stored_studies, tmp_path):
    study_paper.main(["--runs-dir", str(stored_studies[0]), "--output", str(tmp_path)])
    stored = ROOT / "docs" / "study"
    names = ["paper.md", "paper.pdf", *(f"paper/{path.name}" for path in (tmp_path / "paper").iterdir())]
    assert {f"paper/{path.name}" for path in (stored / "paper").iterdir()} <= set(names)
    assert not [name for name in names if (stored / name).read_bytes() != (tmp_path / name).read_bytes()]
