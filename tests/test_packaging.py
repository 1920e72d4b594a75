"""pyproject.toml and the requirements ask for the same versions."""

import re
import tomllib

from conftest import ROOT


def test_what_the_package_needs_stands_in_the_requirements():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [line.partition("#")[0].strip()
             for name in ("requirements.txt", "requirements-beam.txt", "requirements-page.txt",
                          "requirements-export.txt")
             for line in (ROOT / name).read_text().splitlines()]
    extras = project["optional-dependencies"].values()
    wanted = [*project["dependencies"], *(line for extra in extras for line in extra)]
    assert set(wanted) <= set(lines)
    # What is left is for the tests.
    names = {re.split("[<>=]", line)[0] for line in set(lines) - {*wanted, "", "-e .", "-r requirements.txt"}}
    assert names == {"pytest", "pytest-xdist", "hypothesis", "ruff", "playwright"}
