"""Mutation testing: which changes are made, which tests are asked, and what is said of them."""

import ast
import textwrap

import pytest

from tools.mutation import campaign, changes, lines, places
from tools.mutation.lines import Lines
from tools.mutation.session import PACKAGE, ROOT


def made(text: str) -> list[changes.Change]:
    """Every change of a text."""
    proposals = [p for place in places.places_of(text) for p in place]
    return [c for p in proposals if (c := changes.made("module", text, p)) is not None]


def pairs(text: str) -> set[tuple[str, str]]:
    return {(change.before, change.after) for change in made(text)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("y = a < b", {"y = a <= b", "y = a >= b"}),
        ("y = (a) != (b)", {"y = (a) == (b)"}),
        ("y = a not in b", {"y = a in b"}),
        ("y = a is b", {"y = a is not b"}),
        ("y = a < b == c", {"y = a <= b == c", "y = a >= b == c", "y = a < b != c"}),
        ("y = a + b", {"y = a - b"}),
        ("y = (a * b) / c", {"y = (a / b) / c", "y = (a * b) * c"}),
        ("y = a ** b", {"y = a * b"}),
        ("y = -a", {"y = a"}),
        ("y = not a", {"y =  a"}),
        ("y = 7", {"y = 8", "y = 6", "y = 14", "y = 0"}),
        ("y = 0.25", {"y = 0.5", "y = 0.125", "y = 0.0", "y = 1.0"}),
        ("y = True", {"y = False"}),
        ("y = a and b", {"y = a or b", "y = True and b", "y = a and True"}),
        ("y = a or b", {"y = a and b", "y = False or b", "y = a or False"}),
        ("y = a if b else c", {"y = a if (not (b)) else c"}),
        ("y = [a for a in b if c]", {"y = [a for a in b if (not (c))]"}),
        ("y = min(a, b)", {"y = max(a, b)"}),
        ("y = np.maximum(a, b)", {"y = np.minimum(a, b)"}),
        ("y = any(a)", {"y = all(a)"}),
        ("y = sorted(a)", {"y = list(a)"}),
        ("y = a.b(c)", set()),
        ("a.b = c", {"pass"}),
        ("a[b] = c", {"pass"}),
        ("a += b", {"a -= b", "pass"}),
        ("a.append(b)", {"pass"}),
        ("raise a", {"pass"}),
        ("del a", {"pass"}),
    ],
)
def test_changes_of_a_statement(text, expected):
    assert {after for _, after in pairs(text)} == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("while a:\n    break", {("while a:", "while (not (a)):"), ("break", "continue")}),
        ("for a in b:\n    continue", {("continue", "break")}),
        ("if a:\n    b()", {("if a:", "if (not (a)):"), ("if a:\nb()", "pass"), ("b()", "pass")}),
        ("if a:\n    b = c\nelse:\n    b = d", {("if a:", "if (not (a)):")}),
        ("def f(a=2): pass", {("def f(a=2): pass", f"def f(a={n}): pass") for n in (3, 1, 4, 0)}),
        ("def f() -> bool:\n    return a", {("return a", "return (not (a))")}),
        ("def f() -> A | None:\n    return a", {("return a", "return None")}),
        ("def f() -> A:\n    return a", set()),
    ],
)
def test_changes_of_a_block(text, expected):
    assert pairs(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "assert a < 3",
        "x: int | None",
        "def f(a: int | None) -> A | B: pass",
        "@dataclass(frozen=True)\nclass A: pass",
        "zip(a, b, strict=True).c",
        'y = f"{a + 1}"',
        "if TYPE_CHECKING:\n    import a",
        '"""A docstring."""',
    ],
)
def test_what_has_no_effect_by_design_is_passed_over(text):
    assert not {after for _, after in pairs(text) if after != "pass"}


def test_the_text_around_a_change_stays():
    text = '# größer\ny = ("ä",  a<b,   3)   # why\nz = 1\n'
    assert ('y = ("ä",  a<b,   3)   # why', 'y = ("ä",  a>=b,   3)   # why') in pairs(text)
    for change in made(text):
        assert change.source.splitlines()[0] == "# größer"
        ast.parse(change.source)


def test_a_change_knows_where_it_is():
    text = textwrap.dedent("""
        class A:
            def f(self):
                def g():
                    return a < b
                return g
    """)
    assert {(c.function, c.line) for c in made(text)} == {("A.f.g", 5)}


@pytest.mark.parametrize(
    ("text", "executing", "names"),
    [
        ("def f():\n    y = (a +\n      b)", (2, 3), ()),
        ("def f():\n    if a(1):\n        y = b\n    z = c", (2,), ()),
        ("def f(a=1):\n    b()\n    return c", (2, 3), ()),
        ("T = {\n    'a': lambda x: x + y,\n}", (2,), ("T",)),
        ("T = 1", (), ("T",)),
        ("class A:\n    b: int = 1", (), ("A", "b")),
    ],
)
def test_a_change_knows_what_executes_it(text, executing, names):
    assert (executing, names) in {(c.lines, c.names) for c in made(text) if c.after != "pass"}


def test_drawing_is_even_and_the_same_from_the_same_seed():
    package = ROOT / PACKAGE
    modules = ["operators/affine", "model/graph", "storage/wire"]
    drawn = changes.draw(package, modules, 1, 30)
    assert [change.module for change in drawn] == modules * 10
    assert len({(c.key, c.line) for c in drawn}) > 25
    assert changes.draw(package, modules, 1, 12) == drawn[:12]
    assert changes.draw(package, ["model/graph"], 1, 10) == drawn[1::3]
    assert changes.draw(package, modules, 2, 30) != drawn


def test_modules_are_named_by_file_or_folder():
    package = ROOT / PACKAGE
    everything = changes.modules_of(package)
    assert {"model/graph", "storage/wire"} <= set(everything)
    assert not {m for m in everything if m.startswith(("check/", "batch/", "cli/"))}
    assert "storage/wire" in changes.modules_of(package, ["storage"])
    assert changes.modules_of(package, ["storage/wire"]) == ["storage/wire"]
    with pytest.raises(SystemExit, match="no module wire"):
        changes.modules_of(package, ["wire"])


@pytest.fixture
def package(tmp_path):
    """A package of two modules: `b` reads a constant of `a`."""
    (tmp_path / "a.py").write_text("LIMIT = 3\ndef f():\n    return 1\n")
    (tmp_path / "b.py").write_text("from a import LIMIT\ndef g(x):\n    return x < LIMIT\n")
    return tmp_path


MAP = {
    "tests": [
        {"test": "tests/test_a.py::one", "passed": True, "seconds": 0.5, "processes": False},
        {"test": "tests/test_a.py::two", "passed": False, "seconds": 0.1, "processes": False},
        {"test": "tests/test_b.py::three", "passed": True, "seconds": 0.2, "processes": False},
        {"test": "tests/test_b.py::four", "passed": True, "seconds": 0.3, "processes": True},
    ],
    "lines": {"a": {"3": "3"}, "b": {"3": "4"}},
}


def test_tests_of_a_line_are_those_that_execute_it(package):
    known = Lines(package, [MAP])
    drawn = changes.draw(package, ["a", "b"], 1, 99)
    asked = {c.before: [t.name[-3:] for t in known.of(c)] for c in drawn}
    assert asked["return 1"] == ["one"]
    assert asked["return x < LIMIT"] == ["ree", "our"]
    assert asked["LIMIT = 3"] == ["one", "ree"]  # its own tests may read it themselves
    assert known.failing == ["tests/test_a.py::two"]


def test_tests_that_start_processes_are_asked_where_no_other_test_is(package):
    known = Lines(package, [MAP | {"lines": {}}])
    for change in changes.draw(package, ["a", "b"], 1, 9):
        assert [test.name for test in known.of(change)] == ["tests/test_b.py::four"]


def test_the_own_tests_of_a_module_come_first_and_then_the_fastest():
    tests = [
        lines.Test("tests/test_b.py::slow", 2.0),
        lines.Test("tests/test_b.py::fast", 0.01),
        lines.Test("tests/test_c.py::fast", 0.02),
        lines.Test("tests/test_a.py::own", 0.2),
    ]
    fast = ["tests/test_b.py::fast", "tests/test_c.py::fast"]
    own, slow = ["tests/test_a.py::own"], ["tests/test_b.py::slow"]
    assert campaign.stages_of(tests, "a", 60, {}) == [own, fast, slow]
    assert campaign.stages_of(tests, "a", 1, {}) == [own, fast]
    assert campaign.stages_of(tests, "folder/a", 60, {}) == [own, fast, slow]
    noticing = {slow[0]: 3}
    assert campaign.stages_of(tests, "a", 60, noticing) == [own + slow, fast]
    assert campaign.stages_of(tests, "a", 1, noticing) == [own, fast]


def test_every_equivalent_is_explained():
    for key, why in campaign.explained().items():
        assert len(why) > 20, key


def changed(text: str) -> changes.Change:
    """A change of `affine` that every line executes."""
    source = (ROOT / PACKAGE / "operators" / "affine.py").read_text()
    everywhere = tuple(range(1, len(source.splitlines()) + 1))
    return changes.Change(
        "operators/affine", "", 1, "", text, f"{source}\n{text}\n", everywhere, ()
    )


@pytest.mark.slow
def test_changes_are_judged_by_tests_in_a_process_of_their_own(tmp_path, monkeypatch):
    package, kept = ROOT / PACKAGE, tmp_path / "results.jsonl"
    files = [ROOT / "tests" / "operators" / "test_affine.py"]
    known = lines.lines_of(package, files, tmp_path / "map", 1)
    assert known.tests
    assert not known.failing
    monkeypatch.setattr(campaign, "TO_BEGIN", 20.0)
    judge = campaign.Campaign(package, known, 60, kept)
    judge.require_passing()
    drawn = [changed("# a comment"), changed("all_along = None"), changed("while True: pass")]
    results = judge.run(drawn, 2)
    assert [r["verdict"] for r in results] == ["unnoticed", "noticed", "timed out"]
    assert results[1]["by"] in {test.name for test in known.tests}
    table = list(campaign.report(results))
    assert "| all | 3 | 1 | 1 | 1 | 0 | 67% |" in table
    assert "+ # a comment" in table

    def not_again(*_):
        raise AssertionError("what is known is judged again")

    monkeypatch.setattr(campaign, "session", not_again)
    assert campaign.Campaign(package, known, 60, kept).run(drawn, 1) == results
    with pytest.raises(AssertionError, match="again"):
        campaign.Campaign(package, known, 60, kept, again=True).run(drawn, 1)
