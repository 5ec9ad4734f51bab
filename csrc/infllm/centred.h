#pragma once

#include "portable.h"

#include <cmath>

namespace infllm {

static constexpr uint32_t CENTRED_LANES = 32; // partial sums of a row: as many for every group, so that all of them round alike

// Representative keys with the mean key subtracted, at length 1: what is common to all keys says nothing, and of two blocks
// that are alike the one with the larger keys is not more alike.
//
//   rows  [n_row][n_embd]         half floats, in place
//   mean  [n_embd]
//   sums  [n_row][CENTRED_LANES]  work space, shared by the group
template <typename Group>
INFLLM_PORTABLE void centre_rows(const Group & g, uint16_t * rows, uint32_t n_row, uint32_t n_embd, const float * mean, float * sums) {
    for (uint32_t i = g.rank(); i < n_row*CENTRED_LANES; i += g.size()) {
        const uint16_t * row = rows + uint64_t(i/CENTRED_LANES)*n_embd;

        float sum = 0.0f;
        for (uint32_t j = i%CENTRED_LANES; j < n_embd; j += CENTRED_LANES) {
            const float x = half_to_float(row[j]) - mean[j];
            sum += x*x;
        }
        sums[i] = sum;
    }
    g.sync();
    for (uint32_t i = g.rank(); i < n_row*CENTRED_LANES; i += g.size()) {
        uint16_t    * row  = rows + uint64_t(i/CENTRED_LANES)*n_embd;
        const float * lane = sums + i/CENTRED_LANES*CENTRED_LANES;

        float sum = 0.0f;
        for (uint32_t j = 0; j < CENTRED_LANES; ++j) {
            sum += lane[j];
        }
        const float scale = sum > 0.0f ? 1.0f/sqrtf(sum) : 0.0f;
        for (uint32_t j = i%CENTRED_LANES; j < n_embd; j += CENTRED_LANES) {
            row[j] = half_from_float((half_to_float(row[j]) - mean[j])*scale);
        }
    }
    g.sync();
}

} // namespace infllm
