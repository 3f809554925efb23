"""The errors a user can meet; the command line turns each into one sentence and an exit code."""


class BnFoldError(Exception):
    """Base of every error this package raises on purpose."""


class ModelError(BnFoldError):
    """A model, or a file it needs, is unusable: the sentence names it and says what to do."""


class UsageError(BnFoldError):
    """The call itself cannot be carried out: unknown option, output equal to the input, ..."""


class CheckFailed(BnFoldError):
    """A check or gate did not hold; the sentence names it."""
