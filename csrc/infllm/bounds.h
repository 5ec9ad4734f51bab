#pragma once

#include "pager-layer.h"

#include <cmath>

namespace infllm {

// The bounds of a block (Quest, Tang et al. 2024, arXiv 2406.10774, section 3.3), one pair for each of n_repr equal parts, which are
// what pages are there: the largest value of its keys in each dimension, and the smallest. So no key of the part has a larger product
// with a query q than sum_i max(q_i*largest_i, q_i*smallest_i), but for the rounding of keys that are not half floats. Keys are at
// their own positions, as attention reads them: with RoPE undone it would be a bound for one distance alone.
//   k    rows of the block
//   out  [n_repr][largest, smallest][n_embd_k]
template <typename Group>
INFLLM_PORTABLE void store_bounds(const Group & g, const pager_layer & l, const uint8_t * k, uint16_t * out) {
    const uint32_t n_embd = l.n_embd_k();
    const uint32_t n_part = l.cells.block_size/l.n_repr;

    for (uint32_t i = g.rank(); i < l.n_repr*n_embd; i += g.size()) {
        const uint32_t  part = i/n_embd;
        const uint32_t  dim  = i%n_embd;
        const uint8_t * rows = k + part*n_part*l.row_k;

        float largest  = kv_load(l.type_k, rows, dim);
        float smallest = largest;
        for (uint32_t m = 1; m < n_part; ++m) {
            const float x = kv_load(l.type_k, rows + m*l.row_k, dim);
            largest  = fmaxf(largest,  x);
            smallest = fminf(smallest, x);
        }
        out[2*part*n_embd + dim]          = half_from_float(largest);
        out[2*part*n_embd + n_embd + dim] = half_from_float(smallest);
    }
}

} // namespace infllm
