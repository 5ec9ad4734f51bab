"""Contexts far longer than device memory and than the training length, for any GGUF model.

llama.cpp with the InfLLM memory (Xiao et al. 2024, arXiv 2402.04617):

>>> from infllm_cpp import InfLLMConfig, Llama, fetch_demo_model
>>> llm = Llama(fetch_demo_model(), n_ctx=32768, infllm=InfLLMConfig(topk=16))
>>> llm("The capital of France is", max_tokens=8, temperature=0)["choices"][0]["text"]
"""

import os
import sys
from pathlib import Path

if sys.platform == "win32":  # elsewhere the extension knows where its libraries are
    os.add_dll_directory(str(Path(__file__).parent / "lib"))

try:
    from . import _core
except ImportError as err:  # libcuda.so.1, for example, comes with the driver
    raise ImportError(
        f"infllm_cpp cannot load a library that it was built with ({err}): "
        "install the driver of your device, or infllm-cpp without support for it"
    ) from None
from ._core import (
    DeviceInfo,
    DeviceLostError,
    TraceEvent,
    __version__,
    llama_version,
    local_devices,
    system_info,
)
from .async_llama import AsyncLlama
from .config import InfLLMConfig, InfLLMStats
from .grammar import LlamaGrammar
from .llama import Llama, LlamaState
from .models import fetch as fetch_demo_model


def library_dir() -> Path:
    """Where libllama is, with the method in it, for programs that load it themselves.

    llama-cpp-python takes it from the environment variable ``LLAMA_CPP_LIB_PATH``; ``LLAMA_INFLLM`` turns the
    method on there, see ``include/llama-infllm.h`` beside it.
    """
    return Path(_core.__file__).parent / "lib"


__all__ = [
    "AsyncLlama",
    "DeviceInfo",
    "DeviceLostError",
    "InfLLMConfig",
    "InfLLMStats",
    "Llama",
    "LlamaGrammar",
    "LlamaState",
    "TraceEvent",
    "__version__",
    "fetch_demo_model",
    "library_dir",
    "llama_version",
    "local_devices",
    "system_info",
]
