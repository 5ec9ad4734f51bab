#include "llama-infllm-selectors.h"

#include "llama-infllm-graph.h"
#include "llama-infllm-input.h"
#include "llama-infllm-layers.h"

std::vector<uint32_t> selector_keys::sub_lengths(uint32_t n_tokens) const {
    std::vector<uint32_t> res = { prm.n_score };

    const uint32_t n_pair = 2*(prm.block_size/prm.n_repr);
    if (n_tokens <= n_end() && n_pair < res[0]) {
        res.push_back(n_pair);
    }
    return res;
}

void selector_keys::build_inputs(const llm_graph_context & graph, llm_graph_input_attn_infllm & inp) const {
    const int64_t n_tokens = graph.n_tokens/inp.n_stream;
    const int64_t n_key    = (n_tokens + prm.n_score - 1)/prm.n_score*prm.n_score; // whole sub-chunks, with some before the ubatch

    inp.key_idxs  = llama_infllm_new_input(graph, GGML_TYPE_I32, { n_key*inp.n_stream }, "infllm_inp_key_idxs");
    inp.key_shift = llama_infllm_new_input(graph, GGML_TYPE_I32, { n_key*inp.n_stream }, "infllm_inp_key_shift");
    inp.w_mean    = llama_infllm_new_input(graph, GGML_TYPE_F32, { n_key, n_sub(n_tokens), inp.n_stream }, "infllm_inp_w_mean");
}

ggml_tensor * selector_keys::build_search(const llm_graph_context & graph, const llm_graph_input_attn_infllm & inp,
        const llama_infllm_layers & layers, const llama_infllm_layer & l, ggml_tensor * q) const {
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
