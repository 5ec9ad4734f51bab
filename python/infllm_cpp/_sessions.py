"""Session files: what a `Llama` keeps in them beside tokens and blocks."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import _core
from ._checkpoints import Checkpoints
from ._generation import Generator
from ._model_changes import ModelChanges, file_id
from ._reading import N_ANSWER, ProgressCallback
from ._rope import RopeOptions
from ._stored import StoredTokens, n_common
from .config import PARTS, InfLLMConfig

if TYPE_CHECKING:
    from ._library import SessionLibrary

_KINDS = {
    "model_path": str,
    "model_name": str,
    "model_id": str,
    "n_ctx": int,
    "config": dict,
    "types": list,
    "asked": dict,
    "texts": list,
    "rope": dict,
}  # of what is in a session's notes, which may come from anywhere
_N_WORTH = 256  # tokens: a session is loaded for a prompt if it saves reading so many


@dataclass
class SessionNotes:
    """What a session file holds for this package, as JSON, with the checkpoints' bytes behind it."""

    model_path: str
    model_name: str
    model_id: str
    n_ctx: int
    config: dict[str, Any]
    types: list[str]  # of K and V
    asked: dict[str, Any]  # parameters that were given: names of `Llama`, and those of InfLLMConfig
    texts: list[list[int]]
    changes: ModelChanges = field(default_factory=ModelChanges)
    rope: dict[str, float] = field(default_factory=dict)  # parameters that were given
    data: Any = None
    checkpoints: dict[int, bytes] = field(default_factory=dict)

    def encode(self) -> bytes:
        """As bytes.

        Raises
        ------
        TypeError
            When `data` has something that JSON cannot hold.
        """
        values = asdict(self)
        values["checkpoints"] = [[n, len(state)] for n, state in self.checkpoints.items()]
        text = json.dumps(values).encode()
        return len(text).to_bytes(8, "little") + text + b"".join(self.checkpoints.values())

    @classmethod
    def decode(cls, data: bytes) -> SessionNotes:
        """What `encode` made; ValueError where it is something else."""
        try:
            begin = 8 + int.from_bytes(data[:8], "little")
            values = json.loads(data[8:begin])
            checkpoints = {}
            for n, size in values["checkpoints"]:
                checkpoints[int(n)] = data[begin : begin + size]
                begin += size
            values["checkpoints"] = checkpoints
            values["changes"] = ModelChanges(**values["changes"])
            notes = cls(**values)
            if not notes._is_sound():
                raise ValueError("values of a wrong type")
            return notes
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as err:
            raise ValueError(
                "the session was not saved by this package, or by another version of it"
            ) from err

    def _is_sound(self) -> bool:
        """Whether everything is of its type, and within its limits."""
        return (
            all(isinstance(getattr(self, name), kind) for name, kind in _KINDS.items())
            and 0 < self.n_ctx < 2**31
            and len(self.types) == 2
            and all(isinstance(name, str) for name in self.types)
            and all(isinstance(text, list) and len(text) >= 2 for text in self.texts)
            and all(isinstance(n, int) for text in self.texts for n in text)
            and (not self.config or all(name in self.config for name in PARTS))
        )


def open_session(path: str | os.PathLike[str]) -> tuple[_core.Session, SessionNotes]:
    """Open a session file.

    Raises
    ------
    FileNotFoundError, IsADirectoryError, PermissionError
        When it cannot be read.
    ValueError
        When it is not a session file, or is damaged.
    """
    path = os.path.expanduser(os.fspath(path))
    with open(path, "rb"):
        pass  # or the exception that belongs to it
    session = _core.Session(path)
    try:
        return session, SessionNotes.decode(session.data())
    except ValueError as err:
        raise ValueError(f"{path}: {err}") from err


def check_output(llm: Generator, path: Path) -> None:
    """Raise what saving to `path` would raise, before there is anything to lose."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} is no folder: make it, or save elsewhere")
    _config(llm)


def session_config(path: str | os.PathLike[str], config: InfLLMConfig) -> InfLLMConfig:
    """`config`, divided as in a session where it leaves that open: memory may have been otherwise then."""
    if config.budget != "auto" or config._is_divided():
        return config
    _, notes = open_session(path)
    try:
        return replace(config, **{name: notes.config[name] for name in PARTS})
    except (KeyError, TypeError, ValueError) as err:
        raise ValueError(f"{path} is damaged: {err}") from err


def _config(llm: Generator) -> InfLLMConfig:
    """The parameters of the InfLLM memory; ValueError without it."""
    params = llm._ctx.infllm_params()
    if params is None:
        raise ValueError("infllm = None: sessions need the InfLLM memory")
    return InfLLMConfig._from_params(params)


class SessionOwner(Generator):
    """The part of `Llama` that saves and loads its context."""

    model_path: str
    _kv_types: tuple[Any, Any]
    _asked: dict[str, Any]
    _changes: ModelChanges
    _rope: RopeOptions
    _library: SessionLibrary | None
    _model_id: str | None = None

    def save_session(self, path: str | os.PathLike[str], data: Any = None) -> None:
        """Save the stored tokens, with K and V, to a file.

        Saving again to the same file, or to the one that was loaded, writes only the blocks that are new, and
        the resident buffer, if no other context has it loaded. Such a context keeps what it has. What the
        file held is there until all of the new is: a crash leaves one of both.

        Parameters
        ----------
        path : str or os.PathLike
        data : object
            Anything that JSON can hold, which `load_session` returns.

        Raises
        ------
        ValueError
            Without the InfLLM memory.
        TypeError
            When `data` has something that JSON cannot hold.
        OSError
            When the file cannot be written; then nothing has changed.
        """
        with self._computing():
            _config(self)
            notes = self._notes(data).encode()
            self._ctx.save_session(os.path.expanduser(os.fspath(path)), self._tokens, notes)

    def _notes(self, data: Any) -> SessionNotes:
        """What is kept beside K and V; without the InfLLM memory there is no `config`."""
        params = self._ctx.infllm_params()
        return SessionNotes(
            model_path=os.path.abspath(self.model_path),
            model_name=self._model.meta().get("general.name", Path(self.model_path).name),
            model_id=self._get_model_id(),
            n_ctx=self._ctx.n_ctx(),
            config=asdict(InfLLMConfig._from_params(params)) if params else {},
            types=list(self._kv_types),
            asked=self._asked,
            changes=self._changes,
            rope=self._rope.changes(),
            texts=self._stored.texts(),
            data=data,
            checkpoints=self._checkpoints.states(),
        )

    def load_session(self, path: str | os.PathLike[str], verify: bool = False) -> Any:
        """Become what was saved by `save_session`: the next tokens are those that would have followed there.

        Blocks stay in the file and are read when they are selected, so that this is a matter of moments
        however long the context is. The file must not be cut off meanwhile, as a model's must not.

        Parameters
        ----------
        path : str or os.PathLike
        verify : bool
            Read all blocks first, to see that none is damaged. Otherwise a damaged block goes unnoticed; the
            tokens and the resident buffer are always checked.

        Returns
        -------
        object
            The `data` that was saved.

        Raises
        ------
        FileNotFoundError, IsADirectoryError, PermissionError
            When the file cannot be read.
        ValueError
            When it is not a session, is damaged, or was saved with another model or with other parameters
            that matter: the sentence says which. Then nothing has changed.
        """
        session, notes = open_session(path)
        if verify:
            session.verify()
        self._become(path, session, notes)
        return notes.data

    def _become(self, path: str | os.PathLike[str], session: _core.Session, notes: SessionNotes) -> None:
        with self._changing():
            self._load(path, session, notes)

    def _load(self, path: str | os.PathLike[str], session: _core.Session, notes: SessionNotes) -> None:
        """Load a session that is open."""
        name = os.fspath(path)
        tokens = session.tokens()
        self._check_notes(name, notes, tokens)
        try:
            self._replace(tokens, notes, lambda ctx: ctx.load_session(session))
        except ValueError as err:
            raise ValueError(f"{name}: {err}") from err

    def _check_notes(self, name: str, notes: SessionNotes, tokens: list[int]) -> None:
        """ValueError where `name`, a session or a state, is of another model."""
        if notes.model_id != self._get_model_id():
            raise ValueError(f"{name} was saved with another model, {notes.model_name}: {notes.model_path}")
        if notes.changes != self._changes:
            raise ValueError(f"{name} was saved {notes.changes}, this Llama is {self._changes}")
        if tokens and not 0 <= min(tokens) <= max(tokens) < self._model.n_vocab():
            raise ValueError(f"{name} is damaged: it has tokens that the model has not")

    def _replace(self, tokens: list[int], notes: SessionNotes, load: Callable[[_core.Context], None]) -> None:
        """Load `tokens` into the context, or one of the notes' kind where it follows the text."""
        following = self._following
        size = following.size if following else 0
        kind = following.kind(len(tokens), notes.n_ctx) if following else 0
        ctx = following.resize(min(kind, self._n_ctx), shrink=True) if following else None
        try:
            load(ctx or self._ctx)
        except BaseException:
            if following:
                following.size = size
            raise
        old = self._take(ctx) if ctx else None
        self._restore_notes(tokens, notes)
        if old:
            old.interrupt_check()  # the new one does not know

    def _restore_notes(self, tokens: list[int], notes: SessionNotes) -> None:
        """What the tokens, which are in the context now, were read as."""
        self._has_logits = False
        self._stored = StoredTokens.of(tokens, notes.texts)
        self._checkpoints = Checkpoints.of(notes.checkpoints)

    def _get_model_id(self) -> str:
        if self._model_id is None:
            self._model_id = file_id(self.model_path)
        return self._model_id

    def _prefill(self, tokens: list[int], progress: ProgressCallback | None) -> int:
        if self._library is not None:
            self._take_longest(self._library, tokens)
        return super()._prefill(tokens, progress)

    def _take_longest(self, library: SessionLibrary, tokens: list[int]) -> None:
        """Load the session that has more of a prompt than what is stored, if there is one."""
        following = self._following
        kind = following.kind(min(len(tokens) + N_ANSWER, self._n_ctx)) if following else 0
        # what is in a context of another size than the prompt will have is of no use for it
        n_stored = n_common(self._tokens, tokens) if not following or following.size == kind else 0

        def fits(n_tokens: int, n_ctx: int) -> bool:
            return not following or following.kind(n_tokens, n_ctx) == kind

        while True:
            path, n = library.longest(tokens, (self._get_model_id(), self._changes), fits)
            if path is None or n < n_stored + _N_WORTH:
                return
            try:
                self._load(path, *open_session(path))
                return
            except InterruptedError:
                raise
            except (OSError, ValueError, MemoryError) as err:
                library.leave_out(path)
                warnings.warn(f"a session that begins as the prompt is not used: {err}", stacklevel=2)
