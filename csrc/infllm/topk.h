#pragma once

#include "portable.h"

namespace infllm {

// work space of select_topk(), shared by the group
struct topk_scratch {
    uint32_t hist[256];
    uint32_t sum[16]; // of 16 bins each
    uint32_t bin;
    uint32_t above;
    uint32_t count;
};

// a total order of the blocks: the higher score first, the more recent block in a tie
INFLLM_PORTABLE uint64_t topk_key(float score, uint32_t block) {
    const uint32_t u = float_bits(score + 0.0f); // no -0
    return uint64_t(u & 0x80000000 ? ~u : u | 0x80000000) << 32 | block;
}

// The k best of n blocks, best first, by a radix selection from the top byte of the keys down: each step counts the
// candidates by their next byte, and keeps the bytes that must belong to the k best, until one bin decides.
//
//   score [n]
//   keys  [k]  work space
//   out   [k]  blocks
//
// requires k <= n; returns when out is complete for all threads of the group
template <typename Group>
INFLLM_PORTABLE void select_topk(
        const Group & g, const float * score, uint32_t n, uint32_t k, topk_scratch & s, uint64_t * keys, int32_t * out) {
    if (k == 0) {
        return;
    }

    uint64_t prefix = 0; // of the keys that are still candidates
    uint64_t mask   = 0;
    uint32_t n_left = k; // of the candidates to choose

    for (int shift = 56; shift >= 0; shift -= 8) {
        for (uint32_t i = g.rank(); i < 256; i += g.size()) {
            s.hist[i] = 0;
        }
        g.sync();
        for (uint32_t i = g.rank(); i < n; i += g.size()) {
            const uint64_t key = topk_key(score[i], i);
            if ((key & mask) == prefix) {
                g.add(&s.hist[key >> shift & 0xff], 1);
            }
        }
        g.sync();
        for (uint32_t i = g.rank(); i < 16; i += g.size()) {
            s.sum[i] = 0;
            for (uint32_t j = 16*i; j < 16*i + 16; ++j) {
                s.sum[i] += s.hist[j];
            }
        }
        g.sync();
        // the bin that holds the last of the k best
        for (uint32_t i = g.rank(); i < 256; i += g.size()) {
            uint32_t above = 0;
            for (uint32_t j = i + 1; j%16 != 0; ++j) {
                above += s.hist[j];
            }
            for (uint32_t j = i/16 + 1; j < 16; ++j) {
                above += s.sum[j];
            }
            if (above < n_left && above + s.hist[i] >= n_left) {
                s.bin   = i;
                s.above = above;
            }
        }
        g.sync();
        prefix |= uint64_t(s.bin) << shift;
        mask   |= uint64_t(0xff)  << shift;
        n_left -= s.above;

        const bool decided = s.hist[s.bin] == n_left;
        g.sync();
        if (decided) {
            break;
        }
    }

    if (g.rank() == 0) {
        s.count = 0;
    }
    g.sync();
    for (uint32_t i = g.rank(); i < n; i += g.size()) {
        const uint64_t key = topk_key(score[i], i);
        if ((key & mask) >= prefix) {
            keys[g.add(&s.count, 1)] = key;
        }
    }
    g.sync();
    for (uint32_t i = g.rank(); i < k; i += g.size()) {
        uint32_t rank = 0;
        for (uint32_t j = 0; j < k; ++j) {
            rank += keys[j] > keys[i];
        }
        out[rank] = int32_t(keys[i] & 0xffffffff);
    }
    g.sync();
}

} // namespace infllm
