"""What a release consists of agrees: the version, the changelog, the citation, and the templates for issues."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import hf_cam

ROOT = Path(__file__).parents[1]
TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def test_the_changelog_and_the_citation_have_the_version_and_one_date():
    first, latest = re.findall(r"^## \[(.+?)\](?: - (.+))?$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[:2]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert first == ("Unreleased", "")
    assert latest == (hf_cam.__version__, str(citation["date-released"]))
    assert citation["version"] == hf_cam.__version__


def test_there_are_templates_for_issues():
    assert len(TEMPLATES) == 3


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_an_issue_template_has_what_the_form_needs(path):
    template = yaml.safe_load(path.read_text())
    assert template["name"]
    assert template["description"]
    fields = [part for part in template["body"] if part["type"] != "markdown"]
    assert all(part["attributes"]["label"] for part in fields)
    assert len({part["id"] for part in fields}) == len(fields)
    assert any(part.get("validations", {}).get("required") for part in fields)
