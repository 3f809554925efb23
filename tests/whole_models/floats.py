"""The float types: their units, and which of them an operator takes."""

import functools

import ml_dtypes
import numpy as np
import onnx

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOATS = tuple(np.dtype(t) for t in (np.float16, BFLOAT16, np.float32, np.float64))
UNIT = {t: float(ml_dtypes.finfo(t).eps) / 2 for t in FLOATS}
TINY = {t: float(ml_dtypes.finfo(t).smallest_subnormal) for t in FLOATS}
LARGEST = {t: float(ml_dtypes.finfo(t).max) for t in FLOATS}
# Times the rounding error that the original itself has, as which a fold's may be. Of float32 and
# float64 the package lets a shift cost four bits, and two more go where the data are narrower than
# the statistics say.
PERMITTED = {t: 4 if UNIT[t] > UNIT[np.dtype(np.float32)] else 64 for t in FLOATS}
# A shift costs so many units beside the largest values of a channel: it makes small ones coarse.
TIMES_BROAD = {t: 4 if UNIT[t] > UNIT[np.dtype(np.float32)] else 16 for t in FLOATS}
# A shift costs so many units beside the largest values of a channel: it makes small ones coarse.
TIMES_BROAD = {t: 4 if UNIT[t] > UNIT[np.dtype(np.float32)] else 16 for t in FLOATS}
_STRINGS = dict(
    zip(
        FLOATS,
        ("tensor(float16)", "tensor(bfloat16)", "tensor(float)", "tensor(double)"),
        strict=True,
    )
)


@functools.cache
def allowed(op: str, opset: int) -> tuple[frozenset[np.dtype], ...]:
    """Return the float types that each input may have; raise SchemaError for an unknown operator.

    The last entry is that of all further inputs.
    """
    schema = onnx.defs.get_schema(op, opset, "")
    if schema.deprecated:
        raise onnx.defs.SchemaError(f"{op} is deprecated")
    return tuple(frozenset(t for t in FLOATS if _STRINGS[t] in i.types) for i in schema.inputs)
