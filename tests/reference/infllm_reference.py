"""The InfLLM algorithm in NumPy, for models of the Llama architecture in GGUF files.

Written from the paper (Xiao et al. 2024, arXiv 2402.04617) and from what the authors' code does
(github.com/thunlp/InfLLM, ``inf_llm/attention/context_manager.py``). It shares no code with infllm-cpp and
keeps all keys and values: it says what should be computed, not how to do it within a bounded memory.

With ``PUBLISHED`` it is the authors' method. Every switch of `Switches` replaces one step by what infllm-cpp
does instead; with all of them (``OURS``) it should compute what infllm-cpp computes, but for rounding.

Shapes: ``T`` tokens of a chunk, ``H`` query heads, ``G`` KV heads, ``D`` values of a head, ``N`` attended
tokens.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import gguf
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Budget:
    """Sizes, in tokens or blocks; names as in ``InfLLMConfig``.

    `chunk` tokens are computed, and share a selection, at once (``exc_block_size`` of the authors' code, a
    ubatch of llama.cpp).
    """

    n_init: int = 64
    n_local: int = 512
    block_size: int = 64
    topk: int = 8
    max_cached_blocks: int = 16
    repr_topk: int = 4
    n_repr: int = 1
    n_score: int = 32
    chunk: int = 256


@dataclass(frozen=True)
class Switches:
    """The steps in which infllm-cpp differs from the published method. The first choice is the published one.

    Attributes
    ----------
    scores : {"softmax", "linear"}
        What makes a token of a block representative. ``"softmax"``: the sum of the attention probabilities
        that the queries of its local window gave it (the authors' code). ``"linear"``: the product of its key
        with the sum of these queries (the formula of the paper).
    followers : {"window", "blocks"}
        With linear scores, which queries these are. ``"window"``: the ``n_local`` that follow the token.
        ``"blocks"``: those of the ``n_local/block_size`` blocks that follow its block.
    heads : {"query", "kv"}
        Who chooses representative tokens: every query head, or every KV head for all of its query heads.
    parts : {"one", "several"}
        ``"one"``: a block has one representative key. ``"several"``: each of its `n_repr` parts has one, and
        the best product counts.
    query : {"mean", "best"}
        What a block is compared with. ``"mean"``: the mean query of the chunk. ``"best"``: mean queries of
        sub-chunks of ``n_score`` tokens; the best product counts.
    attend : {"topk", "resident"}
        Blocks attended. ``"topk"``: those selected. ``"resident"``: the ``max_cached_blocks`` in slots. For a
        chunk these are filled anew, with those selected and the newest others; for a single token blocks are
        replaced least recently used first. Nothing is left out while all tokens fit the resident buffer.
    position : {"paper", "true", "slots"}
        ``"paper"``: all tokens outside the local window are at distance ``n_local`` (the authors' code has
        ``n_local - 1``). ``"true"``: every token keeps its position. ``"slots"``: a block has the positions
        of its slot, and the local window follows on the last slot (``position = "infllm"`` of infllm-cpp).
    search : {"queries", "keys"}
        What representative keys are multiplied with. ``"queries"``: those of the chunk, at distance
        ``n_local``. ``"keys"``: means of the last keys, ``n_score`` each, without RoPE. The mean of the
        representative keys that there were at the first selection is subtracted from both, and
        representative keys are made of length 1.
    agree : {"layer", "layers"}
        With ``"keys"``, who scores a block. ``"layer"``: each layer for itself. ``"layers"``: every third
        layer and all such before it, by the sum of the squares of their standard scores over the blocks, as
        far as these are positive, for each mean of keys; the layers between follow them.
    after : {"none", "last"}
        With ``"keys"``, whether the last of several representative keys of the block before counts for a
        block, too: ``"last"``.
    lengths : {"one", "two"}
        With ``"keys"``, whether chunks of at most ``2*n_score`` tokens are searched for by means of as many
        keys as two representative keys stand for, too, where these are fewer than ``n_score``: ``"two"``.
    window : {"once", "twice"}
        With positions of the paper. ``"once"``: every token is attended once. ``"twice"``: as the authors'
        code masks the tokens that are in no block yet. It hands those outside the local window of the *last*
        query of a chunk to all of its queries, at distance ``n_local``, so that the others see them twice
        where they are also in their own window.
    """

    scores: Literal["softmax", "linear"] = "softmax"
    followers: Literal["window", "blocks"] = "window"
    heads: Literal["query", "kv"] = "query"
    parts: Literal["one", "several"] = "one"
    query: Literal["mean", "best"] = "mean"
    attend: Literal["topk", "resident"] = "topk"
    position: Literal["paper", "true", "slots"] = "paper"
    window: Literal["once", "twice"] = "once"
    search: Literal["queries", "keys"] = "queries"
    agree: Literal["layer", "layers"] = "layer"
    after: Literal["none", "last"] = "none"
    lengths: Literal["one", "two"] = "one"


PUBLISHED = Switches()
OURS = Switches("linear", "blocks", "kv", "several", "best", "resident", "true")
"""With ``search = "queries"``."""
OURS_BY_KEYS = replace(OURS, search="keys", agree="layers", after="last", lengths="two")


@dataclass(frozen=True)
class Selection:
    """What a layer selected for a chunk, where there was a choice."""

    layer: int
    pos: int
    """Position of the first token of the chunk."""
    blocks: tuple[int, ...]
    """Best first; block ``b`` starts at position ``n_init + b*block_size``."""
    scores: Floats
    """Of every block."""


# -- the model -----------------------------------------------------------------------------------------


@dataclass
class Layer:
    """Weights of a layer, ``[n_out, n_in]``."""

    attn_norm: Floats
    attn_q: Floats
    attn_k: Floats
    attn_v: Floats
    attn_output: Floats
    ffn_norm: Floats
    ffn_gate: Floats
    ffn_up: Floats
    ffn_down: Floats


@dataclass
class Model:
    """A GGUF model of the Llama architecture, dequantised to float32."""

    n_head: int
    n_head_kv: int
    n_embd_head: int
    eps: float
    rope_freqs: Floats
    """Angle of a rotation by one position, ``[n_rot/2]``."""
    token_embd: Floats
    output_norm: Floats
    output: Floats
    layers: list[Layer] = field(repr=False)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Model:
        """Read a GGUF file.

        Raises
        ------
        ValueError
            When the model is not of the plain Llama architecture.
        """
        reader = gguf.GGUFReader(path)
        meta = {name: f.contents() for name, f in reader.fields.items() if not name.startswith("tokenizer")}
        if meta["general.architecture"] != "llama":
            raise ValueError(f"architecture {meta['general.architecture']!r} is not supported: use 'llama'")
        if meta.get("llama.rope.scaling.type", "none") != "none":
            raise ValueError("RoPE scaling is not supported")

        weights = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}

        def weight(name: str) -> Floats:
            return np.asarray(weights[f"{name}.weight"], dtype=np.float32)

        unknown = {name.split(".", 2)[2] for name in weights if name.startswith("blk.")}
        unknown -= {f"{name}.weight" for name in Layer.__dataclass_fields__}
        if unknown:
            raise ValueError(f"tensors {sorted(unknown)} are not those of a plain Llama")

        n_head = meta["llama.attention.head_count"]
        n_embd_head = meta.get("llama.attention.key_length", meta["llama.embedding_length"] // n_head)
        n_rot = meta.get("llama.rope.dimension_count", n_embd_head)
        freqs = meta.get("llama.rope.freq_base", 10000.0) ** (-np.arange(0, n_rot, 2) / n_rot)
        if "rope_freqs.weight" in weights:
            freqs = freqs / weights["rope_freqs.weight"]
        return cls(
            n_head=n_head,
            n_head_kv=meta["llama.attention.head_count_kv"],
            n_embd_head=n_embd_head,
            eps=meta["llama.attention.layer_norm_rms_epsilon"],
            rope_freqs=freqs.astype(np.float32),
            token_embd=weight("token_embd"),
            output_norm=weight("output_norm"),
            output=weight("output" if "output.weight" in weights else "token_embd"),
            layers=[
                Layer(**{name: weight(f"blk.{i}.{name}") for name in Layer.__dataclass_fields__})
                for i in range(meta["llama.block_count"])
            ],
        )

    def norm(self, x: Floats, weight: Floats) -> Floats:
        res: Floats = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self.eps) * weight
        return res

    def rotate(self, x: Floats, pos: Ints | int) -> Floats:
        """RoPE as llama.cpp applies it to this architecture: dimensions 2i and 2i + 1 are a pair.

        x ``[n, heads, D]``, pos ``[n]`` or one position for all.
        """
        angle = np.multiply.outer(np.atleast_1d(pos).astype(np.float64), self.rope_freqs)
        cos = np.cos(angle).astype(np.float32)[:, None, :]
        sin = np.sin(angle).astype(np.float32)[:, None, :]
        n_rot = 2 * len(self.rope_freqs)
        res: Floats = x.copy()
        even, odd = x[..., 0:n_rot:2], x[..., 1:n_rot:2]
        res[..., 0:n_rot:2] = even * cos - odd * sin
        res[..., 1:n_rot:2] = even * sin + odd * cos
        return res


# -- the method ----------------------------------------------------------------------------------------


def softmax(x: Floats) -> Floats:
    """Along the last axis, in place."""
    x -= x.max(axis=-1, keepdims=True)
    np.exp(x, out=x)
    x /= x.sum(axis=-1, keepdims=True)
    return x


def best(scores: Floats, n: int) -> Ints:
    """Indices of the `n` highest scores along the last axis, best first."""
    return np.argsort(-scores, axis=-1, kind="stable")[..., :n]


@dataclass
class Slots:
    """Blocks in slots."""

    blocks: list[int]
    used: list[int]
    now: int

    @classmethod
    def first(cls, n: int) -> Slots:
        return cls(list(range(n)), list(range(n)), n)

    def place(self, selected: Sequence[int], n_block: int) -> None:
        """For a chunk: by what is selected alone, in the order of the text."""
        others = [block for block in reversed(range(n_block)) if block not in selected]
        self.blocks = sorted([*selected, *others[: len(self.blocks) - len(selected)]])
        self.used = [2 if block in selected else 1 for block in self.blocks]
        self.now = 3

    def update(self, selected: Sequence[int]) -> None:
        """For a single token: replaced least recently used first."""
        for block in selected:
            if block in self.blocks:
                self.used[self.blocks.index(block)] = self.now
        for block in selected:
            if block not in self.blocks:
                slot = min(range(len(self.blocks)), key=lambda s: self.used[s])
                self.now += 1
                self.blocks[slot] = block
                self.used[slot] = self.now
        self.now += 1


class Agreed:
    """Standard scores of the blocks for a chunk, added up over layers."""

    def __init__(self) -> None:
        self.sums = np.zeros((), np.float32)
        self.again = False
        """Whether a layer has no scores of its own, but selects what the layer before has selected."""

    def add(self, scores: Floats) -> None:
        """One more layer, ``[n_sub, n_block]``."""
        scores = scores - scores.mean(axis=1, keepdims=True)
        self.sums = self.sums + np.maximum(scores / scores.std(axis=1, keepdims=True), 0) ** 2


class LayerMemory:
    """Keys, values and blocks of one layer."""

    def __init__(self, model: Model, budget: Budget, switches: Switches, n_ctx: int) -> None:
        self.model, self.budget, self.switches = model, budget, switches
        self.k = np.empty((n_ctx, model.n_head_kv, model.n_embd_head), np.float32)  # without RoPE
        self.v = np.empty_like(self.k)
        self.q = np.empty((n_ctx, model.n_head, model.n_embd_head), np.float32)  # at true positions
        self.mass = np.zeros((model.n_head, n_ctx), np.float32)
        """Sum of the probabilities that the queries of its local window gave to each token."""
        self.reps: list[Floats] = []
        """Representative keys of each block for each query head, without RoPE, ``[n_repr, H, D]``."""
        self.n_repr = 1 if switches.parts == "one" else budget.n_repr
        self.n_slot = budget.topk if switches.attend == "topk" else budget.max_cached_blocks
        self.slots: Slots | None = None  # until blocks are left out
        self.mean: Floats | None = None  # of the first representative keys
        self.shift = 0  # blocks that the local window is moved back by, with position = "slots"

    def n_cells(self) -> int:
        b = self.budget
        ring = -(-(b.n_local + b.block_size + b.chunk) // b.block_size) * b.block_size
        return b.n_init + self.n_slot * b.block_size + ring

    def block_pos(self, block: int) -> int:
        return self.budget.n_init + block * self.budget.block_size

    def representative_scores(self, p0: int, p1: int) -> Floats:
        """How representative the tokens ``[p0, p1)`` of a block are, ``[H, p1 - p0]``."""
        if self.switches.scores == "softmax":
            return self.mass[:, p0:p1]
        n_local = self.budget.n_local
        k = self.group_repeat(self.model.rotate(self.k[p0:p1], np.arange(p0, p1)))
        if self.switches.followers == "blocks":
            q_sum = self.q[p1 : p1 + n_local].sum(axis=0, keepdims=True)
        else:
            total = np.cumsum(self.q[p0 + 1 : p1 + n_local], axis=0, dtype=np.float64)
            total = np.concatenate([np.zeros_like(total[:1]), total])
            q_sum = (total[n_local:] - total[: p1 - p0]).astype(np.float32)
        res: Floats = (k * q_sum).sum(axis=-1).T
        return res

    def group_repeat(self, x: Floats) -> Floats:
        """From KV heads to the query heads that share them, ``[n, G, D]`` to ``[n, H, D]``."""
        return np.repeat(x, self.model.n_head // self.model.n_head_kv, axis=1)

    def add_blocks(self, p0: int) -> None:
        """Make blocks of all that lies wholly before the local window of position `p0`."""
        b = self.budget
        while self.block_pos(len(self.reps) + 1) <= p0 - b.n_local:
            start = self.block_pos(len(self.reps))
            end = start + b.block_size
            scores = self.representative_scores(start, end)
            if self.switches.heads == "kv":
                groups = scores.reshape(self.model.n_head_kv, -1, b.block_size)
                scores = np.repeat(groups.sum(axis=1), groups.shape[1], axis=0)
            n_part = b.block_size // self.n_repr
            parts = scores.reshape(len(scores), self.n_repr, n_part).swapaxes(0, 1)
            tokens = best(parts, b.repr_topk)  # [n_repr, H, repr_topk]
            k = self.group_repeat(self.k[start:end]).reshape(self.n_repr, n_part, len(scores), -1)
            part, head = np.ogrid[: self.n_repr, : len(scores)]
            self.reps.append(k[part[..., None], tokens, head[..., None]].mean(axis=2))

    def block_scores(self, q: Floats) -> Floats:
        """Relevance of every block to the queries of a chunk ``[T, H, D]``, without RoPE."""
        q = self.model.rotate(q, self.budget.n_local)
        n = self.budget.n_score if self.switches.query == "best" else len(q)
        # sub-chunks are counted from the end
        means = [q[max(0, end - n) : end].mean(axis=0) for end in range(len(q), 0, -n)]
        reps = np.stack(self.reps).reshape(len(self.reps), self.n_repr, -1)
        res: Floats = (reps @ np.stack(means).reshape(len(means), -1).T).max(axis=(1, 2))
        return res

    def context_scores(self, p0: int, p1: int) -> Floats:
        """How much every block is like the context of a chunk, ``[n_sub, n_block]``."""
        group = self.model.n_head // self.model.n_head_kv
        reps = np.stack(self.reps)[:, :, ::group]  # [n_block, n_repr, G, D]
        if self.mean is None:
            self.mean = reps.mean(axis=(0, 1))
        reps = reps - self.mean
        reps = reps / np.sqrt((reps**2).sum(axis=(2, 3), keepdims=True))
        lengths = {self.budget.n_score}
        if self.switches.lengths == "two" and p1 - p0 <= 2 * self.budget.n_score:
            lengths.add(min(self.budget.n_score, 2 * self.budget.block_size // self.n_repr))
        spans = [(end - n, end) for n in lengths for end in range(p1, p0, -n)]
        means = np.stack([self.k[start:end].mean(axis=0) - self.mean for start, end in spans])
        scores: Floats = np.einsum("sgd,brgd->sbr", means, reps, optimize=True)
        res: Floats = scores.max(axis=-1)
        if self.switches.after == "last" and self.n_repr > 1:
            res[:, 1:] = np.maximum(res[:, 1:], scores[:, :-1, -1])
        return res

    def choose(self, q: Floats, p0: int, agreed: Agreed) -> tuple[list[int], Floats | None]:
        """Blocks to attend, and the scores if there was a choice."""
        b, n_block = self.budget, len(self.reps)
        p1 = p0 + len(q)
        if self.switches.attend == "topk":
            selects = n_block > b.topk
        else:
            selects = p1 > self.n_cells()
        if not selects:
            return list(range(n_block)), None

        if self.switches.search == "queries":
            scores = self.block_scores(q)
        elif self.switches.agree == "layer":
            scores = self.context_scores(p0, p1).max(axis=0)
        else:
            if not agreed.again:
                agreed.add(self.context_scores(p0, p1))
            scores = agreed.sums.max(axis=0)
        selected = best(scores, b.topk).tolist()
        if self.slots is None:
            self.slots = Slots.first(self.n_slot)
        if p1 - p0 > 1:
            self.slots.place(selected, n_block)
        else:
            self.slots.update(selected)
        if p1 - p0 > 1 or p1 - self.shift * b.block_size > self.n_cells():
            self.shift = n_block - self.n_slot
        return selected, scores

    def attend(
        self, q: Floats, k: Floats, v: Floats, p0: int, agreed: Agreed
    ) -> tuple[Floats, tuple[list[int], Floats | None]]:
        """Attention of a chunk, and what `choose` returned.

        q ``[T, H, D]``, k and v ``[T, G, D]``, all without RoPE; `agreed` is of the layers before. The result
        is ``[T, H*D]``.
        """
        model, b = self.model, self.budget
        p1 = p0 + len(q)
        q_pos = np.arange(p0, p1)
        self.k[p0:p1], self.v[p0:p1] = k, v
        self.q[p0:p1] = q_true = model.rotate(q, q_pos)

        self.add_blocks(p0)
        selected, scores = self.choose(q, p0, agreed)
        resident = selected if self.slots is None else self.slots.blocks

        # attended tokens, and the positions of their keys: init tokens, blocks, all that is in no block yet
        start = [np.arange(min(b.n_init, p1))]
        blocks = [self.block_pos(block) + np.arange(b.block_size) for block in resident]
        window = np.arange(min(self.block_pos(len(self.reps)), p1), p1)
        tokens = np.concatenate([*start, *blocks, window])
        k_pos = tokens
        if self.switches.position == "slots" and self.slots is not None:
            in_slots = self.block_pos(0) + np.arange(len(resident) * b.block_size)
            k_pos = np.concatenate([*start, in_slots, window - self.shift * b.block_size])
            q_true = model.rotate(q, q_pos - self.shift * b.block_size)

        distance = q_pos[:, None] - tokens  # [T, N]
        local = (distance >= 0) & (distance < b.n_local)
        keys = self.k[tokens]
        n_twice = 0
        if self.switches.window == "twice" and self.switches.position == "paper":
            n_twice = max(0, p1 - b.n_local - int(window[0]))
        twice = slice(len(tokens) - len(window), len(tokens) - len(window) + n_twice)

        out = np.empty_like(q)
        q_far = model.rotate(q, b.n_local) if self.switches.position == "paper" else q_true
        k_true = model.rotate(keys, k_pos)
        n_group = model.n_head // model.n_head_kv
        for g in range(model.n_head_kv):
            heads = slice(g * n_group, (g + 1) * n_group)
            logits = q_true[:, heads].transpose(1, 0, 2) @ k_true[:, g].T  # [H/G, T, N]
            if self.switches.position == "paper" and p1 > b.n_local:
                far = q_far[:, heads].transpose(1, 0, 2) @ keys[:, g].T
                again = np.where(local[:, twice], far[..., twice], -np.inf)
                logits = np.concatenate([np.where(local, logits, far), again], axis=-1)
            logits *= np.float32(model.n_embd_head**-0.5)
            logits[..., : len(tokens)][:, distance < 0] = -np.inf
            p = softmax(logits)
            out[:, heads] = (p[..., : len(tokens)] @ self.v[tokens, g]).transpose(1, 0, 2)
            if n_twice > 0:
                out[:, heads] += (p[..., len(tokens) :] @ self.v[tokens[twice], g]).transpose(1, 0, 2)
                p = p[..., : len(tokens)]
            if self.switches.scores == "softmax":
                self.mass[heads, tokens] += np.einsum("htn,tn->hn", p, local.astype(np.float32))
        return out.reshape(len(q), -1), (selected, scores)


class Reference:
    """A model with the memory of one sequence.

    Attributes
    ----------
    selections : list of Selection
        All selections made so far, of chunks for which some block was left out.
    """

    def __init__(self, model: Model, budget: Budget, switches: Switches, n_ctx: int) -> None:
        self.model, self.budget = model, budget
        self.memory = [LayerMemory(model, budget, switches, n_ctx) for _ in model.layers]
        self.n_tokens = 0
        self.selections: list[Selection] = []

    def eval(self, tokens: Sequence[int]) -> Floats:
        """Append tokens, in chunks; returns logits ``[len(tokens), n_vocab]``."""
        chunk = self.budget.chunk
        return np.concatenate([self._chunk(tokens[i : i + chunk]) for i in range(0, len(tokens), chunk)])

    def _chunk(self, tokens: Sequence[int]) -> Floats:
        model, p0 = self.model, self.n_tokens

        def heads(x: Floats) -> Floats:
            return x.reshape(len(tokens), -1, model.n_embd_head)

        agreed = Agreed()
        x = model.token_embd[np.asarray(tokens)]
        for il, (layer, memory) in enumerate(zip(model.layers, self.memory, strict=True)):
            h = model.norm(x, layer.attn_norm)
            q, k, v = (heads(h @ w.T) for w in (layer.attn_q, layer.attn_k, layer.attn_v))
            agreed.again = il % 3 != 0
            attended, (selected, scores) = memory.attend(q, k, v, p0, agreed)
            if scores is not None:
                self.selections.append(Selection(il, p0, tuple(selected), scores))
            x = x + attended @ layer.attn_output.T

            h = model.norm(x, layer.ffn_norm)
            gate = h @ layer.ffn_gate.T
            x = x + (gate / (1 + np.exp(-gate)) * (h @ layer.ffn_up.T)) @ layer.ffn_down.T

        self.n_tokens += len(tokens)
        res: Floats = model.norm(x, model.output_norm) @ model.output.T
        return res
