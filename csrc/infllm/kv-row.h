#pragma once

#include "portable.h"

namespace infllm {

// Values of K and V as they lie in memory: half floats, or ggml's blocks of 32 values with a half float as their scale.
// Layouts and rounding are those of ggml-quants.c (quantize_row_q8_0_ref, quantize_row_q4_0_ref).
enum kv_type : uint32_t { KV_F16, KV_Q8_0, KV_Q4_0 };

INFLLM_PORTABLE uint64_t kv_row_bytes(kv_type type, uint64_t n) {
    return type == KV_F16 ? 2*n : n/32*(type == KV_Q8_0 ? 34 : 18);
}

INFLLM_PORTABLE uint16_t load_u16(const uint8_t * p)             { return uint16_t(p[0] | p[1] << 8); }
INFLLM_PORTABLE void     store_u16(uint8_t * p, uint16_t value)  { p[0] = uint8_t(value); p[1] = uint8_t(value >> 8); }

// value i of a row
INFLLM_PORTABLE float kv_load(kv_type type, const uint8_t * row, uint32_t i) {
    if (type == KV_F16) {
        uint16_t h;
        memcpy(&h, row + 2*i, sizeof(h));
        return half_to_float(h);
    }
    const uint32_t j = i%32;
    if (type == KV_Q8_0) {
        const uint8_t * block = row + i/32*34;
        return half_to_float(load_u16(block))*float(int8_t(block[2 + j]));
    }
    const uint8_t * block = row + i/32*18;
    const int       quant = j < 16 ? block[2 + j] & 0x0f : block[2 + j - 16] >> 4;
    return half_to_float(load_u16(block))*float(quant - 8);
}

// the values x [32] as a block of a quantised type
INFLLM_PORTABLE void kv_store_block(kv_type type, uint8_t * block, const float * x) {
    float max = 0.0f; // the largest in magnitude, with its sign
    for (uint32_t j = 0; j < 32; ++j) {
        max = fabsf(x[j]) > fabsf(max) ? x[j] : max;
    }
    if (type == KV_Q8_0) {
        const float d  = fabsf(max)/127.0f;
        const float id = d != 0.0f ? 1.0f/d : 0.0f;
        store_u16(block, half_from_float(d));
        for (uint32_t j = 0; j < 32; ++j) {
            block[2 + j] = uint8_t(int8_t(roundf(x[j]*id)));
        }
        return;
    }
    const float d  = max/-8.0f;
    const float id = d != 0.0f ? 1.0f/d : 0.0f;
    store_u16(block, half_from_float(d));
    for (uint32_t j = 0; j < 16; ++j) {
        const int lo = int(x[j     ]*id + 8.5f);
        const int hi = int(x[j + 16]*id + 8.5f);
        block[2 + j] = uint8_t((lo > 15 ? 15 : lo) | (hi > 15 ? 15 : hi) << 4);
    }
}

} // namespace infllm
