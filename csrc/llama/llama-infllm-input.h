#pragma once

#include "llama-kv-cache-infllm.h"

#include "llama-graph.h"

// the inputs of a ubatch, and what the graph depends on beside them
class llm_graph_input_attn_infllm : public llm_graph_input_attn_kv {
public:
    llm_graph_input_attn_infllm(
            const llama_hparams & hparams,
            const llama_cparams & cparams,
            const llama_kv_cache_infllm_context * mctx,
            uint32_t n_stream) :
        llm_graph_input_attn_kv(hparams, cparams, nullptr),
        mctx_infllm(mctx),
        seq_id(mctx->get_seq_id()),
        n_stream(n_stream),
        n_kv(mctx->get_n_kv()),
        n_block(mctx->get_n_block()),
        n_block_cap(mctx->get_layers().get_n_block_cap()),
        by_devices(mctx->get_mem()->get_paging().has_devices()),
        has_scores(mctx->get_mem()->has_scores()) {
    }

    void set_input(const llama_ubatch * ubatch) override;

    bool can_reuse(const llm_graph_params & params) override;

    const llama_kv_cache_infllm_context * mctx_infllm;

    ggml_tensor * w_sum   = nullptr; // F32 [n_tokens, n_chunk]
    ggml_tensor * w_mean  = nullptr; // F32 [tokens of a stream or n_key, n_sub, n_stream]
    ggml_tensor * q_shift = nullptr; // I32 [n_tokens]
    ggml_tensor * key_idxs  = nullptr; // I32 [n_key*n_stream], with search = keys
    ggml_tensor * key_shift = nullptr; // I32 [n_key*n_stream]
    ggml_tensor * window  = nullptr; // F32 [n_kv, n_tokens], with published scores
    ggml_tensor * info    = nullptr; // I32 [PAGER_INFO_SIZE, n_stream]

    std::vector<std::pair<int32_t, ggml_tensor *>> scores; // of layers, F32 [n_row, 1], where they are given from outside

    const llama_seq_id seq_id;   // of the first stream
    const uint32_t     n_stream; // sequences that have a token each, or 1
    const uint32_t     n_kv;
    const uint32_t     n_block;
    const uint32_t     n_block_cap; // representative keys lie elsewhere when it has grown
    const bool         by_devices; // whether devices page
    const bool         has_scores;
};

// the inputs of a model with latent vectors (MLA)
class llm_graph_input_attn_infllm_k : public llm_graph_input_attn_k {
public:
    explicit llm_graph_input_attn_infllm_k(std::unique_ptr<llm_graph_input_attn_infllm> full);

    void set_input(const llama_ubatch * ubatch) override { full->set_input(ubatch); }

    bool can_reuse(const llm_graph_params & params) override { return full->can_reuse(params); }

    const std::unique_ptr<llm_graph_input_attn_infllm> full;
};

// the inputs of an iSWA model: those of the layers with full attention, and upstream's for those with a window
class llm_graph_input_attn_infllm_iswa : public llm_graph_input_attn_kv_iswa {
public:
    llm_graph_input_attn_infllm_iswa(
            std::unique_ptr<llm_graph_input_attn_infllm> full,
            const llm_graph_context & graph,
            const llama_kv_cache_context * mctx_swa);

    void set_input(const llama_ubatch * ubatch) override;

    bool can_reuse(const llm_graph_params & params) override;

    const std::unique_ptr<llm_graph_input_attn_infllm> full;

    llm_graph_input_attn_kv swa;
};

// The inputs of a hybrid model. Base: llm_graph_input_mem_hybrid, or the same with windows or latent vectors.
template <class Base>
class llm_graph_input_infllm_hybrid : public Base {
public:
    using Base::Base;

    void set_input(const llama_ubatch * ubatch) override;

    bool can_reuse(const llm_graph_params & params) override;
};
