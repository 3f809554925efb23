"""Where a source file can be changed: comparisons, operators, constants, statements, branches."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

COMPARISONS: dict[type[ast.cmpop], tuple[str, tuple[str, ...]]] = {
    ast.Lt: ("<", ("<=", ">=")),
    ast.LtE: ("<=", ("<", ">")),
    ast.Gt: (">", (">=", "<=")),
    ast.GtE: (">=", (">", "<")),
    ast.Eq: ("==", ("!=",)),
    ast.NotEq: ("!=", ("==",)),
    ast.In: ("in", ("not in",)),
    ast.NotIn: (r"not\s+in", ("in",)),
    ast.Is: ("is", ("is not",)),
    ast.IsNot: (r"is\s+not", ("is",)),
}
ARITHMETIC: dict[type[ast.operator], tuple[str, str]] = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "//"),
    ast.Pow: ("**", "*"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
}
CALLS = {
    **{"min": "max", "max": "min", "any": "all", "all": "any", "abs": "+", "sorted": "list"},
    **{"minimum": "maximum", "maximum": "minimum", "floor": "ceil", "ceil": "floor"},
    **{"union": "intersection", "intersection": "union", "issubset": "issuperset"},
}
Function = ast.FunctionDef | ast.AsyncFunctionDef
Span = tuple[int, int]  # bytes of the source


@dataclass(frozen=True)
class Proposal:
    """What one change replaces, and where that is.

    Attributes:
        edits: places in the file, in bytes, from the first to the last, and what comes there.
        function: the qualified name of the function or class around it; empty outside of any.
        lines: the lines that execute what is changed; none if only an import does.
        names: in that case, the names that the statement around it defines.
    """

    edits: tuple[tuple[Span, str], ...]
    function: str
    lines: tuple[int, ...]
    names: tuple[str, ...]


def places_of(text: str) -> list[list[Proposal]]:
    """Return the places of a file where something can be changed, with all proposals for each."""
    finder = _Finder(text)
    finder.visit(ast.parse(text))
    return finder.places


class _Finder(ast.NodeVisitor):
    """Walks a tree and collects its changes.

    What changes nothing by design is passed over: annotations, decorators, assertions, ``strict``
    of zip, imports for type checkers; and f-strings, whose parts have no place in Python 3.10.
    """

    def __init__(self, text: str) -> None:
        self.text = text.encode()
        self.places: list[list[Proposal]] = []
        self._starts = [0]
        for line in self.text.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))
        self._scope: list[ast.AST] = []
        self._statement: ast.stmt | None = None

    # Where things are.

    def _span(self, node: ast.expr | ast.stmt) -> Span:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        first = self._starts[node.lineno - 1] + node.col_offset
        return first, self._starts[node.end_lineno - 1] + node.end_col_offset

    def _source(self, node: ast.expr) -> str:
        first, last = self._span(node)
        return self.text[first:last].decode()

    def _between(self, left: ast.expr, right: ast.expr, pattern: str) -> Span | None:
        """Return where an operator stands between its operands."""
        first, last = self._span(left)[1], self._span(right)[0]
        match = re.search(pattern.encode(), self.text[first:last])
        return None if match is None else (first + match.start(), first + match.end())

    # Making changes.

    def _offer(
        self, node: ast.expr | ast.stmt, *variants: Iterable[tuple[Span | None, str]]
    ) -> None:
        names = [s.name for s in self._scope if isinstance(s, Function | ast.ClassDef)]
        lines, defined = tuple(self._executing(node)), tuple(self._defined())
        proposals = []
        for variant in variants:
            edits = tuple((span, new) for span, new in variant if span is not None)
            if edits:
                proposals.append(Proposal(edits, ".".join(names), lines, defined))
        if proposals:
            self.places.append(proposals)

    def _executing(self, node: ast.expr | ast.stmt) -> Iterable[int]:
        """Return the lines that a test which meets the change executes."""
        functions = [s for s in self._scope if isinstance(s, Function)]
        if functions and node.lineno < functions[-1].body[0].lineno:  # a default of an argument
            return _lines(functions[-1].body[0], functions[-1].body[-1])
        if not functions:
            in_lambda = any(isinstance(s, ast.Lambda) for s in self._scope)
            return _lines(node, node) if in_lambda else ()
        statement = self._statement or node
        body = getattr(statement, "body", None)
        if isinstance(body, list):  # only what is in front of it
            return range(statement.lineno, max(statement.lineno + 1, body[0].lineno))
        return _lines(statement, statement)

    def _defined(self) -> Iterator[str]:
        """Yield the names that a statement outside of functions defines."""
        if any(isinstance(s, Function) for s in self._scope):
            return
        yield from (s.name for s in self._scope if isinstance(s, ast.ClassDef))
        statement = self._statement
        if isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            for node in (n for target in targets for n in ast.walk(target)):
                if isinstance(node, ast.Name):
                    yield node.id

    # The walk.

    def visit(self, node: ast.AST) -> None:
        """Visit one node, and know the statement and the scope that it is in."""
        around = self._statement
        if isinstance(node, ast.stmt):
            self._statement = node
            self._offer_drop(node)
        is_scope = isinstance(node, Function | ast.ClassDef | ast.Lambda)
        if is_scope:
            self._scope.append(node)
        super().visit(node)
        if is_scope:
            self._scope.pop()
        self._statement = around

    def _visit_all(self, nodes: Iterable[ast.AST | None]) -> None:
        for node in nodes:
            if node is not None:
                self.visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        """Pass over the decorators and annotations of a function."""
        self._visit_all([*node.args.defaults, *node.args.kw_defaults, *node.body])

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        """Pass over the decorators and bases of a class."""
        self._visit_all(node.body)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        """Pass over the annotation."""
        self._visit_all([node.value])

    def visit_Assert(self, node: ast.Assert) -> None:
        """Pass over an assertion."""

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Pass over an f-string."""

    def visit_keyword(self, node: ast.keyword) -> None:
        """Pass over the ``strict`` of zip."""
        if node.arg != "strict":
            self.generic_visit(node)

    def _offer_drop(self, node: ast.stmt) -> None:
        """Offer to leave a statement out, where names that others need stay defined."""
        if isinstance(node, ast.Assign):
            dropped = any(isinstance(t, ast.Attribute | ast.Subscript) for t in node.targets)
        elif isinstance(node, ast.If):
            dropped = not node.orelse and not _for_type_checkers(node)
        elif isinstance(node, ast.Expr):
            dropped = not isinstance(node.value, ast.Constant)
        else:
            dropped = isinstance(node, ast.AugAssign | ast.Raise | ast.Delete)
        if dropped and not self.text[self._span(node)[0] :].startswith(b"elif"):
            self._offer(node, [(self._span(node), "pass")])

    def visit_If(self, node: ast.If) -> None:
        """Negate the condition."""
        if not _for_type_checkers(node):
            self._offer_negation(node.test)
            self.generic_visit(node)

    def visit_While(self, node: ast.While) -> None:
        """Negate the condition."""
        self._offer_negation(node.test)
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        """Swap the branches."""
        self._offer_negation(node.test)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        """Negate the conditions."""
        for test in node.ifs:
            self._offer_negation(test)
        self.generic_visit(node)

    def _offer_negation(self, test: ast.expr) -> None:
        if not isinstance(test, ast.Compare | ast.UnaryOp):  # they have a negation of their own
            self._offer(test, [(self._span(test), f"(not ({self._source(test)}))")])

    def visit_Compare(self, node: ast.Compare) -> None:
        """Flip or shift a comparison."""
        operands = [node.left, *node.comparators]
        for op, left, right in zip(node.ops, operands[:-1], operands[1:], strict=True):
            pattern, others = COMPARISONS[type(op)]
            where = self._between(left, right, pattern)
            self._offer(node, *([(where, other)] for other in others))
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        """Exchange an operator."""
        if type(node.op) in ARITHMETIC:
            old, new = ARITHMETIC[type(node.op)]
            self._offer(node, [(self._between(node.left, node.right, re.escape(old)), new)])
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        """Exchange an operator."""
        if type(node.op) in ARITHMETIC:
            old, new = ARITHMETIC[type(node.op)]
            self._offer(node, [(self._between(node.target, node.value, re.escape(old)), new)])
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        """Exchange ``and`` and ``or``, or leave an operand out."""
        is_and = isinstance(node.op, ast.And)
        old, new, neutral = ("and", "or", "True") if is_and else ("or", "and", "False")
        pairs = zip(node.values[:-1], node.values[1:], strict=True)
        self._offer(node, [(self._between(a, b, rf"\b{old}\b"), new) for a, b in pairs])
        for value in node.values:
            self._offer(node, [(self._span(value), neutral)])
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        """Leave out a sign or a ``not``."""
        if isinstance(node.op, ast.USub | ast.Not | ast.Invert):
            first, last = self._span(node)[0], self._span(node.operand)[0]
            operator = re.match(rb"-|~|not\b", self.text[first:last])
            if operator is not None:
                self._offer(node, [((first, first + operator.end()), "")])
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        """Change a number or a truth value."""
        value, others = node.value, list[object]()
        if isinstance(value, bool):
            others = [not value]
        elif isinstance(value, int):
            others = [n for n in dict.fromkeys([value + 1, value - 1, 2 * value, 0]) if n != value]
        elif isinstance(value, float):
            others = [x for x in dict.fromkeys([value * 2, value / 2, 0.0, 1.0]) if x != value]
        self._offer(node, *([(self._span(node), repr(other))] for other in others))

    def visit_Call(self, node: ast.Call) -> None:
        """Exchange a function for its counterpart."""
        name = self._source(node.func)
        head, _, last = name.rpartition(".")
        if last in CALLS and (not head or last.isalpha()):
            new = CALLS[last]
            first, end = self._span(node.func)
            if not head or new.isalpha():
                self._offer(node, [((end - len(last) if head else first, end), new)])
        self.generic_visit(node)

    def visit_Break(self, node: ast.Break) -> None:
        """Go on instead."""
        self._offer(node, [(self._span(node), "continue")])

    def visit_Continue(self, node: ast.Continue) -> None:
        """Stop instead."""
        self._offer(node, [(self._span(node), "break")])

    def visit_Return(self, node: ast.Return) -> None:
        """Return another value of the type that the function declares."""
        function = self._scope[-1] if self._scope else None
        if node.value is not None and isinstance(function, Function) and function.returns:
            declared = ast.unparse(function.returns)
            is_none = isinstance(node.value, ast.Constant) and node.value.value is None
            if declared == "bool":
                self._offer_negation(node.value)
            elif declared.endswith("| None") and not is_none:
                self._offer(node, [(self._span(node.value), "None")])
        self.generic_visit(node)


def _lines(first: ast.expr | ast.stmt, last: ast.expr | ast.stmt) -> range:
    return range(first.lineno, (last.end_lineno or last.lineno) + 1)


def _for_type_checkers(node: ast.If) -> bool:
    return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
