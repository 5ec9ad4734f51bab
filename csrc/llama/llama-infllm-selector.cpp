#include "llama-infllm-selector.h"

#include "llama-infllm-graph.h"
#include "llama-infllm-input.h"
#include "llama-infllm-layers.h"

#include <algorithm>

uint32_t llama_infllm_selector::n_head_repr(uint32_t n_head, uint32_t n_head_kv) const {
    return sums_attention() ? n_head : n_head_kv;
}

bool llama_infllm_selector::sums_queries() const {
    return prm.n_repr*prm.repr_topk < prm.block_size; // else all keys are averaged
}

uint32_t llama_infllm_selector::n_sum(uint32_t n_head, uint32_t n_head_kv, uint32_t n_embd_head_k) const {
    return sums_attention() ? n_head*prm.block_size : sums_queries() ? n_head_kv*n_embd_head_k : 0;
}

std::vector<uint32_t> llama_infllm_selector::sub_lengths(uint32_t n_tokens) const {
    GGML_UNUSED(n_tokens);
    return { prm.n_score };
}

uint32_t llama_infllm_selector::n_sub(uint32_t n_tokens) const {
    uint32_t res = 0;
    for (const uint32_t len : sub_lengths(n_tokens)) {
        res += (n_tokens + len - 1)/len;
    }
    return res;
}

uint32_t llama_infllm_selector::n_sub_max(uint32_t n_ubatch, uint32_t n_seq) const {
    return std::max({ n_sub(n_ubatch), n_sub(std::min(n_ubatch, n_end())), n_seq*n_sub(1) });
}

//
// by queries
//

// One selection serves all heads of a layer (InfLLM, section 3.2): their products are added up, which is the product with the sum
// of the queries. These are means over sub-chunks, all brought to one distance from the representative keys, whose RoPE is undone.
class selector_queries : public llama_infllm_selector {
public:
    using llama_infllm_selector::llama_infllm_selector;

    bool searches(uint32_t idx) const override {
        GGML_UNUSED(idx);
        return true;
    }

    void build_inputs(const llm_graph_context & graph, llm_graph_input_attn_infllm & inp) const override {
        const int64_t n_tokens = graph.n_tokens/inp.n_stream;

        inp.q_shift = llama_infllm_new_input(graph, GGML_TYPE_I32, { graph.n_tokens }, "infllm_inp_q_shift");
        if (n_tokens > 1) {
            inp.w_mean = llama_infllm_new_input(graph, GGML_TYPE_F32, { n_tokens, n_sub(n_tokens) }, "infllm_inp_w_mean");
        }
    }

    ggml_tensor * build_search(const llm_graph_context & graph, const llm_graph_input_attn_infllm & inp,
            const llama_infllm_layers & layers, const llama_infllm_layer & l, ggml_tensor * q) const override {
        if (const auto * rope = layers.get_rope(l)) {
            q = rope->build_undo(graph.ctx0, q, inp.q_shift);
        }
        q = llama_infllm_head_sum(graph.ctx0, llama_infllm_token_sum(graph.ctx0, q, inp.w_mean), l.shape.n_head_repr);

        return ggml_reshape_3d(graph.ctx0, q, q->ne[0], q->ne[1]/inp.n_stream, inp.n_stream);
    }
};

// As published: the tokens of representative keys are chosen by the attention that they got, and all heads choose for themselves
class selector_published : public selector_queries {
public:
    using selector_queries::selector_queries;

    bool sums_queries()   const override { return false; }
    bool sums_attention() const override { return true;  }
};

//
// by keys
//

// What is compared are the keys of the current tokens: that a context is like a stored one shows in its keys, as in kNN-LM
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
    std::vector<uint32_t> sub_lengths(uint32_t n_tokens) const override {
        std::vector<uint32_t> res = { prm.n_score };

        const uint32_t n_pair = 2*(prm.block_size/prm.n_repr);
        if (n_tokens <= n_end() && n_pair < res[0]) {
            res.push_back(n_pair);
        }
        return res;
    }

    void build_inputs(const llm_graph_context & graph, llm_graph_input_attn_infllm & inp) const override {
        const int64_t n_tokens = graph.n_tokens/inp.n_stream;
        const int64_t n_key    = (n_tokens + prm.n_score - 1)/prm.n_score*prm.n_score; // whole sub-chunks, with some before the ubatch

        inp.key_idxs  = llama_infllm_new_input(graph, GGML_TYPE_I32, { n_key*inp.n_stream }, "infllm_inp_key_idxs");
        inp.key_shift = llama_infllm_new_input(graph, GGML_TYPE_I32, { n_key*inp.n_stream }, "infllm_inp_key_shift");
        inp.w_mean    = llama_infllm_new_input(graph, GGML_TYPE_F32, { n_key, n_sub(n_tokens), inp.n_stream }, "infllm_inp_w_mean");
    }

    ggml_tensor * build_search(const llm_graph_context & graph, const llm_graph_input_attn_infllm & inp,
            const llama_infllm_layers & layers, const llama_infllm_layer & l, ggml_tensor * q) const override {
        GGML_UNUSED(q);
        ggml_context * ctx0 = graph.ctx0;

        ggml_tensor * cur = ggml_view_2d(ctx0, l.k, l.k->ne[0], l.k->ne[1]*l.k->ne[2], l.k->nb[1], 0);
        cur = ggml_get_rows(ctx0, cur, inp.key_idxs);
        llama_infllm_pin(graph, cur, l.k);

        cur = ggml_reshape_3d(ctx0, cur, l.shape.n_embd_head_k, l.shape.n_head_kv, cur->ne[1]);
        if (const auto * rope = layers.get_rope(l)) {
            cur = rope->build_undo(ctx0, cur, inp.key_shift);
        }
        cur = llama_infllm_head_sum(ctx0, llama_infllm_token_sum(ctx0, cur, inp.w_mean), l.shape.n_head_kv);

        cur = ggml_reshape_3d(ctx0, cur, cur->ne[0], cur->ne[1]/inp.n_stream, inp.n_stream);
        cur = ggml_sub(ctx0, cur, ggml_view_3d(ctx0, l.mean, l.mean->ne[0], 1, inp.n_stream, l.mean->nb[1], l.mean->nb[2],
                inp.seq_id*l.mean->nb[2]));
        llama_infllm_pin(graph, cur, l.mean);

        return cur;
    }
};

std::unique_ptr<llama_infllm_selector> llama_infllm_selector::make(const llama_infllm_params & params) {
    if (params.scores == LLAMA_INFLLM_SCORES_PUBLISHED) {
        return std::make_unique<selector_published>(params);
    }
    if (params.search == LLAMA_INFLLM_SEARCH_KEYS) {
        return std::make_unique<selector_keys>(params);
    }
    return std::make_unique<selector_queries>(params);
}
