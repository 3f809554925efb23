"""Record what the installed onnx says of the standard's operators, for ``model/standard``.

    python -m tools.record_standard

writes ``onnx_bnfold/model/standard_record.py``. Do so when onnx has a new operator set; until then
fewer models start as fast, and nothing else changes.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path

import onnx
from onnx import AttributeProto

from onnx_bnfold.model import standard, standard_record
from onnx_bnfold.model.standard import UNLIMITED, Signature

_PAGE = '''\
"""What onnx says of the standard's operators; written by ``python -m tools.record_standard``.

A line per operator, and for each of its versions: the version, the numbers of inputs and outputs,
and the names of its attributes behind their types. ``?`` says that no input is required, ``UNSURE``
that it may not be deterministic. A version that is only a number is as the one before. The lines
are those of a data file.
"""

NEWEST = {newest}  # operator set
RECORD = """\\
{record}
"""
'''


def versions() -> dict[str, list[int]]:
    """Return the versions of each operator that the installed onnx knows."""
    schemas = onnx.defs.get_all_schemas_with_history()
    known = sorted((s.name, s.since_version) for s in schemas if s.domain == "")
    return {name: [v for _, v in each] for name, each in groupby(known, key=lambda kv: kv[0])}


def record() -> str:
    """Return the text of the record."""
    lines = []
    for operator, numbers in versions().items():
        texts, before = [], ""
        for number in numbers:
            found = standard.registered(operator, number)
            assert found is not None
            text = _text(found)
            texts.append(f"{number} {text}" if text != before else str(number))
            before = text
        lines += textwrap.wrap(f"{operator} {'; '.join(texts)}", 100, subsequent_indent=" ")
    return "\n".join(lines)


def _text(found: Signature) -> str:
    if found.is_deprecated:
        return standard.DEPRECATED
    if found.required not in (0, found.inputs[0]):
        raise ValueError(f"{found} requires some of its inputs, which has no form in the record")
    words = ["?" * (found.required < found.inputs[0]) + _range(found.inputs), _range(found.outputs)]
    if not found.is_deterministic:
        words.append(standard.UNSURE)
    return " ".join((*words, *_attributes(found.attributes)))


def _range(numbers: tuple[int, int]) -> str:
    least, most = numbers
    if least == most:
        return str(least)
    return f"{least}-{'' if most == UNLIMITED else most}"


def _attributes(types: Mapping[str, int]) -> Iterator[str]:
    """Yield each type, and the names of the attributes that have it."""
    for kind in sorted({*types.values()}):
        yield AttributeProto.AttributeType.Name(kind)
        yield from sorted(name for name in types if types[name] == kind)


def main() -> None:
    """Write the record."""
    page = _PAGE.format(newest=onnx.defs.onnx_opset_version(), record=record())
    Path(standard_record.__file__).write_text(page)


if __name__ == "__main__":
    main()
