#include "representatives.h"

#include "selection.h"

#include <algorithm>
#include <numeric>

namespace infllm {

void token_scores(
        const float * k, const float * q, uint32_t n_token, uint32_t n_head_kv, uint32_t n_embd_head, float * out) {
    for (uint32_t h = 0; h < n_head_kv; ++h) {
        const float * q_h = q + std::size_t(h)*n_embd_head;

        for (uint32_t m = 0; m < n_token; ++m) {
            const float * k_m = k + (std::size_t(m)*n_head_kv + h)*n_embd_head;

            float sum = 0.0f;
            for (uint32_t i = 0; i < n_embd_head; ++i) {
                sum += q_h[i]*k_m[i];
            }
            out[std::size_t(h)*n_token + m] = sum;
        }
    }
}

void representative_keys(
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
                std::copy_n(scores + std::size_t(h)*n_token + r*n_part, n_part, score.begin());
                select_topk(score, repr_topk, best);
            }

            std::fill(out, out + n_embd_head, 0.0f);
            for (const int32_t i : best) {
                const uint32_t m   = r*n_part + i;
                const float  * k_m = k + (std::size_t(m)*n_head_kv + h_kv)*n_embd_head;
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

} // namespace infllm
