#pragma once

#include "ggml.h"

#include <cstdint>

struct llm_graph_context;

// pieces of the compute graph

struct llama_infllm_shape {
    int64_t ne0 = 1;
    int64_t ne1 = 1;
    int64_t ne2 = 1;
    int64_t ne3 = 1;
};
ggml_tensor * llama_infllm_new_input(const llm_graph_context & graph, ggml_type type, llama_infllm_shape shape, const char * name);

// What reads a resident buffer or its representative keys runs where they lie. Left to itself, the scheduler follows the
// weights, which it lends to other backends for prompts (op_offload), and copies all that is read to there, for every ubatch.
// llama_infllm_check_device() has seen that the device can do it.
void llama_infllm_pin(const llm_graph_context & graph, ggml_tensor * op, const ggml_tensor * resident);

// weighted sums over the tokens of each stream
//   x   [n_embd_head, n_head, n_tokens*n_stream]
//   w   [n_tokens, n_sum, n_stream], or nullptr for a single token
//   res [n_embd_head, n_head, n_sum*n_stream]
ggml_tensor * llama_infllm_token_sum(ggml_context * ctx0, ggml_tensor * x, ggml_tensor * w);

// sums over the heads that share a head of the representative keys
//   x   [n_embd_head, n_head, n]
//   res [n_embd_head*n_head_repr, n]
ggml_tensor * llama_infllm_head_sum(ggml_context * ctx0, ggml_tensor * x, int64_t n_head_repr);
