"""The part of `Llama` that computes embeddings: OpenAI's answers, llama-cpp-python's methods."""

from __future__ import annotations

import copy
import reprlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt

from . import _core
from ._choices import ATTENTION_TYPES, POOLING_TYPES, UNSPECIFIED, choice
from ._loading import check_positions, make_context
from ._model_owner import ModelOwner
from .types import CreateEmbeddingResponse

Vector = list[float] | list[list[float]]  # of a text, or of each of its tokens

_N_SEQ = 64  # texts that are computed at once


def check_embedding(
    embedding: bool,
    pooling_type: str | int | None,
    attention_type: str | int | None,
    infllm: bool,
) -> tuple[int, int]:
    """Numbers of the types, for `_core.ContextOptions`.

    Raises
    ------
    TypeError, ValueError
        When they are unknown, have no effect without `embedding`, or the InfLLM memory is to be used.
    """
    pooling = choice("pooling_type", pooling_type, POOLING_TYPES)
    attention = choice("attention_type", attention_type, ATTENTION_TYPES)
    if not isinstance(embedding, bool):
        raise TypeError(f"embedding = {embedding!r} is not a bool")
    if not embedding:
        for name, value in (("pooling_type", pooling), ("attention_type", attention)):
            if value != UNSPECIFIED:
                raise ValueError(f"{name} is for embeddings: use embedding=True with it, or leave it out")
    elif infllm:
        raise ValueError(
            "embedding = True does not work with the InfLLM memory, which reads a text by pieces, while an "
            "embedding is of a text as a whole: use infllm=None"
        )
    if pooling == POOLING_TYPES["rank"]:
        raise ValueError(_NO_RANK)
    return pooling, attention


_NO_RANK = "pooling_type = 'rank' scores pairs of texts: use 'none', 'mean', 'cls' or 'last'"


def check_embedder(model: _core.Model, path: str) -> None:
    """ValueError unless a model can compute embeddings here."""
    if model.has_encoder() and model.has_decoder():
        raise ValueError(
            f"{path} is an encoder and a decoder: embeddings come from models that are one of both"
        )


def make_embedding_context(
    model: _core.Model, base: _core.ContextOptions, n_ctx: int, n_ubatch: int | None
) -> _core.Context:
    """A context of `n_ctx` tokens whose batches are computed at once, as pooling takes the tokens of one.

    Raises
    ------
    ValueError
        When the model scores pairs of texts.
    RuntimeError, MemoryError, DeviceLostError
        As `Llama`.
    """
    res = copy.copy(base)
    check_positions(model, n_ctx)
    res.n_batch = res.n_ubatch = min(base.n_batch, n_ctx, n_ubatch or n_ctx)
    res.n_ctx = min(n_ctx, -(-res.n_batch // 256) * 256)  # nothing is stored beyond a batch
    res.n_seq_max = min(res.n_batch, 1 if model.is_recurrent() else _N_SEQ)
    ctx = make_context(model, res)
    if ctx.pooling_type() == POOLING_TYPES["rank"]:
        raise ValueError(_NO_RANK)
    return ctx


class Embedder(ModelOwner):
    """Embeddings, as llama-cpp-python has them."""

    def pooling_type(self) -> int:
        """How embeddings of tokens become one of a text, as the number in ``llama.h``; 0: they do not."""
        return self._ctx.pooling_type()

    @overload
    def embed(  # type: ignore[overload-overlap]  # a str is a sequence of them, too
        self,
        input: str,
        normalize: bool = ...,
        truncate: bool = ...,
        return_count: Literal[False] = ...,
    ) -> Vector: ...

    @overload
    def embed(
        self,
        input: Sequence[str],
        normalize: bool = ...,
        truncate: bool = ...,
        return_count: Literal[False] = ...,
    ) -> list[Vector]: ...

    @overload
    def embed(
        self,
        input: str | Sequence[str],
        normalize: bool = ...,
        truncate: bool = ...,
        *,
        return_count: Literal[True],
    ) -> tuple[Any, int]: ...

    def embed(
        self,
        input: str | Sequence[str],
        normalize: bool = False,
        truncate: bool = True,
        return_count: bool = False,
    ) -> Any:
        """Embeddings of a text, or of each of several.

        Several texts are computed together, as many as `n_batch` tokens have room for, and rounded otherwise
        than each alone.

        Parameters
        ----------
        input : str or sequence of str
        normalize : bool
            Divide every vector by its Euclidean norm.
        truncate : bool
            Leave out what is beyond `n_batch` tokens of a text; ``False``: such a text is an error.
        return_count : bool
            Also return how many tokens there were.

        Returns
        -------
        list
            A vector of floats for one text, a list of them for several. With ``pooling_type="none"``, the
            default of most models that generate text, there is a vector for each token in place of one.

        Raises
        ------
        RuntimeError
            When the object was made without ``embedding=True``.
        TypeError
            When `input` is something else.
        ValueError
            When a text has no tokens, or too many.
        MemoryError, KeyboardInterrupt, InterruptedError
            As `eval`.
        """
        texts = _as_texts(input)
        with self._changing():
            if not self._embedding:
                raise RuntimeError(
                    "this Llama is for text: for embeddings make one with embedding=True, infllm=None"
                )
            tokens = [self._text_tokens(i, text, truncate) for i, text in enumerate(texts)]
            vectors: list[Vector] = []
            for batch in self._batches(tokens):
                vectors += [_as_lists(vector, normalize) for vector in self._ctx.embed(batch)]
        found = vectors[0] if isinstance(input, str) else vectors
        return (found, sum(map(len, tokens))) if return_count else found

    def create_embedding(
        self, input: str | Sequence[str], model: str | None = None
    ) -> CreateEmbeddingResponse:
        """Embeddings of a text, or of several, in OpenAI's shape.

        Parameters
        ----------
        input : str or sequence of str
        model : str or None
            Name of the model in the answer; ``None``: its path.

        Returns
        -------
        CreateEmbeddingResponse

        Raises
        ------
        RuntimeError, TypeError, ValueError, MemoryError, KeyboardInterrupt, InterruptedError
            As `embed`.
        """
        vectors, n_tokens = self.embed(_as_texts(input), return_count=True)
        return {
            "object": "list",
            "data": [{"object": "embedding", "embedding": v, "index": i} for i, v in enumerate(vectors)],
            "model": model or self.model_path,
            "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
        }

    def _text_tokens(self, i: int, text: str, truncate: bool) -> list[int]:
        tokens = self.tokenize(text)
        if not tokens:
            raise ValueError(f"input[{i}] has no tokens: an empty text has no embedding")
        if len(tokens) > self._n_batch and not truncate:
            raise ValueError(
                f"input[{i}] has {len(tokens)} tokens, more than n_batch = {self._n_batch}: raise n_batch"
            )
        return tokens[: self._n_batch]

    def _batches(self, texts: list[list[int]]) -> Iterator[list[list[int]]]:
        n_seq = self._ctx.n_seq_max()
        batch: list[list[int]] = []
        for text in texts:
            if batch and (len(batch) == n_seq or sum(map(len, batch)) + len(text) > self._n_batch):
                yield batch
                batch = []
            batch.append(text)
        if batch:
            yield batch


def _as_texts(input: str | Sequence[str]) -> list[str]:
    texts = [input] if isinstance(input, str) else list(input) if isinstance(input, Sequence) else [input]
    if any(not isinstance(text, str) for text in texts):
        raise TypeError(f"input = {reprlib.repr(input)} is neither a str nor a sequence of them")
    return texts


def _as_lists(vector: npt.NDArray[np.float32], normalize: bool) -> Vector:
    res = vector.astype(np.float64)
    if normalize:
        norm = np.linalg.norm(res, axis=-1, keepdims=True)
        res = res / np.where(norm == 0, 1, norm)
    found: Vector = res.tolist()
    return found
