"""Copies of GGUF files, changed."""

from __future__ import annotations

import os

import gguf
import numpy as np


def copy_gguf(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    n_layer: int | None = None,
    dequantise: bool = False,
) -> None:
    """Copy a GGUF: its first `n_layer` layers, or all; weights as they are, or in float32.

    llama.cpp quantises activations where weights are quantised; that alone changes some selections.
    """
    reader = gguf.GGUFReader(source)
    arch = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, arch)
    for f in reader.fields.values():
        if not f.name.startswith("GGUF.") and f.name != "general.architecture":
            value = n_layer if n_layer and f.name == f"{arch}.block_count" else f.contents()
            is_array = f.types[0] == gguf.GGUFValueType.ARRAY
            writer.add_key_value(f.name, value, f.types[0], f.types[-1] if is_array else None)
    for t in reader.tensors:
        if n_layer and t.name.startswith("blk.") and int(t.name.split(".")[1]) >= n_layer:
            continue
        if dequantise:
            writer.add_tensor(t.name, gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32))
        else:
            writer.add_tensor(t.name, t.data, raw_dtype=t.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
