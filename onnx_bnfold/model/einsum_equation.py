"""The equation of an Einsum, read as the ONNX operator specification has it (Einsum-12)."""

from __future__ import annotations


def terms_of(equation: str) -> tuple[list[str], str]:
    """Return the terms of an Einsum's operands, and that of its output.

    An output that is left out has the ellipsis, and then the letters that appear once, in order.
    """
    left, arrow, out = equation.replace(" ", "").partition("->")
    if not arrow:
        once = (letter for letter in sorted({*left}) if left.count(letter) == 1)
        out = "..." * ("..." in left) + "".join(filter(str.isalpha, once))
    return left.split(","), out
