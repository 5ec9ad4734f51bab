#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace infllm {

// Relevance of every block to a ubatch: the best of its representative keys counts, and of the sub-chunks, so that a short
// question is not averaged away by the text before it.
//
//   scores [n_sub][n_row]  products of the representative keys, n_repr successive ones for each block, with the mean
//                          queries of each sub-chunk; n_row >= n_block*n_repr
//   out    [n_block]
void block_scores(
        const float * scores, uint32_t n_block, uint32_t n_repr, uint32_t n_row, uint32_t n_sub, std::vector<float> & out);

// the k highest scores, best first; the more recent block wins a tie (see topk.h)
void select_topk(const std::vector<float> & scores, uint32_t k, std::vector<int32_t> & out);

} // namespace infllm
