"""The two errors a user sees as one clear line, without a traceback."""


class UsageError(ValueError):
    """What was asked cannot be done as asked: the message names the problem and the way out (exit code 2)."""


class RunError(RuntimeError):
    """A run that had begun cannot go on: the message names what happened and how to continue (exit code 1)."""
