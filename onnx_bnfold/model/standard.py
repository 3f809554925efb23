"""What the ONNX standard says of its operators: versions, counts of inputs, types of attributes.

Asked for the first of them, onnx registers all, which takes a tenth of the time of a small fold. So
what it would say is recorded.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import onnx
from onnx import AttributeProto

from onnx_bnfold.model.standard_record import NEWEST, RECORD

UNLIMITED = 2**31 - 1  # onnx's number of inputs that may be any number
DEPRECATED, UNSURE = "DEPRECATED", "UNSURE"  # words of the record


class Signature(NamedTuple):
    """What the standard says of an operator.

    Attributes:
        version: the operator set in which it last changed.
        is_deprecated: whether it is no operator any more; nothing else is said of it then.
        inputs: smallest and largest number of inputs.
        outputs: smallest and largest number of outputs.
        required: how many inputs, from the first on, must not be left out.
        attributes: name → type.
        is_deterministic: whether its outputs are known to depend on inputs and attributes alone.
    """

    version: int
    is_deprecated: bool = True
    inputs: tuple[int, int] = (0, 0)
    outputs: tuple[int, int] = (0, 0)
    required: int = 0
    attributes: dict[str, int] = {}  # noqa: RUF012  # nobody changes it
    is_deterministic: bool = True


@cache
def signature(operator: str | None, opset: int) -> Signature | None:
    """Return what the standard says of an operator in an operator set, None if it has none."""
    if operator is None:
        return None
    return recorded(operator, opset) if opset <= NEWEST else registered(operator, opset)


@cache
def version_of(operator: str, opset: int) -> int:
    """Return the version of a standard operator that an opset holds, 0 if it holds none."""
    found = signature(operator, opset)
    return 0 if found is None else found.version


def recorded(operator: str, opset: int) -> Signature | None:
    """Return what the record says; see ``signature``."""
    words: list[str] = []
    newest = None
    for text in _lines().get(operator, "").split(";"):
        version, *more = text.split() or ["0"]
        if not 0 < int(version) <= opset:
            break
        newest, words = int(version), more or words
    return None if newest is None else _read(newest, words)


@cache
def _lines() -> dict[str, str]:
    """Return operator → its versions."""
    lines = RECORD.replace("\n ", " ").splitlines()
    return {name: versions for name, _, versions in (line.partition(" ") for line in lines)}


def _read(version: int, words: list[str]) -> Signature:
    if words == [DEPRECATED]:
        return Signature(version)
    kind, attributes = 0, dict[str, int]()
    inputs, outputs, *others = words
    for word in others:
        if word.isupper() and word != UNSURE:
            kind = AttributeProto.AttributeType.Value(word)
        elif kind:
            attributes[word] = kind
    least, most = _range(inputs.lstrip("?"))
    required = 0 if inputs[0] == "?" else least
    return Signature(
        version, False, (least, most), _range(outputs), required, attributes, UNSURE not in others
    )


def _range(text: str) -> tuple[int, int]:
    """Read "2-3"; without a second number there is no largest."""
    least, dash, most = text.partition("-")
    return int(least), int(most or UNLIMITED) if dash else int(least)


def registered(operator: str, opset: int) -> Signature | None:
    """Return what the installed onnx says; see ``signature``."""
    try:
        schema: Any = onnx.defs.get_schema(operator, opset, "")
    except onnx.defs.SchemaError:
        return None
    if schema.deprecated:
        return Signature(schema.since_version)
    single = onnx.defs.OpSchema.FormalParameterOption.Single
    return Signature(
        schema.since_version,
        False,
        (schema.min_input, schema.max_input),
        (schema.min_output, schema.max_output),
        sum(given.option == single for given in schema.inputs),
        {name: int(each.type.value) for name, each in schema.attributes.items()},
        schema.node_determinism == onnx.defs.OpSchema.NodeDeterminism.Deterministic,
    )
