#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace infllm {

// Relevance of every block to a ubatch: the best of its sub-chunks counts, so that a short question is not averaged away
// by the text before it.
//
//   scores [n_sub][n_block_pad]  products of the blocks' representative keys with the mean queries of each sub-chunk
//   out    [n_block]
void block_scores(
        const float * scores, uint32_t n_block, uint32_t n_block_pad, uint32_t n_sub, std::vector<float> & out);

// the k highest scores, best first; the more recent block wins a tie (see topk.h)
void select_topk(const std::vector<float> & scores, uint32_t k, std::vector<int32_t> & out);

} // namespace infllm
