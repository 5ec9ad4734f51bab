"""Parameters and statistics of the InfLLM memory."""

from __future__ import annotations

import dataclasses
import os
import re
from dataclasses import dataclass, fields
from typing import Any, Literal

from . import _core

Position = Literal["auto", "true", "infllm"]
Paging = Literal["auto", "host", "device"]
Attend = Literal["resident", "topk"]
Scores = Literal["linear", "published"]
Search = Literal["auto", "keys", "queries", "quest", "preselect"]
TypeStore = Literal["auto", "f16", "q8_0", "q4_0"]
Profile = Literal["auto", "exact", "balanced", "fast"]

# in the order of the enums of the C API
_POSITIONS: tuple[Position, ...] = ("auto", "true", "infllm")
_PAGINGS: tuple[Paging, ...] = ("auto", "host", "device")
_ATTENDS: tuple[Attend, ...] = ("resident", "topk")
_SCORES: tuple[Scores, ...] = ("linear", "published")
_SEARCHES: tuple[Search, ...] = ("auto", "keys", "queries", "quest", "preselect")
_TYPES_STORE: tuple[TypeStore, ...] = ("auto", "f16", "q8_0", "q4_0")
_PROFILES: tuple[Profile, ...] = ("auto", "exact", "balanced", "fast")
CHOICES: dict[str, tuple[str, ...]] = {
    "position": _POSITIONS,
    "paging": _PAGINGS,
    "attend": _ATTENDS,
    "scores": _SCORES,
    "search": _SEARCHES,
    "type_store": _TYPES_STORE,
    "profile": _PROFILES,
}
"""Values of the parameters that are no numbers."""
SIZES = ("budget", "reserve")
"""Parameters that can be a text such as "512 MiB"."""
PARTS = ("n_local", "topk", "max_cached_blocks")
"""What a budget is divided into."""
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?(|b|[kmgt](?:i?b)?|tokens)", re.IGNORECASE)
_UINT32_MAX = 2**32 - 1
_UINT64_MAX = 2**64 - 1

_default = _core.InfLLMParams()


def _parse_size(name: str, value: int | str) -> tuple[int, bool]:
    """A number of bytes, or, then it is True, of tokens; TypeError or ValueError naming `name`."""
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise TypeError(f"{name} = {value!r} is neither an integer nor a text such as '512 MiB'")
    match = _SIZE.fullmatch(str(value).strip())
    if not match:
        raise ValueError(
            f"{name} = {value!r} is no size: use bytes, or a text such as '512 MiB', '8192 tokens'"
        )
    number, unit = match[1], match[2].lower()
    is_tokens = unit == "tokens"
    scale = 1 if is_tokens else 1024 ** "bkmgt".index(unit[:1] or "b")
    n = int(number) * scale if number.isdigit() else round(float(number) * scale)
    if n == 0:
        raise ValueError(f"{name} = {value!r} is out of range: it is nothing")
    if n > _UINT64_MAX:
        raise ValueError(f"{name} = {value!r} is out of range: use at most {_UINT64_MAX} bytes")
    return n, is_tokens


@dataclass(frozen=True)
class InfLLMConfig:
    """Parameters of the InfLLM memory (``struct llama_infllm_params``).

    What the parameters must satisfy together with the model and the context is checked by the library when a
    context is made, see :class:`infllm_cpp.Llama`.

    Parameters
    ----------
    n_init : int
        Init tokens, always resident (attention sinks), tokens.
    n_local : int or None
        Local window, tokens. ``None``: by `budget`; or, where `topk` or `max_cached_blocks` is given, an
        eighth of the training length, at most 4096.
    block_size : int
        Tokens of a block. Short records (key-value lines) are found better by 32, with `topk` raised for as
        many tokens in all (docs/evaluation.md).
    topk : int or None
        Blocks selected per layer for every ubatch. ``None``: by `budget`; or, where `n_local` is given, a
        32nd of the training length, at most 16 blocks.
    max_cached_blocks : int or None
        Slots per layer, at least `topk`. ``None``: `topk`. More keep blocks of earlier selections resident,
        and attended: fewer page-ins, for a slow link.
    repr_topk : int or None
        Tokens whose keys are averaged into a representative key, at most ``block_size/n_repr``. ``None``:
        that many, or 4 with ``search="queries"``. Bounds, of ``search="quest"``, are of all of them.
    n_score : int or None
        Tokens of a sub-chunk: a ubatch is scored by the best of its sub-chunk means. ``None``: 16, or 32 with
        ``search="queries"`` or ``"quest"``, or the whole ubatch with ``scores="published"``. By keys a ubatch
        of at most ``2*n_score`` tokens, as the end of a prompt is, is scored by sub-chunks of
        ``2*block_size/n_repr`` tokens as well, if these are fewer: they find strings that are looked up.
    position : {"auto", "true", "infllm"}
        Positions that the model sees. ``"true"``: every token keeps its own. ``"infllm"``: all stay below the
        training length. ``"auto"``: ``"true"`` if ``n_ctx`` is within the training length, else ``"infllm"``.
    store_max_bytes : int or None
        Limit of the memory of the block store, bytes. ``None``: no limit.
    paging : {"auto", "host", "device"}
        Who selects blocks and copies them into slots. ``"device"``: the layer's device, in its stream (CUDA;
        on the CPU it is there for tests). ``"host"``: the host, whatever device the layer is on.
        ``"auto"``: the device where it can.
    pinned_max_bytes : int or None
        Limit of pinned host memory for devices that page, bytes; beyond it the host pages. ``None``: none.
    attend : {"resident", "topk"}
        Blocks that attention sees. ``"resident"``: all that are in slots. ``"topk"``: those selected now, as
        published; then there are no more slots than these.
    scores : {"linear", "published"}
        How the representative keys of a block are chosen. ``"linear"``: by their products with the queries
        that follow, summed over the query heads of a KV head (the formula of the paper, section 3.2).
        ``"published"``: by the attention that they got within their local window, for each query head (the
        authors' code). It computes attention twice and is paged by the host: for comparisons.
    n_repr : int or None
        Representative keys of a block, each of an equal part of it; the best of them counts. They take
        `n_repr` times the memory. ``None``: one for 4 tokens, for 8 where `n_ctx` is beyond the training
        length, and for more where there would be over 32,768 a layer; or one in all with
        ``search="queries"``; or, with ``search="quest"``, a pair of bounds for 16 tokens.
    search : {"auto", "keys", "queries", "quest", "preselect"}
        What representative keys are multiplied with to score a block. ``"keys"``: the keys of the current
        tokens, less the mean key: a block counts that holds a context like the current one, or begins right
        after it (the idea of kNN-LM, Khandelwal et al. 2020, arXiv 1911.00172), by the sum of the standard
        scores of a layer and all before it. ``"queries"``: the queries of the current tokens, each layer for
        itself, as published. ``"quest"``: the queries as well, each layer for itself, but a block counts by
        an upper bound of the attention to any of its keys, which their largest and smallest values give
        (Quest, Tang et al. 2024, arXiv 2406.10774, section 3.3). ``"preselect"``: by keys, but tokens that
        come one by one, an answer, keep what was selected for the text before them (KTransformers'
        ``preselect_block``).
        ``"auto"``: keys, but queries with ``scores="published"``.
    store_path : str, os.PathLike or None
        Folder for the blocks that `store_max_bytes`, or the memory there is, has no room for: they go to a
        file in it that has no name and ends with the context. The system writes it in the background and
        keeps in memory what was used last. The host pages then. ``None``: such blocks are refused, by
        MemoryError.
    type_store : {"auto", "f16", "q8_0", "q4_0"}
        Type of K and V in the store, and in session files. ``"auto"``: that of the resident buffer, so that
        blocks come back as they were. ``"q8_0"`` and ``"q4_0"``: quantised after a Hadamard rotation, in
        about a half and a quarter of the memory of f16; `type_k` and `type_v` are f16 then. What comes back
        into the local window when a text is cut is as it is in the store.
    budget : "auto", int or str
        Memory of the resident buffer, from which `n_local`, `topk` and `max_cached_blocks` follow: bytes,
        such as ``"512 MiB"``, or tokens, as ``"8192 tokens"``; at most the training length is used.
        ``"auto"``: by `profile`. A context that is no longer than its budget is llama.cpp's, bit for bit.
    profile : {"auto", "exact", "balanced", "fast"}
        What an automatic budget is. ``"exact"``: all tokens that there is memory for, up to the training
        length. ``"balanced"`` and ``"auto"``: the same, but attention reads no more bytes for a token than
        the weights are, so that decoding is not much less than half as fast as with an empty context.
        ``"fast"``: `n_local` an eighth and `topk` a 32nd of the training length, at most 4096 tokens and 16
        blocks. Never less than this.
    reserve : int, str or None
        Memory of every device that an automatic budget leaves free, bytes. ``None``: an eighth.

    Raises
    ------
    ValueError
        When a value is out of range.
    TypeError
        When a number is not an integer, or `store_path` no path.

    References
    ----------
    Xiao et al. 2024, InfLLM: Training-Free Long-Context Extrapolation for LLMs with an Efficient Context
    Memory, arXiv 2402.04617. The defaults are those of ``llama_infllm_default_params()``.
    """

    n_init: int = _default.n_init
    n_local: int | None = _default.n_local or None
    block_size: int = _default.block_size
    topk: int | None = _default.topk or None
    max_cached_blocks: int | None = _default.max_cached_blocks or None
    repr_topk: int | None = _default.repr_topk or None
    n_score: int | None = _default.n_score or None
    position: Position = _POSITIONS[_default.position]
    store_max_bytes: int | None = _default.store_max_bytes or None
    paging: Paging = _PAGINGS[_default.paging]
    pinned_max_bytes: int | None = _default.pinned_max_bytes or None
    attend: Attend = _ATTENDS[_default.attend]
    scores: Scores = _SCORES[_default.scores]
    n_repr: int | None = _default.n_repr or None
    search: Search = _SEARCHES[_default.search]
    store_path: str | os.PathLike[str] | None = None
    type_store: TypeStore = _TYPES_STORE[_default.type_store]
    budget: Literal["auto"] | int | str = "auto"
    profile: Profile = _PROFILES[_default.profile]
    reserve: int | str | None = None

    def __post_init__(self) -> None:
        if self.store_path is not None:
            path = os.path.expanduser(os.fspath(self.store_path))  # TypeError where it is no path
            if not path:
                raise ValueError("store_path = '' is empty: give a folder, or None")
            _core.InfLLMParams().store_path = path  # ValueError where it is too long
            object.__setattr__(self, "store_path", path)
        if self.budget != "auto":
            _parse_size("budget", self.budget)
        if self.reserve is not None and _parse_size("reserve", self.reserve)[1]:
            raise ValueError(f"reserve = {self.reserve!r} is not in bytes")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in ("store_path", *SIZES):
                continue
            if field.name in CHOICES:
                names = CHOICES[field.name]
                if value not in names:
                    known = ", ".join(map(repr, names[:-1])) + f" or {names[-1]!r}"
                    raise ValueError(f"{field.name} = {value!r} is unknown: use {known}")
                continue
            if value is None and field.default is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{field.name} = {value!r} is not an integer")
            # 0 is None in the C API: here it would say "none" and do the automatic thing
            limit_low = 1 if field.default is None else 0
            limit_high = _UINT64_MAX if field.name.endswith("_bytes") else _UINT32_MAX
            if not limit_low <= value <= limit_high:
                hint = ", or None for the automatic value" if field.default is None else ""
                raise ValueError(
                    f"{field.name} = {value} is out of range: "
                    f"use a value from {limit_low} to {limit_high}{hint}"
                )

    def _is_divided(self) -> bool:
        """Whether a part of the budget is given, so that the others do not follow from it."""
        return any(getattr(self, name) for name in PARTS)

    def _changes(self) -> dict[str, Any]:
        """What differs from the defaults."""
        default = InfLLMConfig()
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value != getattr(default, name)}

    def _is_in_tokens(self) -> bool:
        """Whether a model has to say how many bytes the budget is."""
        return self.budget != "auto" and _parse_size("budget", self.budget)[1]

    def _in_bytes(self, bytes_per_token: float | None) -> InfLLMConfig:
        """The same with sizes as numbers of bytes."""
        params = self._to_params(bytes_per_token)
        return dataclasses.replace(self, budget=params.budget or "auto", reserve=params.reserve or None)

    def _to_params(self, bytes_per_token: float | None = None) -> _core.InfLLMParams:
        """As the C API has them; `bytes_per_token` of K and V, for a `budget` in tokens."""
        params = _core.InfLLMParams()
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in SIZES:
                n, is_tokens = (0, False) if value in (None, "auto") else _parse_size(field.name, value)
                if is_tokens and bytes_per_token is None:
                    raise ValueError(f"{field.name} = {value!r} is no number of bytes")
                n = round(n * (bytes_per_token or 0)) if is_tokens else n
                if n > _UINT64_MAX:
                    raise ValueError(f"{field.name} = {value!r} is out of range: {n} bytes")
                setattr(params, field.name, n)
                continue
            names = CHOICES.get(field.name)
            nothing = "" if field.name == "store_path" else 0
            setattr(params, field.name, names.index(value) if names else value or nothing)
        return params

    @classmethod
    def _from_params(cls, params: _core.InfLLMParams) -> InfLLMConfig:
        values = {field.name: getattr(params, field.name) for field in fields(cls)}
        values.update({name: names[values[name]] for name, names in CHOICES.items()})
        values["store_max_bytes"] = params.store_max_bytes or None
        values["pinned_max_bytes"] = params.pinned_max_bytes or None
        values["store_path"] = params.store_path or None
        values["budget"] = params.budget or "auto"
        values["reserve"] = params.reserve or None
        return cls(**values)


@dataclass(frozen=True)
class InfLLMStats:
    """Statistics of the InfLLM memory (``struct llama_infllm_stats``), of one layer or summed up over all.

    Attributes
    ----------
    n_layer : int
        Layers summed up here.
    n_seq : int
        Sequences that hold tokens.
    n_tokens : int
        Tokens held.
    n_tokens_resident : int
        Tokens that attention can see without paging, of one layer.
    n_blocks, n_slots : int
        Blocks in the store, and slots, times layers.
    bytes_resident : int
        K and V of the resident buffer, bytes.
    bytes_repr : int
        Representative keys, bytes.
    bytes_store : int
        Blocks in the store: K, V and what the method keeps beside them, bytes.
    bytes_store_kv : int
        K and V rows of the store alone, bytes.
    bytes_store_file : int
        Of `bytes_store`, what is in files, of sessions or in `store_path`, and takes no memory of its own.
    bytes_paged_in : int
        Copied from the store to slots since the statistics were reset, bytes.
    n_select, n_selected, n_hit, n_page_in : int
        Selections made; blocks selected; of which already resident; of which paged in.
    n_page_in_file : int
        Blocks that the host copied into slots from files, selected or to fill slots up.
    us_page_in, us_page_in_file : int
        Time that the host took to copy blocks into slots, from memory and from files, microseconds; of a
        layer that searches, with those that follow it.
    n_layer_pager, n_layer_device : int
        Layers on devices that have a pager; of which these page now. The host pages all other layers.
    paging_reason : str
        Why the host pages what is on a device; ``""`` where it does not, or was asked to.
    layers : tuple of InfLLMStats
        The same per layer; empty in the statistics of a layer.
    """

    n_layer: int
    n_seq: int
    n_tokens: int
    n_tokens_resident: int
    n_blocks: int
    n_slots: int
    bytes_resident: int
    bytes_repr: int
    bytes_store: int
    bytes_store_kv: int
    bytes_paged_in: int
    n_select: int
    n_selected: int
    n_hit: int
    n_page_in: int
    n_layer_pager: int
    n_layer_device: int
    bytes_store_file: int
    n_page_in_file: int
    us_page_in: int
    us_page_in_file: int
    paging_reason: str
    layers: tuple[InfLLMStats, ...] = dataclasses.field(default=(), repr=False)

    @classmethod
    def _from_context(cls, ctx: _core.Context, layers: range) -> InfLLMStats | None:
        """Of all layers, with those of each of `layers`; ``None`` without the InfLLM memory."""

        def get(il: int, parts: tuple[InfLLMStats, ...] = ()) -> InfLLMStats | None:
            stats = ctx.stats(il)
            if stats is None:
                return None
            names = {field.name for field in fields(cls)} - {"paging_reason", "layers"}
            values = {name: getattr(stats, name) for name in names}
            return cls(**values, paging_reason=ctx.paging_reason(il), layers=parts)

        return get(-1, tuple(stats for il in layers if (stats := get(il)) is not None))
