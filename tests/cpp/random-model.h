#pragma once

// Small models of random weights, without a vocabulary, for what no trained model shows: kinds of RoPE, magnitudes, head sizes.

#include "ggml-cpp.h"
#include "gguf.h"
#include "llama-cpp.h"
#include "llama.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

using model_ptr   = llama_model_ptr;
using context_ptr = llama_context_ptr;

struct random_model {
    static constexpr uint32_t N_VOCAB = 256;

    std::string arch        = "llama"; // pairs of RoPE side by side; "stablelm": half a rotated part apart
    uint32_t    n_layer     = 1;
    uint32_t    n_head      = 2;
    uint32_t    n_head_kv   = 1;
    uint32_t    n_embd_head = 64;
    uint32_t    n_rot       = 64;
    uint32_t    n_ctx_train = 4096;
    bool        factors     = false; // a frequency factor for each pair, as in Llama 3
    uint32_t    n_ctx_orig  = 0;     // LongRoPE: other factors in contexts that are longer; arch: "minicpm"

    model_ptr load() const {
        const std::string path = testing::TempDir() + "infllm-random-" + std::to_string(getpid()) + ".gguf";
        write(path);
        auto params = llama_model_default_params();
        params.n_gpu_layers = 0;
        model_ptr res(llama_model_load_from_file(path.c_str(), params));
        std::remove(path.c_str());
        EXPECT_TRUE(res);
        return res;
    }

private:
    void write(const std::string & path) const {
        const uint32_t n_embd = n_head*n_embd_head;
        const uint32_t n_kv   = n_head_kv*n_embd_head;
        const uint32_t n_ff   = 32;

        ggml_context_ptr ctx { ggml_init({ size_t(64) << 20, nullptr, false }) };
        gguf_context_ptr out { gguf_init_empty() };

        gguf_set_val_str(out.get(), "general.architecture", arch.c_str());
        gguf_set_val_str(out.get(), "tokenizer.ggml.model", "none");
        const auto set = [&](const char * key, uint32_t value) { gguf_set_val_u32(out.get(), (arch + "." + key).c_str(), value); };
        set("vocab_size",              N_VOCAB);
        set("context_length",          n_ctx_train);
        set("embedding_length",        n_embd);
        set("block_count",             n_layer);
        set("feed_forward_length",     n_ff);
        set("attention.head_count",    n_head);
        set("attention.head_count_kv", n_head_kv);
        set("rope.dimension_count",    n_rot);
        for (const char * key : { "attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon" }) {
            gguf_set_val_f32(out.get(), (arch + "." + key).c_str(), 1e-5f);
        }

        std::mt19937 rng(1);
        const auto add = [&](const std::string & name, int64_t ne0, int64_t ne1, float mean, float dev) {
            std::normal_distribution<float> normal(mean, dev);
            ggml_tensor * t = ne1 == 0 ? ggml_new_tensor_1d(ctx.get(), GGML_TYPE_F32, ne0)
                                       : ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, ne0, ne1);
            ggml_set_name(t, name.c_str());
            for (int64_t i = 0; i < ggml_nelements(t); ++i) {
                static_cast<float *>(t->data)[i] = normal(rng);
            }
            gguf_add_tensor(out.get(), t);
        };
        const auto norm   = [&](const std::string & name) { add(name + ".weight", n_embd, 0, 1.0f, 0.1f); add(name + ".bias", n_embd, 0, 0.0f, 0.1f); };
        const auto matrix = [&](const std::string & name, int64_t n_in, int64_t n_out) {
            add(name + ".weight", n_in, n_out, 0.0f, 1.0f/std::sqrt(float(n_in)));
        };
        const bool has_bias = arch == "stablelm";
        const auto rms      = [&](const std::string & name) { add(name + ".weight", n_embd, 0, 1.0f, 0.1f); };

        matrix("token_embd", n_embd, N_VOCAB);
        matrix("output",     n_embd, N_VOCAB);
        has_bias ? norm("output_norm") : rms("output_norm");
        if (n_ctx_orig > 0) {
            gguf_set_val_str(out.get(), (arch + ".rope.scaling.type").c_str(), "longrope");
            set("rope.scaling.original_context_length", n_ctx_orig);
            add("rope_factors_long.weight",  n_rot/2, 0, 3.0f, 0.5f);
            add("rope_factors_short.weight", n_rot/2, 0, 1.0f, 0.1f);
        }
        if (factors) {
            add("rope_freqs.weight", n_rot/2, 0, 3.0f, 0.5f);
        }
        for (uint32_t il = 0; il < n_layer; ++il) {
            const std::string blk = "blk." + std::to_string(il) + ".";
            has_bias ? norm(blk + "attn_norm") : rms(blk + "attn_norm");
            has_bias ? norm(blk + "ffn_norm")  : rms(blk + "ffn_norm");
            matrix(blk + "attn_q",      n_embd, n_embd);
            matrix(blk + "attn_k",      n_embd, n_kv);
            matrix(blk + "attn_v",      n_embd, n_kv);
            matrix(blk + "attn_output", n_embd, n_embd);
            matrix(blk + "ffn_gate",    n_embd, n_ff);
            matrix(blk + "ffn_up",      n_embd, n_ff);
            matrix(blk + "ffn_down",    n_ff,   n_embd);
        }
        ASSERT_TRUE(gguf_write_to_file(out.get(), path.c_str(), false)) << path;
    }
};
