"""What is published: an sdist that tests itself, and a wheel that has what it needs."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PARTS = ("onnx_bnfold", "tests", "tools", "docs", ".ci")
FILES = (
    ".pre-commit-hooks.yaml",
    "action.yml",
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "MANIFEST.in",
    "pyproject.toml",
)

pytestmark = pytest.mark.slow  # copies the sources and builds them


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A copy of the sources, and in its ``dist`` what is built from it."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("sources")
    for part in PARTS:
        ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
        shutil.copytree(ROOT / part, folder / part, ignore=ignored)
    for name in FILES:
        shutil.copy(ROOT / name, folder / name)
    build = "from setuptools import build_meta as b; b.build_sdist('dist'); b.build_wheel('dist')"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run(
        [sys.executable, "-c", build], cwd=folder, env=environment, check=True, capture_output=True
    )
    return folder


def test_the_sdist_has_all_that_tests_it(built):
    (archive,) = (built / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    wanted = {
        path.relative_to(built).as_posix()
        for part in PARTS
        for path in (built / part).rglob("*")
        if path.is_file()
    }
    assert wanted | set(FILES) <= names


def test_the_wheel_has_the_package_and_nothing_else(built):
    (archive,) = (built / "dist").glob("*.whl")
    with zipfile.ZipFile(archive) as file:
        names = {name for name in file.namelist() if ".dist-info/" not in name}
        (metadata,) = (n for n in file.namelist() if n.endswith("/METADATA"))
        described = file.read(metadata).decode()
    package = built / "onnx_bnfold"
    assert names == {
        path.relative_to(built).as_posix()
        for path in package.rglob("*")
        if path.is_file() and path.suffix != ".md"
    }
    for field in (
        "Keywords: ONNX",
        "Classifier: Typing :: Typed",
        "License-Expression: Apache-2.0",
    ):
        assert field in described
