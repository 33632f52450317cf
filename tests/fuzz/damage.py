"""Strategies for damaged input: bytes and texts cut, overwritten and spliced, and plain values of wrong types."""

import copy
import json
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

PIECES = (
    b"", b"\0", b"\xff" * 8, b"\x80", b"\n", b"\r", b"9" * 400, b"-1", b"nan", b"1e400", b"[" * 300, b"{", b"'", b'"',
    b"\xed\xa0\x80", b"&a [*a]", b"!!python/object/apply:os.system ['touch executed']", b"!!int x", b"~", b"<<: ",
    b"cos\nsystem\n(S'touch executed'\ntR.", b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"%s%n", b"../../../etc/passwd",
)  # fmt: skip
WORDS = (
    "", " ", "--", "-", "nan", "-nan", "inf", "-inf", ".inf", "1e400", "-1e400", "1e-400", "0", "-0", "-1", "1_0",
    "0x10", "9" * 19, "9" * 30, "9" * 400, "9" * 5000, "null", "~", "None", "true", "abc", "a" * 5000, "a\nb",
    "a\0b", "\x1b[31m", "ä", "\u2028", "\ud800", "*", "$(touch executed)", "`touch executed`",
    "'; touch executed; '", "{0}", "%d", "[1]", "{}", "auto:", "auto:1e400", "auto:600M", "params:1e400",
    "params:nan", "a:b=c", "gumbel:temperature=nan", "+", "a+a", "/", ".", "..", "/dev/zero", "/dev/null",
    "/proc/self/mem", "~root", "cuda:99", "2.45M", "9" * 400 + "M",
)  # fmt: skip
"""Values that a command line may hold."""
SCALARS = st.sampled_from(
    (
        None, True, False, 0, 1, -1, 2**31, 2**63, -(2**63) - 1, 10**30, 10**400, 0.5, -0.5, 1e308, float("nan"),
        float("inf"), float("-inf"), "", "abc", "null", "1e400", "9" * 400, "a" * 5000, "a\nb", "\0", "ä", [], {}, [[]],
        [1], [None], {"a": 1}, {"": {}}, [[[[[[[[[[]]]]]]]]]],
    )
)  # fmt: skip


@st.composite
def damaged_bytes(draw: st.DrawFn, sound: Sequence[bytes]) -> bytes:
    """One of the sound inputs with up to 4 of: a part overwritten, left out, repeated or replaced, the end cut off."""
    content = draw(st.sampled_from(list(sound)))
    for _ in range(draw(st.integers(0, 4))):
        # most files say early what they are and how large: damage the beginning as often as all the rest
        last = draw(st.sampled_from((16, 256, len(content))))
        at = draw(st.integers(0, min(last, len(content))))
        end = min(len(content), at + draw(st.sampled_from((0, 1, 1, 2, 4, 8, 64, 4096))))
        kind = draw(st.sampled_from(("piece", "random", "cut", "repeat", "out")))
        if kind == "cut":
            content = content[:at]
        elif kind == "out":
            content = content[:at] + content[end:]
        elif kind == "repeat":
            content = content[:end] + content[at:end] * draw(st.integers(1, 20)) + content[end:]
        else:
            new = draw(st.sampled_from(PIECES)) if kind == "piece" else draw(st.binary(max_size=8))
            content = content[:at] + new + content[end:]
    return content


@st.composite
def damaged_plain(draw: st.DrawFn, sound: Any) -> Any:
    """A plain value in which up to 3 entries, at any depth, are replaced by others, removed or put elsewhere."""
    content = copy.deepcopy(sound)
    for _ in range(draw(st.integers(1, 3))):
        node, depth = content, draw(st.integers(0, 4))
        while isinstance(node, dict | list) and node:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            key = draw(st.sampled_from(keys))
            if depth == 0 or not isinstance(node[key], dict | list) or not node[key]:
                kind = draw(st.sampled_from(("other", "other", "other", "out", "twice")))
                if kind == "out":
                    del node[key]
                elif kind == "twice":
                    node[key] = [node[key], copy.deepcopy(node[key])]
                else:
                    node[key] = copy.deepcopy(draw(SCALARS))
                break
            node, depth = node[key], depth - 1
        else:
            content = copy.deepcopy(draw(SCALARS))
    return content


def as_json(value: Any) -> bytes:
    """A plain value as JSON, whose NaN and half surrogates Python writes and reads."""
    return json.dumps(value).encode()
