#include "llama-infllm-selectors.h"

#include "llama-infllm-graph.h"
#include "llama-infllm-input.h"
#include "llama-infllm-layers.h"

ggml_tensor * selector_quest::build_search(const llm_graph_context & graph, const llm_graph_input_attn_infllm & inp,
        const llama_infllm_layers & layers, const llama_infllm_layer & l, ggml_tensor * q) const {
    GGML_UNUSED(layers);
    ggml_context * ctx0 = graph.ctx0;

    // the largest of q*max and q*min is that with max where q is positive
    q = ggml_is_contiguous_rows(q) ? q : ggml_cont(ctx0, q);
    ggml_tensor * above = ggml_relu(ctx0, q);
    ggml_tensor * below = ggml_sub(ctx0, q, above);
    for (ggml_tensor ** x : { &above, &below }) {
        *x = llama_infllm_head_sum(ctx0, llama_infllm_token_sum(ctx0, *x, inp.w_mean), l.shape.n_head_kv);
    }
    ggml_tensor * cur = ggml_concat(ctx0, above, below, 0);

    return ggml_reshape_3d(ctx0, cur, cur->ne[0], cur->ne[1]/inp.n_stream, inp.n_stream);
}
