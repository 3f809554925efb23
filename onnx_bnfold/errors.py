"""The errors a user can meet; the command line turns each into one sentence and an exit code."""


class BnFoldError(Exception):
    """Base of every error this package raises on purpose.

    Args:
        sentence: one sentence; names from a model may be in it as they are.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(printable(sentence))


def printable(text: str) -> str:
    """Escape what is not printable: names come from a file and must not steer the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class ModelError(BnFoldError):
    """A model, or a file it needs, is unusable: the sentence names it and says what to do."""


class UsageError(BnFoldError):
    """The call itself cannot be carried out: unknown option, output equal to the input, ..."""


class CheckFailed(BnFoldError):
    """A check or gate did not hold; the sentence names it."""


class BrokenResult(RuntimeError):
    """A folded model is not sound. That is a bug of this package; the model is not written.

    Args:
        sentence: names what is wrong and where; names from a model may be in it as they are.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(printable(sentence))
