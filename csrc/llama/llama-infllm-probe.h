#pragma once

#include "llama-infllm-rope.h"

#include <cstdint>
#include <map>
#include <optional>

struct llama_cparams;
struct llama_model;

// how the keys of a layer are made, up to the cache
struct llama_infllm_key {
    std::optional<llama_infllm_rope> rope; // that they have

    bool is_weighted = false; // their dimensions are multiplied after RoPE, which then cannot be undone, nor keys moved, exactly
};

// What the graph of a model does to the keys of each layer with attention: it is built once for a token, with a small plain cache,
// and not computed. So no architecture needs to be known.
std::map<int32_t, llama_infllm_key> llama_infllm_probe_keys(const llama_model & model, const llama_cparams & cparams);

// in llama_infllm_attn::cpy_k(): what is written
void llama_infllm_probe(const ggml_tensor * k_cur, int32_t il);
