"""Named search spaces and the grammar that joins them: `darts+sandglass`, `darts+sandglass_3x3_r6`, …"""

from dataclasses import dataclass

from darts_sg.errors import UsageError
from darts_sg.formats import DARTS_OPERATIONS
from darts_sg.ops import OPERATIONS
from darts_sg.registry import Registry, unknown_name

SPACES: Registry[tuple[str, ...]] = Registry("space")

SPACES.add("darts", ("none", *DARTS_OPERATIONS))  # DARTS paper, section 3.1.1, in the order of its code
SPACES.add("sandglass", ("sandglass_3x3",))
SPACES.add("ir", ("inverted_residual_3x3",))


@dataclass(frozen=True)
class Space:
    """A search space: the text it was asked for by, and the candidate operations, in order."""

    name: str
    operations: tuple[str, ...]


def parse_space(text: str) -> Space:
    """The space of an `a+b` text whose terms are named spaces and operations.

    Order is kept and repeated operations are dropped. Raises UsageError for an unknown term, or if nothing but
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
            raise UsageError(unknown_name("space or operation", name, [*SPACES, *OPERATIONS]))
    if not operations.keys() - {"none"}:
        raise UsageError(f"space {text!r} has no operation to choose; add one, such as {text}+skip_connect")
    return Space("+".join(term.strip() for term in text.split("+")), tuple(operations))
