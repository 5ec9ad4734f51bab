#pragma once

#include "portable.h"

#include <cmath>

namespace infllm {

// work space of block_relevance(), shared by the group
struct relevance_scratch {
    static constexpr uint32_t N_LANE = 256; // partial sums: as many for every group, so that all of them round alike
    static constexpr uint32_t N_SUB  = 4;   // sub-chunks at once

    float sum [N_SUB*N_LANE];
    float sum2[N_SUB*N_LANE];
    float mean [N_SUB];
    float scale[N_SUB];
};

// Products of the representative keys, n_repr successive ones for each block, with the mean query or key of each sub-chunk:
//
//   score [n_sub][n_row]  n_row >= n_block*n_repr
//
// The best of its representative keys counts for a block: keep_best() puts it where the first one was. Where words like the
// current ones stood is less than what came after them: with `after`, the last representative key of the block before counts, too.
struct repr_scores {
    float * score;

    uint32_t n_block;
    uint32_t n_repr;
    uint32_t n_row;
    uint32_t n_sub;

    INFLLM_PORTABLE float & best(uint32_t sub, uint32_t block) const { return score[uint64_t(sub)*n_row + block*n_repr]; }

    template <typename Group>
    INFLLM_PORTABLE void keep_best(const Group & g, bool after) const {
        for (uint32_t i = g.rank(); i < n_sub*n_block; i += g.size()) {
            float * x = &best(i/n_block, i%n_block);
            if (after && n_repr > 1 && i%n_block > 0) {
                x[0] = fmaxf(x[0], x[-1]); // not written by the block before, which has more than one
            }
            for (uint32_t r = 1; r < n_repr; ++r) {
                x[0] = x[r] > x[0] ? x[r] : x[0];
            }
        }
        g.sync();
    }
};

// Relevance of every block to a ubatch: the best of the sub-chunks counts, so that a short question is not averaged away by
// the text before it.
//
//   out [n_block]
template <typename Group>
INFLLM_PORTABLE void block_relevance(const Group & g, const repr_scores & s, float * out) {
    s.keep_best(g, false);
    for (uint32_t b = g.rank(); b < s.n_block; b += g.size()) {
        float best = s.best(0, b);
        for (uint32_t i = 1; i < s.n_sub; ++i) {
            best = fmaxf(best, s.best(i, b));
        }
        out[b] = best;
    }
    g.sync();
}

// Relevance that the layers agree on: scores of a layer are made standard scores over the blocks, for each sub-chunk. Those above
// the mean are squared, since what stands out counts, and added up over the layers, up to this one. One layer alone often errs;
// what is relevant stands out in many of them.
//
//   sums  [n_sub][n_block]  of the layers before; empty in the first one
//   out   [n_block]
template <typename Group>
INFLLM_PORTABLE void block_relevance(
        const Group & g, const repr_scores & s, bool first, float * sums, float * out, relevance_scratch & scratch) {
    constexpr uint32_t N_LANE = relevance_scratch::N_LANE;
    constexpr uint32_t N_PART = 16; // lanes that are summed up together

    s.keep_best(g, true);

    for (uint32_t sub0 = 0; sub0 < s.n_sub; sub0 += relevance_scratch::N_SUB) {
        const uint32_t n_sub = s.n_sub - sub0 < relevance_scratch::N_SUB ? s.n_sub - sub0 : relevance_scratch::N_SUB;

        for (uint32_t i = g.rank(); i < n_sub*N_LANE; i += g.size()) {
            const uint32_t sub  = sub0 + i/N_LANE;
            const float    base = s.best(sub, 0); // differences to it lose no digits where all scores are large

            float sum  = 0.0f;
            float sum2 = 0.0f;
            for (uint32_t b = i%N_LANE; b < s.n_block; b += N_LANE) {
                const float x = s.best(sub, b) - base;
                sum  += x;
                sum2 += x*x;
            }
            scratch.sum [i] = sum;
            scratch.sum2[i] = sum2;
        }
        g.sync();
        for (uint32_t i = g.rank()*N_PART; i < n_sub*N_LANE; i += g.size()*N_PART) {
            for (uint32_t j = 1; j < N_PART; ++j) {
                scratch.sum [i] += scratch.sum [i + j];
                scratch.sum2[i] += scratch.sum2[i + j];
            }
        }
        g.sync();
        for (uint32_t i = g.rank(); i < n_sub; i += g.size()) {
            float sum  = 0.0f;
            float sum2 = 0.0f;
            for (uint32_t j = 0; j < N_LANE; j += N_PART) {
                sum  += scratch.sum [i*N_LANE + j];
                sum2 += scratch.sum2[i*N_LANE + j];
            }
            const float mean = sum/s.n_block;
            const float var  = sum2/s.n_block - mean*mean;

            scratch.mean [i] = s.best(sub0 + i, 0) + mean;
            scratch.scale[i] = var > 0.0f ? 1.0f/sqrtf(var) : 0.0f;
        }
        g.sync();
        for (uint32_t b = g.rank(); b < s.n_block; b += g.size()) {
            for (uint32_t i = 0; i < n_sub; ++i) {
                float & sum = sums[uint64_t(sub0 + i)*s.n_block + b];

                const float x = fmaxf(s.best(sub0 + i, b) - scratch.mean[i], 0.0f)*scratch.scale[i];
                sum    = first ? x*x : sum + x*x;
                out[b] = sub0 + i == 0 ? sum : fmaxf(out[b], sum);
            }
        }
        g.sync();
    }
}

} // namespace infllm
