#pragma once

#include "kv-row.h"

namespace infllm {

// Rows of half floats as they lie in the store: quantised after a Hadamard rotation of groups of values, which spreads an outlier over
// its group, so that the scale of 32 values does not follow it (QuaRot, Ashkboos et al. 2024, arXiv 2404.00456; upstream does so to
// a quantised cache). The rotation is its own inverse. Rows are contiguous and hold a multiple of 32 values; so what is coded is a
// sequence of groups.

static constexpr uint32_t CODEC_MAX_GROUP = 128;

// values of a group: the largest power of two that divides a row, within bounds
INFLLM_PORTABLE uint32_t codec_group(uint64_t n_row) {
    uint32_t n = 32;
    while (n < CODEC_MAX_GROUP && n_row%(2*n) == 0) {
        n *= 2;
    }
    return n;
}

INFLLM_PORTABLE void hadamard(float * x, uint32_t n) {
    for (uint32_t h = 1; h < n; h *= 2) {
        for (uint32_t i = 0; i < n; i += 2*h) {
            for (uint32_t j = i; j < i + h; ++j) {
                const float a = x[j];
                const float b = x[j + h];
                x[j]     = a + b;
                x[j + h] = a - b;
            }
        }
    }
    const float scale = n == 32 ? 0.17677669529663687f : n == 64 ? 0.125f : 0.08838834764831843f; // 1/sqrt(n)
    for (uint32_t i = 0; i < n; ++i) {
        x[i] *= scale;
    }
}

// n_row: values of a row, n: of all rows. A group of threads may have a faster way (see llama-infllm-host-pager.cpp)
template <typename Group>
INFLLM_PORTABLE void encode_rows(const Group & g, kv_type type, uint64_t n_row, const uint8_t * rows, uint64_t n, uint8_t * coded) {
    const uint32_t n_group = codec_group(n_row);
    for (uint64_t i = uint64_t(g.rank())*n_group; i < n; i += uint64_t(g.size())*n_group) {
        float x[CODEC_MAX_GROUP];
        for (uint32_t j = 0; j < n_group; ++j) {
            x[j] = kv_load(KV_F16, rows + 2*i, j);
        }
        hadamard(x, n_group);
        for (uint32_t j = 0; j < n_group; j += 32) {
            kv_store_block(type, coded + kv_row_bytes(type, i + j), x + j);
        }
    }
}

template <typename Group>
INFLLM_PORTABLE void decode_rows(const Group & g, kv_type type, uint64_t n_row, const uint8_t * coded, uint64_t n, uint8_t * rows) {
    const uint32_t n_group = codec_group(n_row);
    for (uint64_t i = uint64_t(g.rank())*n_group; i < n; i += uint64_t(g.size())*n_group) {
        float x[CODEC_MAX_GROUP];
        for (uint32_t j = 0; j < n_group; ++j) {
            x[j] = kv_load(type, coded + kv_row_bytes(type, i), j);
        }
        hadamard(x, n_group);
        for (uint32_t j = 0; j < n_group; ++j) {
            const uint16_t h = half_from_float(x[j]);
            memcpy(rows + 2*(i + j), &h, sizeof(h));
        }
    }
}

} // namespace infllm
