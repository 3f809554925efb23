"""The errors that users see; the command line prints their sentence and sets the exit code."""


class BnFoldError(Exception):
    """Base of every error that this package raises on purpose.

    Args:
        sentence: one sentence; names from a model in it need not be escaped.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(printable(sentence))


def printable(text: str) -> str:
    """Escape what is not printable; names from a model must not control the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class ModelError(BnFoldError):
    """A model, or a file that it needs, cannot be used; the sentence says why and what to do."""


class UsageError(BnFoldError):
    """A call or command cannot be carried out: invalid option, output equal to the input, ..."""


class CheckFailed(BnFoldError):
    """A check or a gate failed; the sentence says which."""


class BrokenResult(RuntimeError):
    """A folded model is invalid: a bug of this package. The model is not written.

    Args:
        sentence: what is wrong and where; names from a model in it need not be escaped.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(printable(sentence))
