#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace infllm {

// Relevance of every block to a ubatch. For each sub-chunk of its queries, the products of the block's representative
// key with the mean query are summed over the query heads (InfLLM, section 3.2: one selection for all heads of a
// layer); the best sub-chunk counts, so that a short question is not averaged away by the text before it.
//
//   scores [n_head][n_sub][n_block_pad]  products, blocks contiguous
//   out    [n_block]
void block_scores(
        const float * scores, uint32_t n_block, uint32_t n_block_pad, uint32_t n_sub, uint32_t n_head,
        std::vector<float> & out);

// the k highest scores, best first; the more recent block wins a tie
void select_topk(const std::vector<float> & scores, uint32_t k, std::vector<int32_t> & out);

} // namespace infllm
