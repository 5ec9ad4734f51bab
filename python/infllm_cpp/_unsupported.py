"""Parameters of llama-cpp-python's `Llama` that this one has not, and what to do instead."""

from __future__ import annotations

from typing import Any

# name: values that mean the same as leaving it out, and a reason to leave it out
_PARAMETERS: dict[str, tuple[tuple[Any, ...], str]] = {
    "chat_format": ((None,), "chats have the template in the GGUF, or the Jinja template chat_template"),
    "chat_handler": ((None,), "chats have the template in the GGUF, or the Jinja template chat_template"),
    "draft_model": ((None,), "tokens are drawn one by one"),
    "last_n_tokens_size": ((64,), "penalties count the last 64 tokens"),
    "logits_all": ((False,), "eval(tokens, all_logits=True) returns them, and logprobs need nothing"),
    "lora_base": ((None,), "lora_path is applied to the model as it is"),
    "no_perf": ((False, True), "timings of answers are always measured"),
    "numa": ((False, 0), "start the program by numactl"),
    "op_offload": ((None, True), "what a device can compute of a batch is its own"),
    "spm_infill": ((False,), "suffix comes after the prompt, in the order prefix, suffix, middle"),
    "swa_full": ((None, False), "sliding windows keep what they need, as in llama.cpp's own programs"),
    "tokenizer": ((None,), "the vocabulary in the GGUF is used; give tokens in place of a text"),
    "vocab_only": ((False,), "a model without weights computes nothing"),
}


def refuse_unsupported(options: dict[str, Any]) -> None:
    """TypeError for the first parameter that `Llama` does not have, unless it is at its default."""
    for name, value in options.items():
        if name not in _PARAMETERS:
            raise TypeError(f"Llama() has no parameter {name!r}: see help(infllm_cpp.Llama)")
        accepted, reason = _PARAMETERS[name]
        if not any(value is x or (type(value) is type(x) and value == x) for x in accepted):
            raise TypeError(f"{name} = {value!r} is not supported: {reason}")
