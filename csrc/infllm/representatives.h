#pragma once

#include "rotation.h"

#include <cstddef>
#include <cstdint>
#include <vector>

namespace infllm {

// InfLLM (section 3.2) scores token m of a block by the mean of q_i . k_m over the queries i that follow it in its local
// window. The mean is linear, so it is k_m . (mean of those q_i), and a running sum of the queries is enough.
//
//   k      [n_token][n_head_kv][n_embd_head]  keys, rotated to their positions
//   q      [n_head_kv][n_embd_head]           sum of the queries that follow, over the tokens and over the query heads
//                                             of each KV head, rotated to their positions
//   out    [n_head_kv][n_token]
void token_scores(
        const float * k, const float * q, uint32_t n_token, uint32_t n_head_kv, uint32_t n_embd_head, float * out);

// The representative keys of a block, one for each of n_repr equal parts: the keys of the repr_topk tokens with the highest
// scores, with RoPE undone, are averaged into one key, as in the authors' code (which has one part). Every head chooses its
// own tokens.
//
//   k      [n_token][n_head_kv][n_embd_head]  keys, rotated to their positions
//   scores [n_head][n_token]                  not read where all tokens of a part count; n_head a multiple of n_head_kv: successive heads share a KV head
//   undo   [n_token]                          what undoes the rotation of each token's key; empty without RoPE
//   out    [n_repr][n_head][n_embd_head]
void representative_keys(
        const float * k, const float * scores, uint32_t n_token, uint32_t n_head, uint32_t n_head_kv, uint32_t n_embd_head,
        uint32_t n_repr, uint32_t repr_topk, const std::vector<rotation> & undo, float * out);

} // namespace infllm
