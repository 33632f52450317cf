"""Named search spaces and the grammar that joins them: `darts+sandglass`, `darts+sandglass_3x3_r6`, …

A space is a tuple of operation names. To add one: `SPACES.add("mine", ("skip_connect", "sandglass_3x3"))`.
"""

from dataclasses import dataclass

from darts_sg.errors import UsageError
from darts_sg.formats import DARTS_OPERATIONS
from darts_sg.ops import OPERATIONS
from darts_sg.registry import PLUGIN_HINT, Registry, unknown_name


def check_space(operations: tuple[str, ...]) -> None:
    """UsageError unless a plug-in's space is a tuple of registered operations; see SPACES."""
    if not isinstance(operations, tuple):
        raise UsageError(f"expected a tuple of operation names, found {operations!r}")
    for name in operations:
        OPERATIONS[name]


SPACES: Registry[tuple[str, ...]] = Registry("space", check=check_space)

SPACES.add("darts", ("none", *DARTS_OPERATIONS))  # DARTS paper, section 3.1.1, in the order of its code
SPACES.add("sandglass", ("sandglass_3x3",))
SPACES.add("ir", ("inverted_residual_3x3",))


@dataclass(frozen=True)
class Space:
    """A search space: the text that names it, and its candidate operations, in order."""

    name: str
    operations: tuple[str, ...]


def parse_space(text: str) -> Space:
    """Parse a text such as `darts+sandglass_3x3`, whose terms are named spaces and operations.

    Operations keep their order, and repeated ones are dropped. Raises UsageError for an unknown term, or if only
    `none` is left to choose from.
    """
    operations: dict[str, None] = {}
    for term in text.split("+"):
        name = term.strip()
        if name in SPACES:
            operations.update(dict.fromkeys(SPACES[name]))
        elif name in OPERATIONS:
            operations[name] = None
        else:
            raise UsageError(unknown_name("space or operation", name, [*SPACES, *OPERATIONS]) + PLUGIN_HINT)
    if not operations.keys() - {"none"}:
        raise UsageError(f"space {text!r} has no operation to choose; add one, such as {text}+skip_connect")
    return Space("+".join(term.strip() for term in text.split("+")), tuple(operations))
