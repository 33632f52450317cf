"""The errors a user sees as one clear line, without a traceback."""


class UsageError(ValueError):
    """The request cannot be fulfilled; the message names the problem and the way out (exit code 2)."""


class RunError(RuntimeError):
    """A run that has started cannot go on; the message says what happened and how to continue (exit code 1)."""


class Stopped(RunError):
    """The run has ended early on request, with everything saved."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def first_line(error: BaseException, otherwise: str = "") -> str:
    """The first non-blank line of another library's error message; without one, `otherwise` or the error's class."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), otherwise or type(error).__name__)
