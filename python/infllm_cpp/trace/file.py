"""Trace files: which blocks each layer selected at each step.

A step is a ubatch: up to ``n_ubatch`` tokens of a prompt, or one decoded token. Everything is little-endian::

    magic     8 bytes     b"INFLLM\\0\\1", the last byte is the version
    n_header  uint32      bytes of the header
    header    n_header    JSON, UTF-8: the fields of TraceHeader
    step, step, ... to the end of the file

    a step:
    pos       uint32      position of its first token
    n_tokens  uint32      its tokens
    n_blocks  uint32      blocks that could be selected
    n         uint16      layers in this step
    layers    uint16 [n, 3]   layer, n_selected, n_page_in
    blocks    uint16 [sum of n_selected], uint32 if n_blocks > 65536: block indices, best first

That is 2 bytes a block, and less than 1 more for 16 blocks a layer. A file is written step by step and can be
cut off anywhere: the steps before the cut are read.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from .._core import TraceEvent
    from ..llama import Llama

MAGIC = b"INFLLM\0\1"

_N_HEADER = struct.Struct("<I")
_STEP = struct.Struct("<IIIH")
_LAYER = np.dtype("<u2")
_U16_MAX = 2**16 - 1
_N_HEADER_MAX = 2**24  # bytes; more is no header
_N_BLOCKS_MAX = 2**24  # blocks of a context; more is damage
_N_SELECTED_MAX = 2**28  # values of `Trace.selected`

IntArray = npt.NDArray[np.int32]


@dataclass(frozen=True)
class TraceHeader:
    """What was recorded.

    Attributes
    ----------
    model : str
        Name of the model.
    n_layer : int
        Layers of the model.
    n_ctx, n_ubatch : int
        Tokens that the context could hold; tokens of a ubatch at most.
    block_bytes : float
        K and V of one block of one layer, bytes.
    infllm : dict
        Parameters of the InfLLM memory, the automatic values filled in: the fields of `InfLLMConfig`.
    """

    model: str
    n_layer: int
    n_ctx: int
    n_ubatch: int
    block_bytes: float
    infllm: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, llm: Llama, model: str | None = None) -> TraceHeader:
        """The header for a trace of `llm`, under the name that the GGUF has, or `model`.

        Raises
        ------
        ValueError
            When `llm` is without the InfLLM memory.
        """
        config = llm.infllm
        if config is None:
            raise ValueError("plain llama.cpp selects no blocks: there is nothing to trace")
        n_layer = llm._model.n_layer()
        return cls(
            model=model or llm.metadata.get("general.name") or Path(llm.model_path).name,
            n_layer=n_layer,
            n_ctx=llm.n_ctx(),
            n_ubatch=llm._ctx.n_ubatch(),
            block_bytes=llm.kv_bytes_per_token() * config.block_size / n_layer,
            infllm=asdict(config),
        )


@dataclass(frozen=True)
class TraceStep:
    """What was selected in one step.

    Attributes
    ----------
    pos, n_tokens, n_blocks : int
        Position of the first token, tokens, blocks that could be selected.
    layers, n_page_in : ndarray of int32
        Layers that selected, and how many blocks they paged in, ``[n]``.
    selected : tuple of ndarray of int32
        Blocks of each of these layers, best first, ``[n_selected]``.
    """

    pos: int
    n_tokens: int
    n_blocks: int
    layers: IntArray
    n_page_in: IntArray
    selected: tuple[IntArray, ...]


class TraceWriter:
    """Write a trace; to be given to `Llama.set_trace`.

    The events of a step are kept until the next step begins, then written.

    Parameters
    ----------
    path : str or os.PathLike
        The file; overwritten if it exists.
    header : TraceHeader

    Raises
    ------
    OSError
        When the file cannot be written, here and in any call.

    Examples
    --------
    ::

        with TraceWriter("out.trace", TraceHeader.of(llm)) as writer:
            llm.set_trace(writer)
            llm.create_completion(prompt)
            llm.set_trace(None)
    """

    def __init__(self, path: str | os.PathLike[str], header: TraceHeader) -> None:
        self.path = os.fspath(path)
        self.n_steps = 0  # written
        self._events: list[TraceEvent] = []
        self._file: BinaryIO | None = open(path, "wb")
        data = json.dumps(asdict(header)).encode()
        self._file.write(MAGIC + _N_HEADER.pack(len(data)) + data)

    def __call__(self, event: TraceEvent) -> None:
        """Take up what one layer selected."""
        if self._events:
            last = self._events[-1]
            if event.pos != last.pos or event.n_tokens != last.n_tokens or event.il <= last.il:
                self._write_step()
        self._events.append(event)

    def _write_step(self) -> None:
        assert self._file is not None
        events, self._events = self._events, []
        n_blocks = len(events[0].scores)
        table = np.array([(e.il, len(e.selected), e.n_page_in) for e in events])
        if table.max() > _U16_MAX:
            raise ValueError(
                f"{self.path}: a layer with more than {_U16_MAX} selected blocks cannot be traced"
            )
        self._file.write(
            _STEP.pack(events[0].pos, events[0].n_tokens, n_blocks, len(events))
            + table.astype(_LAYER).tobytes()
            + np.concatenate([e.selected for e in events]).astype(_block_type(n_blocks)).tobytes()
        )
        self.n_steps += 1

    def close(self) -> None:
        """Write the last step and close the file. May be called twice."""
        if self._file is None:
            return
        try:
            if self._events:
                self._write_step()
        finally:
            self._file.close()
            self._file = None

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class TraceReader:
    """Read a trace, step by step: ``for step in reader``. Can be iterated more than once.

    Parameters
    ----------
    path : str or os.PathLike

    Attributes
    ----------
    header : TraceHeader
    truncated : bool
        The file ended within a step, which was left out; known after the last step.

    Raises
    ------
    OSError
        When the file cannot be read.
    ValueError
        When it is not a trace, or is damaged; the latter while it is iterated, too.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self.truncated = False
        with open(path, "rb") as file:
            self.header = self._read_header(file)
            self._begin = file.tell()

    def _read_header(self, file: BinaryIO) -> TraceHeader:
        magic = file.read(len(MAGIC))
        if magic[:-1] != MAGIC[:-1]:
            raise ValueError(f"{self.path} is not a trace: make one with `infllm trace record`")
        if magic != MAGIC:
            raise ValueError(f"{self.path} has trace version {magic[-1]}, this program reads {MAGIC[-1]}")
        size = file.read(_N_HEADER.size)
        n_header = _N_HEADER.unpack(size)[0] if len(size) == _N_HEADER.size else 0
        data = file.read(n_header) if 0 < n_header <= _N_HEADER_MAX else b""
        try:
            values = json.loads(data)
            header = TraceHeader(**{f.name: values[f.name] for f in fields(TraceHeader)})
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ValueError(f"{self.path} is cut off or damaged: its header cannot be read") from None
        types = (
            (header.model, str),
            (header.n_layer, int),
            (header.n_ctx, int),
            (header.n_ubatch, int),
            (header.block_bytes, (int, float)),
            (header.infllm, dict),
        )
        n_slot = header.infllm.get("max_cached_blocks") if isinstance(header.infllm, dict) else None
        if (
            not all(isinstance(value, kind) for value, kind in types)
            or not 0 <= header.block_bytes < 2**64
            or not (n_slot is None or (isinstance(n_slot, int) and 0 < n_slot <= _N_BLOCKS_MAX))
        ):
            raise ValueError(f"{self.path} is damaged: its header has values that cannot be")
        return header

    def __iter__(self) -> Iterator[TraceStep]:
        self.truncated = False
        with open(self.path, "rb") as file:
            file.seek(self._begin)
            while True:
                begin = file.tell()
                head = file.read(_STEP.size)
                if not head:
                    return
                step = self._read_step(head, file.read, begin)
                if step is None:
                    self.truncated = True
                    return
                yield step

    def _read_step(self, head: bytes, read: Callable[[int], bytes], begin: int) -> TraceStep | None:
        """None: the file ends before the step does."""
        if len(head) < _STEP.size:
            return None
        pos, n_tokens, n_blocks, n = _STEP.unpack(head)
        data = read(n * 3 * _LAYER.itemsize)
        if len(data) < n * 3 * _LAYER.itemsize:
            return None
        layers, n_selected, n_page_in = np.frombuffer(data, _LAYER).reshape(n, 3).T.astype(np.int32)
        dtype = _block_type(n_blocks)
        n_bytes = int(n_selected.sum()) * dtype.itemsize
        data = read(n_bytes)
        if len(data) < n_bytes:
            return None
        blocks = np.frombuffer(data, dtype).astype(np.int64)
        if (
            n == 0
            or n_tokens == 0
            or pos + n_tokens >= 2**31
            or n_blocks > _N_BLOCKS_MAX
            or n_selected.min() == 0
            or layers.max() >= self.header.n_layer
            or (np.diff(layers) <= 0).any()
            or (n_page_in > n_selected).any()
            or (blocks >= n_blocks).any()
        ):
            raise ValueError(f"{self.path} is damaged: what begins at byte {begin} is not a step")
        selected = np.split(blocks.astype(np.int32), np.cumsum(n_selected)[:-1])
        return TraceStep(pos, n_tokens, n_blocks, layers, n_page_in, tuple(selected))


@dataclass(frozen=True)
class Trace:
    """A whole trace as arrays; ``n`` below is the layers that select.

    Attributes
    ----------
    header : TraceHeader
    truncated : bool
        The file ended within a step, which is left out.
    layers : ndarray of int32
        Layers that select, ascending, ``[n]``.
    pos, n_tokens, n_blocks : ndarray of int32
        Position of the first token, tokens, blocks that could be selected, ``[n_step]``.
    n_page_in : ndarray of int32
        Blocks paged in by the run that was recorded, ``[n_step, n]``.
    selected : ndarray of int32
        Blocks, best first, filled up with -1: ``[n_step, n, n_selected]``.
    """

    header: TraceHeader
    truncated: bool
    layers: IntArray
    pos: IntArray
    n_tokens: IntArray
    n_blocks: IntArray
    n_page_in: IntArray
    selected: IntArray

    @property
    def n_step(self) -> int:
        """Steps."""
        return len(self.pos)

    @property
    def is_decode(self) -> npt.NDArray[np.bool_]:
        """Steps of one token, ``[n_step]``."""
        return np.asarray(self.n_tokens == 1, np.bool_)


def read_trace(path: str | os.PathLike[str]) -> Trace:
    """Read a whole trace.

    Raises
    ------
    OSError, ValueError
        As `TraceReader`, and when there is no step in it.
    """
    reader = TraceReader(path)
    steps = list(reader)
    if not steps:
        raise ValueError(
            f"{reader.path} has no step: nothing was selected, because all tokens were resident, "
            "or the file is cut off"
        )
    layers = np.unique(np.concatenate([step.layers for step in steps]))
    n_selected = max(len(blocks) for step in steps for blocks in step.selected)
    if len(steps) * len(layers) * n_selected > _N_SELECTED_MAX:
        raise ValueError(
            f"{reader.path} has {len(steps):,} steps of {len(layers):,} layers with up to {n_selected:,} "
            f"blocks: a whole trace can have {_N_SELECTED_MAX:,} blocks, read it step by step"
        )
    selected = np.full((len(steps), len(layers), n_selected), -1, np.int32)
    n_page_in = np.zeros((len(steps), len(layers)), np.int32)
    for i, step in enumerate(steps):
        rows = np.searchsorted(layers, step.layers)
        n_page_in[i, rows] = step.n_page_in
        for row, blocks in zip(rows, step.selected, strict=True):
            selected[i, row, : len(blocks)] = blocks
    return Trace(
        header=reader.header,
        truncated=reader.truncated,
        layers=layers.astype(np.int32),
        pos=np.array([step.pos for step in steps], np.int32),
        n_tokens=np.array([step.n_tokens for step in steps], np.int32),
        n_blocks=np.array([step.n_blocks for step in steps], np.int32),
        n_page_in=n_page_in,
        selected=selected,
    )


def _block_type(n_blocks: int) -> np.dtype[Any]:
    return np.dtype("<u2" if n_blocks <= 2**16 else "<u4")
