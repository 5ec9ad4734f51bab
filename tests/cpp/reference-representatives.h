#pragma once

// what pager-store.h computes, in plain C++

#include "on-one-thread.h"
#include "rotation.h"

#include <numeric>
#include <vector>

using infllm::rotation;

// InfLLM (section 3.2) scores token m of a block by the mean of q_i . k_m over the queries i that follow it in its local
// window. The mean is linear, so it is k_m . (mean of those q_i), and a running sum of the queries is enough.
//
//   k      [n_token][n_head_kv][n_embd_head]  keys, rotated to their positions
//   q      [n_head_kv][n_embd_head]           sum of the queries that follow, over the tokens and over the query heads
//                                             of each KV head, rotated to their positions
//   out    [n_head_kv][n_token]
inline void token_scores(
        const float * k, const float * q, uint32_t n_token, uint32_t n_head_kv, uint32_t n_embd_head, float * out) {
    for (uint32_t h = 0; h < n_head_kv; ++h) {
        const float * q_h = q + size_t(h)*n_embd_head;

        for (uint32_t m = 0; m < n_token; ++m) {
            const float * k_m = k + (size_t(m)*n_head_kv + h)*n_embd_head;

            float sum = 0.0f;
            for (uint32_t i = 0; i < n_embd_head; ++i) {
                sum += q_h[i]*k_m[i];
            }
            out[size_t(h)*n_token + m] = sum;
        }
    }
}

// The representative keys of a block, one for each of n_repr equal parts: the keys of the repr_topk tokens with the highest
// scores, with RoPE undone, are averaged into one key, as in the authors' code (which has one part). Every head chooses its
// own tokens.
//
//   k      [n_token][n_head_kv][n_embd_head]  keys, rotated to their positions
//   scores [n_head][n_token]                  not read where all tokens of a part count; n_head a multiple of n_head_kv: successive heads share a KV head
//   undo   [n_token]                          what undoes the rotation of each token's key; empty without RoPE
//   out    [n_repr][n_head][n_embd_head]
inline void representative_keys(
        const float * k, const float * scores, uint32_t n_token, uint32_t n_head, uint32_t n_head_kv, uint32_t n_embd_head,
        uint32_t n_repr, uint32_t repr_topk, const std::vector<rotation> & undo, float * out) {
    const uint32_t n_part = n_token/n_repr;

    std::vector<float>   score(n_part);
    std::vector<int32_t> best(n_part); // of a part: all, unless they are chosen
    std::vector<float>   key(n_embd_head);

    std::iota(best.begin(), best.end(), 0);

    for (uint32_t r = 0; r < n_repr; ++r) {
        for (uint32_t h = 0; h < n_head; ++h, out += n_embd_head) {
            const uint32_t h_kv = h/(n_head/n_head_kv);

            if (repr_topk < n_part) {
                std::copy_n(scores + size_t(h)*n_token + r*n_part, n_part, score.begin());
                select_topk(score, repr_topk, best);
            }

            std::fill(out, out + n_embd_head, 0.0f);
            for (const int32_t i : best) {
                const uint32_t m   = r*n_part + i;
                const float  * k_m = k + (size_t(m)*n_head_kv + h_kv)*n_embd_head;
                std::copy(k_m, k_m + n_embd_head, key.begin());
                if (!undo.empty()) {
                    undo[m].apply(key.data(), 1, n_embd_head);
                }
                for (uint32_t e = 0; e < n_embd_head; ++e) {
                    out[e] += key[e]/best.size();
                }
            }
        }
    }
}
