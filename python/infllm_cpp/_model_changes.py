"""What makes another model of a GGUF file: an adapter, and other metadata."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ._loading import check_range
from .models import check_gguf

_N_PIECES, _PIECE = 16, 1 << 16  # of a file that are looked at

MetadataValue = bool | int | float | str


def file_id(path: str | os.PathLike[str]) -> str:
    """A digest of parts of a file with weights: other weights, another digest."""
    size = os.path.getsize(path)
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        for i in range(_N_PIECES):
            file.seek(i * max(size - _PIECE, 0) // (_N_PIECES - 1))
            digest.update(file.read(_PIECE))
    return digest.hexdigest()


@dataclass(frozen=True)
class ModelChanges:
    """Such changes are equal where K and V are: adapters by what is in them, wherever their files are."""

    lora_id: str = ""  # "": no adapter
    lora_scale: float = 1.0
    lora_path: str = field(default="", compare=False)
    kv_overrides: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def check(
        cls,
        lora_path: str | os.PathLike[str] | None,
        lora_scale: float,
        kv_overrides: Mapping[str, MetadataValue] | None,
    ) -> ModelChanges:
        """The changes that parameters of `Llama` ask for.

        Raises
        ------
        FileNotFoundError, IsADirectoryError, PermissionError, ValueError
            When `lora_path` cannot be read, or is no GGUF file.
        TypeError, ValueError
            When a parameter is of a wrong type or out of range, or `lora_scale` is given alone.
        """
        check_range("lora_scale", lora_scale, -1e6, 1e6)
        path, lora_id = "", ""
        if lora_path is None:
            if lora_scale != 1:
                raise ValueError(f"lora_scale = {lora_scale} has no effect without lora_path: leave it out")
        elif not isinstance(lora_path, (str, os.PathLike)):
            raise TypeError(f"lora_path = {lora_path!r} is neither a str nor a path")
        else:
            path = os.path.expanduser(os.fspath(lora_path))
            check_gguf(path, "lora_path =")
            lora_id = file_id(path)
        return cls(lora_id, float(lora_scale), path, _check_overrides(kv_overrides))

    def __str__(self) -> str:
        """Said of a model: "it was saved *with ...*"."""
        adapter = f"lora_path = {self.lora_path!r}, lora_scale = {self.lora_scale}" if self.lora_id else ""
        overrides = f"kv_overrides = {self.kv_overrides}" if self.kv_overrides else ""
        given = " and ".join(filter(None, [adapter, overrides]))
        return f"with {given}" if given else "without lora_path and kv_overrides"


def _check_overrides(overrides: Mapping[str, MetadataValue] | None) -> dict[str, MetadataValue]:
    if overrides is None:
        return {}
    if not isinstance(overrides, Mapping):
        raise TypeError(f"kv_overrides = {overrides!r} is not a dict")
    for key, value in overrides.items():
        if not isinstance(key, str) or not isinstance(value, (bool, int, float, str)):
            raise TypeError(
                f"kv_overrides: {key!r}: {value!r} is not a name and a bool, an int, a float or a str"
            )
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ValueError(f"kv_overrides: {key!r} = {value} is out of range: use an integer of 64 bits")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"kv_overrides: {key!r} = {value} is not finite")
        if "\0" in key or (isinstance(value, str) and "\0" in value):
            raise ValueError(f"kv_overrides: {key!r}: {value!r} has a character 0")
    return dict(overrides)
