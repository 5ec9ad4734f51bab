"""The part of `Llama` that knows the model: its sizes, its tokens, its chat template."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from . import _core, chat
from ._sessions import SessionOwner
from ._sizes import kv_bytes_per_token
from ._tokens import as_tokens
from .chat import ToolChoice
from .config import InfLLMConfig
from .types import ChatMessage, ChatTool


class ModelOwner(SessionOwner):
    """What a model is, and texts as its tokens."""

    chat_template: str | None
    parse_special: bool
    _templates: tuple[str, _core.ChatTemplates] | None = None  # of a Jinja source, "": the model's own

    @property
    def metadata(self) -> dict[str, str]:
        """Metadata of the GGUF, without arrays."""
        return self._model.meta()

    @property
    def infllm(self) -> InfLLMConfig | None:
        """Parameters of the InfLLM memory with the automatic values filled in; None without it."""
        params = self._ctx.infllm_params()
        return None if params is None else InfLLMConfig._from_params(params)

    def n_ctx(self) -> int:
        """Tokens that the context can hold."""
        return self._n_ctx

    def n_ctx_train(self) -> int:
        """Tokens that the model was trained for."""
        return self._model.n_ctx_train()

    def n_vocab(self) -> int:
        """Tokens of the vocabulary."""
        return self._model.n_vocab()

    def n_embd(self) -> int:
        """Size of an embedding."""
        return self._model.n_embd()

    def kv_bytes_per_token(self) -> float:
        """Bytes of K and V of one token in all layers."""
        return kv_bytes_per_token(self._model, *self._kv_types)

    def token_bos(self) -> int:
        """Token that begins a text; -1 if there is none."""
        return self._model.token_bos()

    def token_eos(self) -> int:
        """Token that ends a text; -1 if there is none."""
        return self._model.token_eos()

    def token_nl(self) -> int:
        """Token of a new line; -1 if there is none."""
        return self._model.token_nl()

    def tokenize(self, text: str | bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """Split a text into tokens.

        Parameters
        ----------
        text : str or bytes
            Bytes are taken to be UTF-8.
        add_bos : bool
            Begin with the BOS token, for models that want one.
        special : bool
            Read the names of special tokens in the text as these tokens.

        Returns
        -------
        list of int
        """
        if not isinstance(text, (str, bytes)):
            raise TypeError(f"text = {text!r} is neither a str nor bytes")
        data = text.encode("utf-8", errors="replace") if isinstance(text, str) else text
        return self._model.tokenize(data, add_bos, special)

    def detokenize(self, tokens: Sequence[int], special: bool = False) -> bytes:
        """Text of tokens, as UTF-8 bytes: a token may be part of a character.

        Parameters
        ----------
        tokens : sequence of int
        special : bool
            Write the names of special tokens too.

        Raises
        ------
        TypeError
            When a token is not an integer.
        ValueError
            When a token is not in the vocabulary.
        """
        return self._model.detokenize(as_tokens(tokens, self._model.n_vocab()), False, special)

    def chat_prompt(
        self,
        messages: Sequence[ChatMessage],
        add_generation_prompt: bool = True,
        *,
        tools: Sequence[ChatTool] | None = None,
        tool_choice: ToolChoice | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt that the chat template makes of `messages`, as text.

        BOS, which the model adds by itself, is not part of it. Parameters: see `create_chat_completion`.
        """
        prompt = self._render(
            messages,
            add_generation_prompt=add_generation_prompt,
            tools=tools,
            tool_choice=tool_choice,
            chat_template_kwargs=chat_template_kwargs,
        )
        return prompt.text()

    def chat_tokens(
        self,
        messages: Sequence[ChatMessage],
        add_generation_prompt: bool = True,
        *,
        tools: Sequence[ChatTool] | None = None,
        tool_choice: ToolChoice | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Tokens of `chat_prompt`.

        Only the template's own text becomes special tokens, unless `parse_special`: what messages contain is
        text, whatever it looks like. BOS is added if the model wants one and the template has none.
        """
        prompt = self._render(
            messages,
            add_generation_prompt=add_generation_prompt,
            tools=tools,
            tool_choice=tool_choice,
            chat_template_kwargs=chat_template_kwargs,
        )
        return prompt.tokenize(self._model, self.parse_special)

    def _render(self, messages: Sequence[ChatMessage], **options: Any) -> _core.ChatPrompt:
        request = chat.request(messages, **options)
        source = self.chat_template or ""
        if self._templates is None or self._templates[0] != source:
            self._templates = source, _core.ChatTemplates(self._model, source)
        templates = self._templates[1]
        if not templates.is_explicit():
            warnings.warn(
                "the model has no chat template: ChatML is used, which it may not know", stacklevel=3
            )
        if options.get("tools") and not templates.has_tools():
            raise ValueError(
                "tools are given, and the model's chat template has no place for them: "
                "use a model that was trained for tools, or give a chat_template that has one"
            )
        return templates.apply(request)
