#include "selection.h"

#include <algorithm>
#include <numeric>

namespace infllm {

void block_scores(
        const float * scores, uint32_t n_block, uint32_t n_block_pad, uint32_t n_sub, std::vector<float> & out) {
    out.assign(scores, scores + n_block);

    for (uint32_t s = 1; s < n_sub; ++s) {
        const float * row = scores + std::size_t(s)*n_block_pad;
        for (uint32_t b = 0; b < n_block; ++b) {
            out[b] = std::max(out[b], row[b]);
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
