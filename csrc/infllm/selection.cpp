#include "selection.h"

#include <algorithm>
#include <numeric>

namespace infllm {

void block_scores(
        const float * scores, uint32_t n_block, uint32_t n_block_pad, uint32_t n_sub, uint32_t n_head,
        std::vector<float> & out) {
    out.assign(n_block, 0.0f);

    std::vector<float> sum(n_sub > 1 ? n_block : 0);

    for (uint32_t s = 0; s < n_sub; ++s) {
        // the first sub-chunk goes straight into out
        float * acc = s == 0 ? out.data() : sum.data();
        if (s > 0) {
            std::fill(sum.begin(), sum.end(), 0.0f);
        }
        for (uint32_t h = 0; h < n_head; ++h) {
            const float * row = scores + (std::size_t(h)*n_sub + s)*n_block_pad;
            for (uint32_t b = 0; b < n_block; ++b) {
                acc[b] += row[b];
            }
        }
        for (uint32_t b = 0; s > 0 && b < n_block; ++b) {
            out[b] = std::max(out[b], sum[b]);
        }
    }
}

void select_topk(const std::vector<float> & scores, uint32_t k, std::vector<int32_t> & out) {
    out.resize(scores.size());
    std::iota(out.begin(), out.end(), 0);

    const auto n = std::min<size_t>(k, out.size());

    std::partial_sort(out.begin(), out.begin() + n, out.end(), [&](int32_t a, int32_t b) {
        return scores[a] != scores[b] ? scores[a] > scores[b] : a > b;
    });
    out.resize(n);
}

} // namespace infllm
