"""Parameters that choose one of a few things, by the names or by the numbers of llama.h."""

from __future__ import annotations

SPLIT_MODES = {"none": 0, "layer": 1, "row": 2, "tensor": 3}
ROPE_SCALING_TYPES = {"none": 0, "linear": 1, "yarn": 2, "longrope": 3}
POOLING_TYPES = {"none": 0, "mean": 1, "cls": 2, "last": 3, "rank": 4}
ATTENTION_TYPES = {"causal": 0, "non-causal": 1}

UNSPECIFIED = -1  # as the model says


def choice(name: str, value: str | int | None, names: dict[str, int], default: int = UNSPECIFIED) -> int:
    """The number of a choice; `default` for ``None``, and for -1 where that is what it means.

    Raises
    ------
    TypeError, ValueError
        When `value` is none of `names`, nor one of their numbers.
    """
    if value is None:
        return default
    if isinstance(value, str) and value in names:
        return names[value]
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise TypeError(f"{name} = {value!r} is neither a name nor a number")
    if value in names.values() or value == default == UNSPECIFIED:
        return int(value)
    raise ValueError(
        f"{name} = {value!r} is unknown: use one of {', '.join(names)}, or its number in llama.h"
    )
