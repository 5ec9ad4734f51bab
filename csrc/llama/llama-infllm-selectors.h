#pragma once

#include "llama-infllm-selector.h"

// the kinds of search; what they build is in llama-infllm-selector-KIND.cpp

// By queries. One selection serves all heads of a layer (InfLLM, section 3.2): their products are added up, which is the product
// with the sum of the queries. These are means over sub-chunks, all brought to one distance from the representative keys, whose
// RoPE is undone.
class selector_queries : public llama_infllm_selector {
public:
    using llama_infllm_selector::llama_infllm_selector;

    bool searches(uint32_t /*idx*/) const override { return true; }

    void build_inputs(const llm_graph_context & graph, llm_graph_input_attn_infllm & inp) const override;

    ggml_tensor * build_search(const llm_graph_context & graph, const llm_graph_input_attn_infllm & inp,
            const llama_infllm_layers & layers, const llama_infllm_layer & l, ggml_tensor * q) const override;
};

// As published: the tokens of representative keys are chosen by the attention that they got, and all heads choose for themselves
class selector_published : public selector_queries {
public:
    using selector_queries::selector_queries;

    bool sums_queries()   const override { return false; }
    bool sums_attention() const override { return true;  }
};

// By bounds of what attention gives any key of a block (Quest, Tang et al. 2024, arXiv 2406.10774, section 3.3). These are linear in
// the positive and in the negative part of a query, so that sums of these over heads and means over sub-chunks give sums and means of
// bounds.
class selector_quest : public selector_queries {
public:
    using selector_queries::selector_queries;

    bool bounds() const override { return true; }

    uint32_t n_head_repr(uint32_t /*n_head*/, uint32_t n_head_kv) const override { return 2*n_head_kv; } // largest, smallest

    ggml_tensor * build_search(const llm_graph_context & graph, const llm_graph_input_attn_infllm & inp,
            const llama_infllm_layers & layers, const llama_infllm_layer & l, ggml_tensor * q) const override;
};

// By keys. What is compared are the keys of the current tokens: that a context is like a stored one shows in its keys, as in kNN-LM
// (Khandelwal et al. 2020, arXiv 1911.00172). They are means over sub-chunks of keys in the ring, with RoPE undone, less the mean of
// all keys. Where layers agree on what is relevant, few of them are enough to find it.
class selector_keys : public llama_infllm_selector {
public:
    using llama_infllm_selector::llama_infllm_selector;

    bool searches(uint32_t idx) const override { return idx%3 == 0; }
    bool centres() const override { return true; }
    bool agrees()  const override { return true; }

    uint32_t n_end() const override { return 2*prm.n_score; }

    // One that may be a question is searched for by keys of two representative keys' length as well, where these are shorter:
    // strings that are looked up drown in n_score tokens.
    std::vector<uint32_t> sub_lengths(uint32_t n_tokens) const override;

    void build_inputs(const llm_graph_context & graph, llm_graph_input_attn_infllm & inp) const override;

    ggml_tensor * build_search(const llm_graph_context & graph, const llm_graph_input_attn_infllm & inp,
            const llama_infllm_layers & layers, const llama_infllm_layer & l, ggml_tensor * q) const override;
};

// By keys, once: what was selected for a question stays while it is answered, as in the long-context mode of KTransformers
// (doc/en/long_context_introduction.md there, preselect_block) and SnapKV (Li et al. 2024, arXiv 2404.14469). Any text of more than
// one token is a question. What an answer has written is seen until it leaves the local window, and again from the next text on.
class selector_preselect : public selector_keys {
public:
    using selector_keys::selector_keys;

    bool keeps(uint32_t n_tokens) const override { return n_tokens == 1; }
};
