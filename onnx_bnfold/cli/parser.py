"""The parsers of both commands; every error is one sentence, and near misses are suggested."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Sequence
from typing import NoReturn

from onnx_bnfold.cli.fold_arguments import add_fold_arguments, require_effect
from onnx_bnfold.errors import UsageError
from onnx_bnfold.version import __version__

PROGRAM = "onnx-bnfold"
CHECK = "check"
_NEAR_OPTIONS = 0.7
_NEAR_FILES = 0.8  # all names of models are alike in their endings
STANDARD = "-"  # what other programs take for standard input or output

_USAGE = """\
%(prog)s MODEL [-o] FILE [options]
       %(prog)s MODEL --dry-run [options]
       %(prog)s FOLDER [-o] FOLDER [options]
       %(prog)s check ORIGINAL FOLDED [options]"""
_EPILOG = """\
exit codes:
  0  done
  1  a check or gate (--require-all, --require-folded) did not hold; no model was written
  2  bad usage or bad input; no model was written
  130  interrupted
"""
_CHECK_EPILOG = """\
exit codes: 0 all gates hold, 1 a gate does not (it is named), 2 bad usage or bad input"""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are ``UsageError``."""

    def error(self, message: str) -> NoReturn:
        """Raise what is wrong, and where the options are described."""
        what = message.removeprefix("argument ")
        option, ignored, _ = what.partition(": ignored explicit argument")
        raise UsageError(
            f"{option} takes no value" if ignored else f"{what}; see {self.prog} --help"
        )

    def read(self, words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """Parse a command line.

        Args:
            words: of the command line.

        Returns:
            The arguments, and these words.

        Raises:
            UsageError: an option does not exist, or its value is invalid.
        """
        words, literal = _before_and_after_dashes(words)
        args, unknown = self.parse_known_intermixed_args(words)
        for word in unknown:
            if word.startswith("-"):
                is_file = os.path.exists(word)
                found = f"{word}: write ./{word} for the file" if is_file else self._unknown(word)
                raise UsageError(found)
        return args, [*args.names, *unknown, *literal]

    def _unknown(self, word: str) -> str:
        option, _, _ = word.partition("=")
        # Without their dashes, in which all are alike.
        options = {known.lstrip("-"): known for known in self._option_string_actions}
        near = options.get(close_to(option.lstrip("-"), options, _NEAR_OPTIONS) or "")
        hint = f"did you mean {near}?" if near else f"see {self.prog} --help"
        return f"there is no option {option}; {hint}"


def _before_and_after_dashes(words: Sequence[str]) -> tuple[Sequence[str], list[str]]:
    """Split a command line at ``--``, behind which all words are names.

    A name that looks like an option begins with ``./`` afterwards, so that it can be typed again.
    """
    if "--" not in words:
        return words, []
    at = list(words).index("--")
    names = (f"./{w}" if w.startswith("-") and w != STANDARD else w for w in words[at + 1 :])
    return words[:at], list(names)


def close_to(word: str, words: Iterable[str], least: float = 0.6) -> str | None:
    """Return the most similar one of some words, None if none is ``least`` or more (0 to 1)."""
    from difflib import get_close_matches  # for what is wrong only

    return next(iter(get_close_matches(word, list(words), 1, least)), None)


class FoldParser(Parser):
    """The parser of a fold, of a file or a store, with the options of its check.

    Args:
        words: of the command line. The options of a store and of a check, which take long to add,
            are added if a word may be one of them, or may ask for help.
    """

    def __init__(self, words: Sequence[str]) -> None:
        super().__init__(
            prog=PROGRAM,
            usage=_USAGE,
            description="Fold BatchNormalization layers out of an ONNX model, or of every model "
            "below a folder.",
            epilog=_EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.add_argument(
            "names",
            nargs="*",
            metavar="MODEL [FILE]",
            help="the model, a file or URL, or a folder or URL of models; it is never changed. "
            "Then where the folded one goes, unless -o says it",
        )
        self.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
        add_fold_arguments(self)
        self._of_stores: Sequence[argparse.Action] = ()
        self._of_checks: Sequence[argparse.Action] = ()
        plain = self._option_string_actions.keys() - {"-h", "--help", "--check"}
        if any(word[:1] == "-" and word.partition("=")[0] not in plain for word in words):
            self.add_all()

    @property
    def is_whole(self) -> bool:
        """Whether it has the options of a store and of a check."""
        return bool(self._of_checks)

    def add_all(self) -> None:
        """Add the options of a store and of a check."""
        from onnx_bnfold.cli.check_arguments import add_check_arguments  # rarely needed, both
        from onnx_bnfold.cli.store_arguments import add_store_arguments

        self._of_stores = add_store_arguments(self)
        self._of_checks = add_check_arguments(self, "with --check: ")

    def require_compatible(self, args: argparse.Namespace) -> None:
        """See that options fit each other, and what is folded.

        Raises:
            UsageError: they do not.
        """
        if not args.check and (given := _given(args, self._of_checks)):
            raise UsageError(f"{given} has no effect without --check; give both")
        require_effect(args)
        if args.dry_run and args.check:
            raise UsageError("a dry run makes no model to check; leave out --dry-run or --check")
        if not args.is_store and (given := _given(args, self._of_stores)):
            raise UsageError(f"{given} is for a folder of models, but {args.model} is one model")


def _given(args: argparse.Namespace, actions: Sequence[argparse.Action]) -> str | None:
    """Return one of some options that is given; a gate comes behind what it asks for itself."""
    given = (a.option_strings[0] for a in reversed(actions) if getattr(args, a.dest, None))
    return next(given, None)


def check_parser() -> Parser:
    """Return the parser of the check command."""
    from onnx_bnfold.cli.check_arguments import add_check_arguments  # rarely needed

    result = Parser(
        prog=f"{PROGRAM} {CHECK}",
        usage="%(prog)s ORIGINAL FOLDED [options]",
        description="Check that a folded model computes the same function as its original, "
        "as accurately and no slower.",
        epilog=_CHECK_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument(
        "names", nargs="*", metavar="ORIGINAL FOLDED", help="the models before and after folding"
    )
    result.add_argument(
        "--report",
        action="append",
        default=[],
        metavar="FILE",
        help="write the record of the check as .json or .html; repeatable",
    )
    result.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    add_check_arguments(result)
    return result


def read_fold(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line of a fold, and see that its options fit each other.

    Returns:
        The arguments; among them ``model`` and how it is ``shown``, ``output`` and ``is_store``.

    Raises:
        UsageError: the command line is not valid.
    """
    parser = FoldParser(words)
    args, names = parser.read(words)
    if names and _is_store(names[0]) and not parser.is_whole:
        parser.add_all()
        args, names = parser.read(words)
    if list(words[:1]) == ["--check"] and args.output is None:
        _require_no_comparison(names)
    args.model, args.output = _model_and_output(names, args.output)
    args.shown = args.model
    args.is_store = _is_store(args.model)
    parser.require_compatible(args)
    if args.output is None and not args.dry_run:
        raise UsageError("give -o FILE for the folded model, or --dry-run")
    if args.output and not args.is_store:
        args.output = file_of(args.output, os.path.basename(args.model))
    return args


def file_of(output: str, name: str) -> str:
    """Return the file that one model is folded into.

    Args:
        output: that file, or a folder, in which the model keeps its name.
        name: of the model.

    Raises:
        UsageError: it is not on this machine.
    """
    if is_url(output):
        raise UsageError(f"{output}: one model is folded into a file of this machine; give -o FILE")
    is_folder = output.endswith((os.sep, os.altsep or os.sep)) or os.path.isdir(output)
    return os.path.join(output, name) if is_folder else output


def read_check(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line of a check.

    Raises:
        UsageError: the command line is not valid.
    """
    args, names = check_parser().read(words)
    if len(names) != 2:
        raise UsageError(
            f"a check compares two models, not {len(names)}; give the original and the folded one"
        )
    for name in names:
        if os.path.isdir(name):
            raise UsageError(
                f"{name}: is a folder, and a check compares two models; all below a folder are "
                f"checked as they are folded: {PROGRAM} FOLDER -o FOLDER --{CHECK}"
            )
    args.original, args.folded = names
    return args


def _is_store(model: str) -> bool:
    return os.path.isdir(model) or is_url(model)


def is_url(model: str) -> bool:
    """Return whether a model lies at a URL."""
    return "://" in model


def _model_and_output(names: Sequence[str], output: str | None) -> tuple[str, str | None]:
    if not names:
        raise UsageError(f"there is no model; give one, or see {PROGRAM} --help")
    model, *others = names
    _require_no_command(model, others)
    if len(others) > (output is None):
        raise UsageError(f"{others[-1]!r} is one name too many; give one model, and one output")
    if output is None and others:
        output = others[0]
    if model == STANDARD:
        raise UsageError("a model is not read from standard input; give the path of a file")
    if output == STANDARD:
        raise UsageError("a model is not written to standard output; give the path of a file")
    if not is_url(model) and not os.path.lexists(model) and (near := _near(model)):
        raise UsageError(f"{model}: there is no such file; did you mean {near}?")
    return model, output


def _require_no_comparison(names: Sequence[str]) -> None:
    """Refuse what is meant as the command ``check`` and would replace the second model."""
    if len(names) == 2 and os.path.isfile(names[1]):
        original, folded = names
        raise UsageError(
            f"{folded}: would be replaced by a fold of {original}; to compare both, write "
            f"{PROGRAM} {CHECK} {original} {folded}, and to replace it, -o {folded}"
        )


def _require_no_command(model: str, others: Sequence[str]) -> None:
    if model == CHECK and others and not os.path.exists(model):
        raise UsageError(f"{CHECK} has to come first: {PROGRAM} {CHECK} ORIGINAL FOLDED")
    if model == "fold" and others and not os.path.exists(model):
        raise UsageError(f"there is no command {model!r}, and no need for one; leave the word out")
    if len(others) > 1 and close_to(model, [CHECK]):
        raise UsageError(f"there is no command {model!r}; did you mean {CHECK}?")


def _near(path: str) -> str | None:
    """Return a path beside one that does not exist, and of a similar name."""
    folder, name = os.path.split(path)
    try:
        near = close_to(name, os.listdir(folder or os.curdir), _NEAR_FILES)
    except OSError:
        return None
    return near and os.path.join(folder, near)
