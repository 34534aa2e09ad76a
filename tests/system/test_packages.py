"""Messages on missing packages."""

import re
from pathlib import Path

import pytest

from depthany.system.packages import MissingPackage, how_to_install, optional

ROOT = Path(__file__).resolve().parents[2]


def test_missing_package_names_its_extra() -> None:
    with pytest.raises(MissingPackage, match=re.escape("pip install 'depthany[heic]'")):
        optional("no_such_module", "reading HEIC", "heic")
    assert how_to_install("app") == "pip install 'depthany[app]'"


def test_hints_work_outside_a_checkout() -> None:
    files = [*ROOT.glob("src/**/*.py"), *ROOT.glob("configs/**/*.yaml")]
    assert [path for path in files if re.search(r"pip install -e ['\"]?\.\[", path.read_text())] == []
