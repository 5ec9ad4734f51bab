#pragma once

// A model of one layer and random weights, made in a moment.

#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "gguf.h"
#include "llama-cpp.h"
#include "llama.h"

#include <algorithm>
#include <random>
#include <string>
#include <vector>

constexpr int      TINY_N_VOCAB     = 32;
constexpr uint32_t TINY_N_CTX_TRAIN = 256;

inline void tiny_set_random(ggml_tensor * t, void * user_data) {
    auto & rng = *static_cast<std::mt19937 *>(user_data);
    std::normal_distribution<float> normal(0.0f, 0.1f);
    std::vector<float> data(ggml_nelements(t));
    std::generate(data.begin(), data.end(), [&] { return normal(rng); });
    GGML_ASSERT(t->type == GGML_TYPE_F32);
    ggml_backend_tensor_set(t, data.data(), 0, ggml_nbytes(t));
}

// arch: one that needs no other metadata; "llama" also has RoPE factors
inline llama_model_ptr tiny_model(const std::string & arch, uint32_t n_embd_head, uint32_t seed = 1) {
    const gguf_context_ptr gguf(gguf_init_empty());
    gguf_set_val_str(gguf.get(), "general.architecture", arch.c_str());
    gguf_set_val_str(gguf.get(), "tokenizer.ggml.model", "no_vocab");
    gguf_set_val_f32(gguf.get(), (arch + ".attention.layer_norm_rms_epsilon").c_str(), 1e-5f);

    const auto set = [&](const char * name, uint32_t value) { gguf_set_val_u32(gguf.get(), (arch + "." + name).c_str(), value); };
    set("vocab_size",              TINY_N_VOCAB);
    set("context_length",          TINY_N_CTX_TRAIN);
    set("embedding_length",        32);
    set("feed_forward_length",     32);
    set("block_count",             1);
    set("attention.head_count",    2);
    set("attention.head_count_kv", 1);
    set("attention.key_length",    n_embd_head);
    set("attention.value_length",  n_embd_head);
    set("rope.dimension_count",    n_embd_head);

    std::mt19937       rng(seed);
    auto               mprm    = llama_model_default_params();
    ggml_backend_dev_t devices = nullptr;
    mprm.devices = &devices;
    return llama_model_ptr(llama_model_init_from_user(gguf.get(), tiny_set_random, &rng, mprm));
}
