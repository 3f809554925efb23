"""The documentation is true: examples run, links lead somewhere, lists agree with the code."""

import dataclasses
import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
from support import bn, conv, join, model_of, node

import onnx_bnfold
from onnx_bnfold import Options, Reason, reports
from onnx_bnfold.advice import ADVICE
from onnx_bnfold.check import CheckOptions
from onnx_bnfold.operators.table import every_entry

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted(DOCS.glob("*.md")),
]
TEST_PAGES = sorted((ROOT / "tests").rglob("*.md"))


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    found = re.findall(r"^ *```(\w+)\n(.*?)^ *```", page.read_text(), re.MULTILINE | re.DOTALL)
    return [Block(*each) for each in found]


def prose(page: Path) -> str:
    """A page without what is code."""
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def rows(page: Path, header: str) -> list[list[str]]:
    """The cells of the table with this header, of all tables if there are more."""
    lines = iter(page.read_text().splitlines())
    found = []
    for line in lines:
        if line.startswith(f"| {header} |"):
            next(lines)
            for row in lines:
                if not row.startswith("|"):
                    break
                found.append([c.strip() for c in re.split(r"(?<!\\)\|", row)[1:-1]])
    assert found, f"{name(page)} has no table of {header}"
    return found


def first_cells(page: Path, header: str, pattern: str) -> list[str]:
    """What a pattern finds in the first cells of a table."""
    return [match for row in rows(page, header) for match in re.findall(pattern, row[0])]


# --- the text -------------------------------------------------------------------------------


def test_the_readme_is_an_introduction():
    assert 150 <= len((ROOT / "README.md").read_text().splitlines()) <= 200


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ +(.+)$", prose(page), re.MULTILINE)
    words = (re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings)
    return set(words)


@pytest.mark.parametrize("page", [*PAGES, *TEST_PAGES], ids=name)
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    for target in targets:
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_every_page_is_reached_from_the_readme():
    linked = set(re.findall(r"\]\(([^)#\s]+)", prose(ROOT / "README.md")))
    assert linked >= {name(page) for page in DOCS.glob("*.md")} | {"CONTRIBUTING.md"}


def test_every_file_of_docs_is_linked():
    linked = {Path(t).name for page in PAGES for t in re.findall(r"\]\(([^)#\s]+)", prose(page))}
    assert {path.name for path in DOCS.iterdir() if path.is_file()} <= linked


def test_what_is_named_exists():
    """Files and modules of this repository, in the text and in commands."""
    for page in PAGES:
        text = page.read_text()
        paths = re.findall(r"(?:(?<=`)|(?<=python ))((?:tests|tools|docs)/[\w./-]+)", text)
        modules = re.findall(r"-m ((?:tests|tools)\.[\w.]+)", text)
        for path in [*paths, *(module.replace(".", "/") for module in modules)]:
            assert (ROOT / path).exists() or (ROOT / f"{path}.py").exists(), (name(page), path)


# --- lists that are in the code, too --------------------------------------------------------

OPTION = r"--[a-z][a-z0-9-]*"


@functools.cache
def described(*words: str) -> str:
    """What a command says of itself."""
    return subprocess.run(
        [sys.executable, "-m", "onnx_bnfold", *words, "--help"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"COLUMNS": "200"},
    ).stdout


def options_of(text: str) -> set[str]:
    return set(re.findall(OPTION, text)) - {"--help"}


OF_STORES, OF_CHECKS = "\na store:", "\nwith --check: "


def test_options_of_a_fold():
    own, _, _ = described().partition(OF_STORES)
    listed = set(first_cells(ROOT / "README.md", "option", OPTION))
    assert listed == options_of(own), "left: the table of options in README.md"


def test_options_of_a_check():
    page = DOCS / "check-and-reports.md"
    listed = set(first_cells(page, "option", OPTION))
    assert listed == options_of(described("check")) - {"--quiet"}
    _, *of_checks = described().split(OF_CHECKS)
    assert listed == options_of("".join(of_checks).partition("exit codes:")[0]) | {"--report"}


def test_options_of_a_batch():
    _, _, others = described().partition(OF_STORES)
    own, _, _ = others.partition(OF_CHECKS)
    assert set(first_cells(DOCS / "batch.md", "option", OPTION)) == options_of(own)


def test_defaults_of_a_check():
    """They are said in the help and belong to ``CheckOptions``."""
    text = described("check")
    for field in dataclasses.fields(CheckOptions):
        option = f"--{field.name.replace('_', '-')} "
        if isinstance(field.default, int | float) and not isinstance(field.default, bool):
            _, _, about = text.partition(f"  {option}")
            assert f"(default {field.default:g})" in about.partition("\n  --")[0], option


def test_exit_codes():
    _, _, codes = described().partition("exit codes:")
    listed = first_cells(ROOT / "README.md", "code", r"\d+")
    assert listed == re.findall(r"^ +(\d+)  ", codes, re.MULTILINE)


def test_fields_of_options():
    listed = {row[0].strip("`"): row[1].strip("`") for row in rows(DOCS / "api.md", "field")}
    fields = dataclasses.fields(Options)
    expected = {field.name: repr(field.default) for field in fields}
    assert listed == expected, "left: the table of options in docs/api.md"


def test_choices_of_options():
    for page, header in ((ROOT / "README.md", "option"), (DOCS / "api.md", "field")):
        cells = " ".join(" ".join(row) for row in rows(page, header)).replace("\\", "")
        for choices in re.findall(r"\{([a-z0-9,|-]+)\}", described()):
            assert choices.replace(",", "|") in cells


def test_public_names():
    text = (DOCS / "api.md").read_text()
    public = set(onnx_bnfold.__all__) - {"__version__"}
    assert {
        each for each in public if not re.search(rf"`{each}\b|import .*\b{each}\b", text)
    } == set()


def test_errors():
    listed = first_cells(DOCS / "api.md", "error", r"`(\w+)`")
    public = [getattr(onnx_bnfold, each) for each in onnx_bnfold.__all__ if each != "__version__"]
    errors = {e.__name__ for e in public if isinstance(e, type) and issubclass(e, Exception)}
    assert set(listed) == errors


def test_attributes_of_a_report():
    for cell in first_cells(DOCS / "api.md", "attribute of `Report`", r"`(\w+)"):
        fields = {field.name for field in dataclasses.fields(onnx_bnfold.Report)}
        assert cell in fields or hasattr(onnx_bnfold.Report, cell)


def test_reason_codes():
    page = DOCS / "reasons.md"
    sections = re.split(r"^### ", page.read_text(), flags=re.MULTILINE)[1:]
    described = {section.splitlines()[0]: section for section in sections}
    assert set(described) == {reason.value for reason in Reason}
    assert len(described) == len(sections)
    assert [code for code, text in described.items() if "**What you can do:**" not in text] == []


def test_advice():
    """What the command line says in a few words is how the page begins to say it."""
    text = (DOCS / "reasons.md").read_text().replace("`", "")
    for section in re.split(r"^### ", text, flags=re.MULTILINE)[1:]:
        _, _, said = section.partition("**What you can do:** ")
        assert " ".join(said.split()).startswith(ADVICE[Reason(section.splitlines()[0])])
    assert ADVICE.keys() == set(Reason)


def test_operators():
    listed = {row[0]: int(row[1]) for row in rows(DOCS / "what-is-folded.md", "operator")}
    expected = {operator: entry.version for operator, entry in every_entry().items()}
    assert listed == expected, "left: the tables of operators in docs/what-is-folded.md"


def test_fields_of_the_json():
    schema = json.loads((Path(reports.__file__).parent / "schema.json").read_text())
    listed = first_cells(DOCS / "check-and-reports.md", "field", r"`(\w+)`")
    assert listed
    assert set(listed) == set(schema["properties"])


def test_recipes_are_the_examples():
    """The CI job in docs/, which other tests run, is what the page shows."""
    yaml = pytest.importorskip("yaml")
    steps = yaml.safe_load((DOCS / "ci-example.yml").read_text())["jobs"]["fold"]["steps"]
    commands = [" ".join(step["run"].split()) for step in steps if "run" in step][1:]
    recipe = blocks(DOCS / "recipes.md")[0]
    assert recipe.text.splitlines() == commands


# --- examples that run ----------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, request, rng) -> Path:
    """What the examples find: a model, a fold of it, data, and a model repository."""
    parts = join(
        conv("x", "c", (8, 3, 3, 3), rng),
        bn("c", "b", 8, rng),
        node("Relu", ["b"], ["r"]),
        *([bn("r", "t", 8, rng)] if request.node.callspec.id == "README.md" else []),
    )
    last = parts.nodes[-1].output[0]
    parts = join(parts, node("GlobalAveragePool", [last], ["p"]), node("Flatten", ["p"], ["y"]))
    model = model_of(parts.nodes, {"x": ("N", 3, 8, 8)}, {"y": ("N", 8)}, parts.initializers)
    served = tmp_path / "models" / "resnet18" / "1"
    served.mkdir(parents=True)
    (served.parent / "config.pbtxt").write_text('name: "resnet18"\n')
    for path in (tmp_path / "model.onnx", tmp_path / "original.onnx", served / "model.onnx"):
        onnx.save(model, path)
    onnx_bnfold.fold_file(tmp_path / "model.onnx", tmp_path / "folded.onnx")
    images = rng.standard_normal((50, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "test.npz", x=images, labels=rng.integers(0, 8, 50))
    programs = tmp_path / "bin"
    programs.mkdir()
    for program, words in {"python": "", "onnx-bnfold": "-m onnx_bnfold"}.items():
        (programs / program).write_text(f'exec "{sys.executable}" {words} "$@"\n')
        (programs / program).chmod(0o755)
    return tmp_path


def run(block: Block, folder: Path) -> None:
    """Run an example as a reader would."""
    environment = os.environ | {"PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    if block.language == "python":
        (folder / "example.py").write_text(block.text)
        command = [sys.executable, "example.py"]
    else:
        command = ["bash", "-e", "-c", block.text]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{block.text}\n{done.stdout}\n{done.stderr}"


FRAMEWORKS = {"optimum", "timm", "torch", "torchvision", "transformers", "ultralytics"}


def imported(block: Block) -> set[str]:
    """The packages that an example imports."""
    return set(re.findall(r"^(?:from|import) (\w+)", block.text, re.MULTILINE))


def is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def is_quick(block: Block) -> bool:
    """Whether an example neither installs anything nor needs a framework, or what is not here."""
    packages = imported(block) if block.language == "python" else set()
    if not packages.isdisjoint(FRAMEWORKS) or not all(map(is_installed, packages)):
        return False
    return "pip install" not in block.text


def examples(page: Path) -> Iterator[Block]:
    return (block for block in blocks(page) if block.language in ("sh", "python"))


@pytest.mark.parametrize("page", [p for p in PAGES if any(map(is_quick, examples(p)))], ids=name)
def test_examples(page, folder):
    for block in filter(is_quick, examples(page)):
        run(block, folder)


EXPORTS = [b for b in examples(DOCS / "recipes.md") if imported(b) & FRAMEWORKS]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "block"),
    [(DOCS / "recipes.md", block) for block in EXPORTS],
    ids=["-".join(sorted(imported(block) & FRAMEWORKS)) for block in EXPORTS],
)
def test_the_exports(page, block, folder):
    for package in imported(block):
        pytest.importorskip(package)
    run(block, folder)


def test_what_is_not_run_is_shown_as_such():
    """A block of another language is a session that is shown, or a piece of a file."""
    languages = {block.language for page in PAGES for block in blocks(page)}
    assert languages <= {"sh", "python", "console", "json", "text"}
