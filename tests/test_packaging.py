"""What installs the package, and the documents that stand beside it."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(path.relative_to(ROOT / "docs").as_posix() for path in ROOT.glob("docs/**/*.md"))
OF_TESTS = (
    "fast",
    "predict",
    "sets",
    "lmdb",
    "heic",
    "onnx",
    "coreml",
    "app",
    "submitit",
)  # extras that tests need


@pytest.fixture(scope="module")
def extras() -> dict[str, list[str]]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return dict(project["optional-dependencies"])


def test_no_extra_names_the_package(extras: dict[str, list[str]]) -> None:
    assert not [need for needs in extras.values() for need in needs if need.startswith("depthany")]


def test_dev_has_the_extras_of_tests(extras: dict[str, list[str]]) -> None:
    for extra in OF_TESTS:
        assert set(extras[extra]) <= set(extras["dev"]), extra


def test_installation_page_names_every_extra(extras: dict[str, list[str]]) -> None:
    page = (ROOT / "docs/installation.md").read_text()
    assert not [extra for extra in extras if f"`{extra}`" not in page]


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_every_page_is_in_the_navigation() -> None:
    def files(part: Any) -> list[str]:
        if isinstance(part, str):
            return [part]
        return [name for each in (part.values() if isinstance(part, dict) else part) for name in files(each)]

    in_navigation = files(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert sorted(in_navigation) == [page for page in PAGES if not page.startswith("plugin_example/")]


@pytest.mark.parametrize(
    "name", ["README.md", "CONTRIBUTING.md", "data/README.md", *(f"docs/{p}" for p in PAGES)]
)
def test_links_of_documents_lead_to_files(name: str) -> None:
    path = ROOT / name
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" not in target:
            file, _, heading = target.partition("#")
            linked = path.parent / file if file else path
            assert linked.exists(), f"{name}: {target}"
            assert not heading or heading in slugs(linked), f"{name}: {target}"


def slugs(page: Path) -> set[str]:
    """Returns the anchors of the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
