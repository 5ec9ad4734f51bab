#include "selection.h"

#include "topk.h"

#include <algorithm>

namespace infllm {

void block_scores(
        const float * scores, uint32_t n_block, uint32_t n_repr, uint32_t n_row, uint32_t n_sub, std::vector<float> & out) {
    out.resize(n_block);

    for (uint32_t s = 0; s < n_sub; ++s) {
        const float * row = scores + std::size_t(s)*n_row;
        for (uint32_t b = 0; b < n_block; ++b) {
            const float best = *std::max_element(row + b*n_repr, row + (b + 1)*n_repr);
            out[b] = s == 0 ? best : std::max(out[b], best);
        }
    }
}

void select_topk(const std::vector<float> & scores, uint32_t k, std::vector<int32_t> & out) {
    const auto n = static_cast<uint32_t>(scores.size());
    out.resize(std::min(k, n));

    topk_scratch          scratch = {};
    std::vector<uint64_t> keys(out.size());
    select_topk(single_thread(), scores.data(), n, static_cast<uint32_t>(out.size()), scratch, keys.data(), out.data());
}

} // namespace infllm
