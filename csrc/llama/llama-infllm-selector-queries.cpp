#include "llama-infllm-selectors.h"

#include "llama-infllm-graph.h"
#include "llama-infllm-input.h"
#include "llama-infllm-layers.h"

void selector_queries::build_inputs(const llm_graph_context & graph, llm_graph_input_attn_infllm & inp) const {
    const int64_t n_tokens = graph.n_tokens/inp.n_stream;

    inp.q_shift = llama_infllm_new_input(graph, GGML_TYPE_I32, { graph.n_tokens }, "infllm_inp_q_shift");
    if (n_tokens > 1) {
        inp.w_mean = llama_infllm_new_input(graph, GGML_TYPE_F32, { n_tokens, n_sub(n_tokens) }, "infllm_inp_w_mean");
    }
}

ggml_tensor * selector_queries::build_search(const llm_graph_context & graph, const llm_graph_input_attn_infllm & inp,
        const llama_infllm_layers & layers, const llama_infllm_layer & l, ggml_tensor * q) const {
    if (const auto * rope = layers.get_rope(l)) {
        q = rope->build_undo(graph.ctx0, q, inp.q_shift);
    }
    q = llama_infllm_head_sum(graph.ctx0, llama_infllm_token_sum(graph.ctx0, q, inp.w_mean), l.shape.n_head_repr);

    return ggml_reshape_3d(graph.ctx0, q, q->ne[0], q->ne[1]/inp.n_stream, inp.n_stream);
}
