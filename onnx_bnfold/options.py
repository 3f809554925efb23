"""What a user can ask of a fold."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
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
# The groups of options.
LIMITS = "what may be folded, and how far"
FORMS = "what becomes of the model besides"


def _said(
    group: str, text: str, *, metavar: str | None = None, needs: str | None = None
) -> Mapping[str, str | None]:
    """Describe an option, for the command line above all.

    Args:
        group: in which it is listed.
        text: what it does.
        metavar: what its value is called, if any value goes.
        needs: the option without which it has no effect.
    """
    return {"group": group, "help": text, "metavar": metavar, "needs": needs}


@dataclass(frozen=True)
class Options:
    """What a user can ask of a fold, in Python and on the command line."""

    # Whether a pattern that matches none is an error; not so for one of many models.
    must_match: ClassVar[bool] = True

    freeze_initializers: bool = field(
        default=False,
        metadata=_said(
            LIMITS,
            "treat initializers that are also graph inputs as constants, and drop those inputs",
        ),
    )
    max_rescale: float | None = field(
        default=None,
        metadata=_said(
            LIMITS,
            "largest factor by which a channel of a remaining tensor may be rescaled (default: by "
            "data type; 32 for float16)",
            metavar="R",
        ),
    )
    standalone: Standalone = field(
        default="keep",
        metadata=_said(
            FORMS,
            "write each BatchNormalization that stays as itself, as Mul and Add, or as a "
            "depthwise Conv",
        ),
    )
    # A fold that removes nothing records nothing, and a fold in memory has no file to name.
    metadata: bool = field(
        default=True,
        metadata=_said(
            FORMS,
            "record version, counts and the source's SHA-256 in the model, and what each node took",
        ),
    )
    merge_branches: bool = field(
        default=False,
        metadata=_said(
            LIMITS,
            "merge parallel Convs, identities and BatchNormalizations that meet in an Add (RepVGG, "
            "MobileOne) into one Conv",
        ),
    )
    profile: Profile = field(
        default="float",
        metadata=_said(
            LIMITS,
            "number format that the folded model will run in: int8 changes no ranges of "
            "remaining tensors and spares weights, fp16 limits rescaling and rounding for float16",
        ),
    )
    equalize: bool = field(
        default=False,
        metadata=_said(
            FORMS,
            "equalize the channel ranges of tensors between linear layers, where int8 gains by it",
        ),
    )
    ranges: str | None = field(  # a model in memory cannot be run
        default=None,
        metadata=_said(
            FORMS,
            "for --equalize: an .npz with examples of each input, to measure ranges on (default: "
            "estimated from the BatchNormalizations)",
            metavar="FILE",
            needs="equalize",
        ),
    )
    keep_shared_weights: bool = field(
        default=False,
        metadata=_said(
            LIMITS,
            "keep each BatchNormalization whose fold would copy a weight that other nodes read",
        ),
    )
    keep: tuple[str, ...] = field(
        default=(),
        metadata=_said(
            LIMITS,
            "leave each BatchNormalization as it is whose name, or whose first output's, matches "
            "(re.search); repeatable",
            metavar="REGEX",
        ),
    )
    only: tuple[str, ...] = field(
        default=(),
        metadata=_said(
            LIMITS,
            "fold only BatchNormalizations whose name, or whose first output's, matches, and "
            "nothing else; repeatable",
            metavar="REGEX",
        ),
    )
    bn_free: bool = field(
        default=False,
        metadata=_said(
            FORMS,
            "let no BatchNormalization stay that has an exact form without one: a Max or Min with "
            "constants for a Relu or Clip, what --standalone says, or Mul and Add",
        ),
    )
    target: Target = field(
        default="any",
        metadata=_said(FORMS, "for --bn-free: what its forms are to be cheap for", needs="bn_free"),
    )

    def __post_init__(self) -> None:
        require_types(self)
        require_at_least("max_rescale", self.max_rescale, 1)
        for given, needed in without_effect(self):
            raise UsageError(f"{given} has no effect without {needed}; give both")
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


Options.__doc__ = f"{Options.__doc__}\n\nArgs:\n" + "".join(
    f"    {option.name}: {option.metadata['help']}\n" for option in fields(Options)
)


def without_effect(settings: object) -> Iterator[tuple[str, str]]:
    """Yield the options that are given without the one that they need, and that one.

    Args:
        settings: an ``Options``, or what has the same attributes.
    """
    for option in fields(Options):
        needed = option.metadata["needs"]
        is_given = getattr(settings, option.name) != option.default
        if is_given and needed and not getattr(settings, needed):
            yield option.name, needed


def _require_pattern(name: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        what = f"{name} has {pattern!r}, which is no regular expression"
        raise UsageError(f"{what}: {error}; correct the pattern") from None
