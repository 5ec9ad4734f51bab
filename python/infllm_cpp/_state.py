"""States: all that a `Llama` has stored, as an object in memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from . import _core
from ._sessions import SessionNotes, SessionOwner


@dataclass(frozen=True)
class LlamaState:
    """What `Llama.save_state` returns: the stored tokens, and the bytes of K and V, of this machine.

    It can be pickled. Names are those of llama-cpp-python, without its `scores`: logits are not kept.
    """

    input_ids: npt.NDArray[np.intc]
    n_tokens: int
    llama_state: bytes
    llama_state_size: int
    seed: int
    notes: SessionNotes
    """What a `Llama` is compared with, and what it keeps beside K and V."""

    def __repr__(self) -> str:
        return f"LlamaState(n_tokens={self.n_tokens}, llama_state_size={self.llama_state_size})"


class StateOwner(SessionOwner):
    """The part of `Llama` that copies what it has stored into an object, and back."""

    def save_state(self) -> LlamaState:
        """All that is stored, as an object in memory, which stays as it is.

        With the InfLLM memory all blocks are copied into it; `fork` shares them instead, and `save_session`
        writes them to a file.

        Returns
        -------
        LlamaState

        Raises
        ------
        MemoryError
            When there is no memory for the copy.
        """
        with self._computing():
            self._check_for_text()
            data = self._ctx.get_state()
            return LlamaState(
                input_ids=np.array(self._tokens, dtype=np.intc),
                n_tokens=len(self._tokens),
                llama_state=data,
                llama_state_size=len(data),
                seed=self._seed,
                notes=self._notes(None),
            )

    def load_state(self, state: LlamaState) -> None:
        """Become what was saved by `save_state`: the next tokens are those that would have followed there.

        Parameters
        ----------
        state : LlamaState
            Of this object, or of another one of the same model and parameters.

        Raises
        ------
        TypeError
            When `state` is something else.
        ValueError
            When it is damaged, or of another model, or of other parameters that matter: the sentence says
            which. Then nothing has changed.
        """
        if not isinstance(state, LlamaState):
            raise TypeError(f"state = {state!r} is not what save_state() returns")
        with self._changing():
            self._check_for_text()
            tokens = state.input_ids.tolist()
            self._check_notes("the state", state.notes, tokens)
            self._check_fits(state)
            self._replace(tokens, state.notes, lambda ctx: self._load_into(ctx, state))
            self._seed = state.seed

    def _check_fits(self, state: LlamaState) -> None:
        if state.n_tokens != len(state.input_ids):
            raise ValueError(
                f"the state is damaged: n_tokens = {state.n_tokens}, but it has {len(state.input_ids)}"
            )
        if state.n_tokens > self._n_ctx:
            raise ValueError(
                f"the state has {state.n_tokens} tokens, more than n_ctx = {self._n_ctx}: use a larger n_ctx"
            )
        mine, its = self._notes(None), state.notes
        if bool(mine.config) != bool(its.config):
            names = ("without the InfLLM memory", "with the InfLLM memory")
            raise ValueError(
                f"the state was saved {names[bool(its.config)]}, this Llama is {names[bool(mine.config)]}"
            )
        # with the InfLLM memory the context itself looks at what matters
        if not mine.config:
            for name, a, b in (
                ("type_k, type_v", its.types, mine.types),
                *((name, its.rope.get(name), mine.rope.get(name)) for name in {**its.rope, **mine.rope}),
            ):
                if a != b:
                    raise ValueError(f"{name}: {a} in the state, {b} in this Llama")

    def _load_into(self, ctx: _core.Context, state: LlamaState) -> None:
        """Into a context, which is as it was when that fails."""
        if state.n_tokens == 0:
            ctx.clear()
            return
        # without the InfLLM memory a state that does not fit leaves nothing
        before = ctx.get_state() if not state.notes.config and ctx.n_past() else None
        why = ctx.set_state(state.llama_state)
        if not why and ctx.n_past() == state.n_tokens:
            return
        if before is not None:
            ctx.set_state(before)
        elif not why or ctx.n_past() != len(self._tokens):
            ctx.clear()
        if not why:
            why = f"the state is damaged: it has not {state.n_tokens} tokens"
        raise ValueError(why if why.startswith("the state") else f"the state cannot be loaded: {why}")
