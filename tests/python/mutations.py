"""Files as somebody else may make them: bytes and values that are changed at random."""

from __future__ import annotations

import copy
import random
from typing import Any

_NUMBERS = (0, 1, 2, 255, 2**15, 2**16 - 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)
_VALUES = (
    None,
    True,
    0,
    -1,
    2**31,
    2**64,
    10**40,
    0.5,
    float("nan"),
    float("inf"),
    "",
    "text",
    "\x1b[2J",
    [],
    [[]],
    [1, "a"],
    {},
    {"a": 1},
)


def of_bytes(data: bytes, rng: random.Random) -> bytes:
    """`data` with one to four changes: bits, bytes, numbers, and pieces that are cut out or doubled."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if not out:
            break
        at = rng.randrange(len(out))
        size = rng.randint(1, min(64, len(out) - at))
        match rng.randrange(6):
            case 0:
                out[at] ^= 1 << rng.randrange(8)
            case 1:
                out[at] = rng.randrange(256)
            case 2:
                width = rng.choice((2, 4, 8))
                number = rng.choice(_NUMBERS) % 256**width
                out[at : at + width] = number.to_bytes(width, "little")
            case 3:
                del out[at : at + size]
            case 4:
                out[at:at] = out[at : at + size]
            case _:
                del out[at:]
    return bytes(out)


def of_value(value: Any, rng: random.Random) -> Any:
    """A value that JSON can hold, with one of its parts replaced, left out or added."""
    value = copy.deepcopy(value)
    parts: list[tuple[Any, Any]] = []  # where it is, and its key or index

    def collect(part: Any) -> None:
        items = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
        for key, inner in list(items):
            parts.append((part, key))
            collect(inner)

    collect(value)
    if not parts or rng.random() < 0.02:
        return rng.choice(_VALUES)
    where, key = rng.choice(parts)
    match rng.randrange(4):
        case 0:
            del where[key]
        case 1 if isinstance(where, dict):
            where["unknown"] = rng.choice(_VALUES)
        case _:
            where[key] = rng.choice(_VALUES)
    return value
