"""A pytest plugin for llama.cpp's server tests: a model at hand in place of those that they download.

Loaded by upstream_server_tests.py, in the folder of these tests.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import utils  # type: ignore[import-not-found] # upstream's

MODEL = os.environ["INFLLM_SERVER_MODEL"]
UBATCH = int(os.environ["INFLLM_SERVER_UBATCH"]) or None
OURS = ("tinyllama2", "tinyllama_infill", "router")
"""Presets of a small Llama, which any model of text can stand for."""


def with_model(make: Any) -> Any:
    def made() -> Any:
        server = make()
        if server.model_hf_repo:
            server.model_hf_repo = None
            server.model_file = MODEL
            server.n_ubatch = server.n_ubatch or UBATCH
        return server

    return made


def without_model(name: str) -> Any:
    def made() -> Any:
        pytest.skip(f"needs the model of the preset {name}", allow_module_level=True)

    return made


def no_download(url: str, *args: Any, **kwargs: Any) -> str:
    pytest.skip(f"downloads {url}", allow_module_level=True)
    return ""


for name, method in list(vars(utils.ServerPreset).items()):
    if name == "load_all":
        utils.ServerPreset.load_all = staticmethod(lambda: None)
    elif isinstance(method, staticmethod):
        changed = with_model(method.__func__) if name in OURS else without_model(name)
        setattr(utils.ServerPreset, name, staticmethod(changed))
utils.download_file = no_download
