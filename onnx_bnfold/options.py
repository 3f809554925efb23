"""What a user can ask of a fold."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import ClassVar, Literal

from onnx_bnfold.errors import UsageError
from onnx_bnfold.validation import require_at_least, require_types

# The number format that the folded model will be run in.
Profile = Literal["float", "fp16", "int8"]
# What a BatchNormalization that stays is written as, for compilers that have none: itself, two
# nodes with constants of shape (C, 1, …), or a depthwise Conv with a kernel of ones.
Standalone = Literal["keep", "mul-add", "conv"]
# What runs a model without BatchNormalizations.
Target = Literal["any", "onnxruntime"]


@dataclass(frozen=True)
class Options:
    """What a user can ask of a fold.

    Attributes:
        freeze_initializers: treat initializers that are also graph inputs as constants, and take
            them out of the inputs.
        max_rescale: largest factor by which a channel of a tensor that stays may be rescaled; by
            default it depends on the data type (``precision_limits.MAX_RESCALE``).
        standalone: what a BatchNormalization that stays is written as: itself (``keep``), a Mul
            and an Add (``mul-add``), or a depthwise Conv (``conv``; on tensors with spatial axes).
        metadata: let a fold from file to file record itself in the model's ``metadata_props``
            (see ``provenance``), and let each node record, from IR version 10 on, what it took
            (``node_origins``). A fold that removes nothing records nothing, and a fold in memory
            has no file to name.
        merge_branches: merge parallel branches of Convs, identities and BatchNormalizations that
            meet in an Add into one Conv (``branch_merging``).
        profile: what the folded model will be run in: ``float``, ``fp16`` or ``int8``; see
            ``precision_limits.Limits``.
        equalize: make the channels of tensors between linear layers alike, as far as int8 gains by
            it (``equalize``).
        ranges: for ``equalize``, an .npz with an array per input of the model, examples of what it
            is run on; without it ranges are what the BatchNormalizations say. For models in files.
        keep_shared_weights: leave a BatchNormalization whose fold would copy a weight that others
            read, too.
        keep: regular expressions: a BatchNormalization is left as it is if one is found in its
            name or in that of its first output (``planning.kept``). Each must match one.
        only: regular expressions, in the same way: everything but the BatchNormalizations that
            match one is left as it is.
        bn_free: let no BatchNormalization stay for which there is an exact form without one. A
            Relu or Clip becomes a Max or Min with constants (``planning.clamps``); what is left is
            written as ``standalone`` says, and as a Mul and an Add where it says ``keep``.
        target: for ``bn_free``, what the forms are to be cheap for: ``any`` runtime, which takes
            the fewest elements and nodes, or ``onnxruntime``, where a depthwise Conv is cheaper
            than a Max that no pool of maxima is in front of.
        must_match: whether a pattern that matches none is an error; not so for one of many models.
    """

    must_match: ClassVar[bool] = True

    freeze_initializers: bool = False
    max_rescale: float | None = None
    standalone: Standalone = "keep"
    metadata: bool = True
    merge_branches: bool = False
    profile: Profile = "float"
    equalize: bool = False
    ranges: str | None = None
    keep_shared_weights: bool = False
    keep: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    bn_free: bool = False
    target: Target = "any"

    def __post_init__(self) -> None:
        require_types(self)
        require_at_least("max_rescale", self.max_rescale, 1)
        if self.ranges is not None and not self.equalize:
            raise UsageError("ranges are used by equalize alone; ask for it, too")
        if self.target != "any" and not self.bn_free:
            raise UsageError("target says what bn_free is cheap for; ask for that, too")
        for name in ("keep", "only"):
            patterns = tuple(map(os.fspath, getattr(self, name)))
            object.__setattr__(self, name, patterns)
            for pattern in patterns:
                _require_pattern(name, pattern)

    @property
    def clamps_everywhere(self) -> bool:
        """Whether a clamp may be written with constants where no pool makes that cheap."""
        return self.bn_free and self.target == "any" and self.profile != "int8"

    @property
    def forms(self) -> tuple[Standalone, ...]:
        """What a BatchNormalization that stays is written as: the first that can be."""
        asked: tuple[Standalone, ...] = () if self.standalone == "keep" else (self.standalone,)
        if not self.bn_free:
            return asked
        own: tuple[Standalone, ...] = ("mul-add",)
        if self.target == "onnxruntime":
            own = ("conv", "mul-add")
        return tuple(dict.fromkeys((*asked, *own)))


def _require_pattern(name: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        what = f"{name} has {pattern!r}, which is no regular expression"
        raise UsageError(f"{what}: {error}") from None
