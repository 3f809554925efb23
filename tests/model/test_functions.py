"""Which functions a model has, who calls them, and how large a call is once it is inlined."""

import onnx
import pytest
from support import parsed

from onnx_bnfold.model.functions import Functions, Size, of_model

HEAD = '<ir_version: 10, opset_import: ["": 17, "f": 1]> g (float[2] x) => (float[2] y)'
IMPORTS = '<domain: "f", opset_import: ["": 17, "f": 1]>'
TWICE = f"{IMPORTS} twice (a) => (r) {{ t = f.once(a)\n r = f.once(t) }}"
ONCE = f"{IMPORTS} once (a) => (r) {{ c = Constant<value = float[2] {{1, 2}}>()\n r = Add(a, c) }}"


def functions_of(nodes: str, *functions: str) -> Functions:
    return Functions(parsed("\n".join([HEAD, "{", nodes, "}", *functions])))


def test_calls_and_sizes():
    found = functions_of("t = f.twice(x)\n y = f.once(t)", TWICE, ONCE)
    once, twice = ("f", "once", ""), ("f", "twice", "")
    assert found.calls == {None: [twice, once], twice: [once, once], once: []}
    assert found.sizes == {once: Size(2, 2), twice: Size(4, 4)}
    assert found.times() == {None: 1, twice: 1, once: 3}
    assert found.reachable() == {once, twice}
    assert not found.hindered


def test_calls_below_a_node_count():
    nodes = (
        "k = Constant<value = bool {1}>()\n"
        "y = If(k) <then_branch = b1 () => (p) { p = f.once(x) }, "
        "else_branch = b2 () => (p) { q = f.once(x) p = f.once(q) }>"
    )
    assert len(functions_of(nodes, ONCE).calls[None]) == 3


def test_operator_of_onnx_is_no_call():
    model = parsed("\n".join([HEAD, "{ y = Relu(x) }", ONCE.replace("once", "Relu")]))
    model.functions[0].domain = ""
    assert not Functions(model).calls[None]


def test_size_of_a_model_counts_what_is_stored():
    model = parsed("\n".join([HEAD, "<float[2] w = {1, 2}> { t = Add(x, w) y = f.once(t) }", ONCE]))
    assert of_model(model) == Size(4, 4)


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (f"{IMPORTS} once (a) => (r) {{ r = f.once(a) }}", "calls itself"),
        (f"{IMPORTS} once (a) => (r) {{ r = f.other(a) }}", "calls itself"),
        (f"{IMPORTS} once (a, a) => (r) {{ r = Add(a, a) }}", "inputs are not named apart"),
        (f"{IMPORTS} once (a) => (r, r) {{ r = Neg(a) }}", "outputs are not named apart"),
        (
            f"{IMPORTS} once (a) => (r) {{ k = Constant<value = bool {{1}}>()\n"
            "r = If(k) <then_branch = b () => (k) { k = Neg(a) }, "
            "else_branch = c () => (p) { p = Abs(a) }> }",
            "a subgraph in it defines a name",
        ),
        (ONCE.replace('domain: "f"', 'domain: "com.microsoft"'), "a runtime may have an operator"),
    ],
)
def test_what_cannot_be_inlined(function, why):
    other = f"{IMPORTS} other (a) => (r) {{ r = f.once(a) }}"
    (said,) = {
        text
        for key, text in functions_of("y = f.once(x)", function, other).hindered.items()
        if key[1] == "once"
    }
    assert why in said


def test_calls_that_are_nested_too_deep():
    chain = [
        f"{IMPORTS} f{i} (a) => (r) {{ r = {'Neg' if not i else f'f.f{i - 1}'}(a) }}"
        for i in range(52)
    ]
    hindered = functions_of("y = f.f51(x)", *reversed(chain)).hindered
    assert [key[1] for key in hindered] == ["f50", "f51"]
    assert onnx.checker.check_model(parsed("\n".join([HEAD, "{ y = f.f51(x) }", *chain]))) is None
