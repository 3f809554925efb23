"""The layers of the package, and which way its imports point."""

import ast
from pathlib import Path

import pytest

import onnx_bnfold

PACKAGE = Path(onnx_bnfold.__file__).parent
# From the lowest to the highest: each may import those before it.
LAYERS = (
    (
        "advice",
        "arrays",
        "errors",
        "interrupts",
        "options",
        "pages",
        "onnx_on_demand",
        "process_memory",
        "progress",
        "reasons",
        "validation",
        "version",
    ),
    ("storage",),
    ("model",),
    ("operators",),
    ("planning",),
    ("rewriting",),
    ("provenance", "report_table", "report", "report_text", "rounds", "attempts", "pipeline"),
    ("record_details", "applying", "given", "ir_messages", "in_memory", "api"),
    ("check", "ir", "olive", "reports"),
    ("batch",),
    ("cli", "__main__", "hook", "store"),
)
# An import inside a function, of something that only some calls need, may point upwards.
UPWARDS = {
    "applying": {"check"},  # measures ranges by running the model
}
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def modules() -> list[str]:
    paths = sorted(p.relative_to(PACKAGE).with_suffix("") for p in PACKAGE.rglob("*.py"))
    return [".".join(p.parts).removesuffix(".__init__") for p in paths if p.parts != ("__init__",)]


def source_of(module: str) -> str:
    path = PACKAGE.joinpath(*module.split("."))
    return (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()


def imports_of(module: str) -> set[str]:
    """Return the modules of the package that a module imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(source_of(module))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("onnx_bnfold"):
            base = (node.module or "").removeprefix("onnx_bnfold").lstrip(".")
            below = [f"{base}.{a.name}".lstrip(".") for a in node.names]
            found |= {name if name in MODULES else base for name in below}
    return found - {""}


MODULES = frozenset(modules())


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_downwards(module):
    here = module.split(".")[0]
    others = {name.split(".")[0] for name in imports_of(module)} - {here}
    wrong = {o for o in others if RANK[o] > RANK[here]} - UPWARDS.get(module, set())
    assert not wrong, f"{module} is of a lower layer than {', '.join(sorted(wrong))}"


def test_every_module_has_a_layer():
    assert {module.split(".")[0] for module in MODULES} == RANK.keys()


def test_no_module_imports_itself_through_others():
    """Imports for type checkers count, too: who needs them is not understood alone."""
    graph = {module: imports_of(module) & MODULES for module in MODULES}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for other in sorted(graph[module]):
                visit(other, (*path, module))
            done.add(module)

    for module in sorted(MODULES):
        visit(module, ())


def test_a_long_file_says_why():
    for module in sorted(MODULES):
        source = source_of(module)
        if source.count("\n") > 350:
            docstring = ast.get_docstring(ast.parse(source)) or ""
            assert "lines" in docstring, f"{module} has {source.count(chr(10))} lines and no reason"
