"""What a release needs: one version everywhere, a site with every page, and a clip that may be shipped."""

from __future__ import annotations

import re

from helpers.paths import ROOT

import tatok_edge


def test_there_is_one_version() -> None:
    (version,) = re.findall(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert tatok_edge.__version__ == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {version}\n" in (ROOT / "CHANGELOG.md").read_text()


def test_every_page_is_in_the_site() -> None:
    named = re.findall(r"^ +- [^:\n]+: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert all((ROOT / name).is_file() for name in named)
    assert {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")} <= set(named)


def test_what_a_page_loads_is_small() -> None:
    assert (ROOT / "docs" / "bottles.webp").stat().st_size <= 400_000
    clips = [path for path in (ROOT / "examples" / "data").iterdir() if path.suffix != ".md"]
    credits = (ROOT / "examples" / "data" / "README.md").read_text()
    assert clips
    for clip in clips:
        assert clip.stat().st_size <= 500_000
        assert clip.name in credits
        assert "creativecommons.org/licenses/by/4.0" in credits


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200
