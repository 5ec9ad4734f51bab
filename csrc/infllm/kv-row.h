#pragma once

#include "portable.h"

namespace infllm {

// Values of K and V as they lie in memory: half floats, or ggml's blocks of 32 values with half floats as scale and least value.
// Layouts and rounding are those of ggml-quants.c (quantize_row_q8_0_ref, quantize_row_q4_0_ref). Devices page the first three
// types; the others are read here, and written by ggml.
enum kv_type : uint32_t { KV_F16, KV_Q8_0, KV_Q4_0, KV_BF16, KV_Q4_1, KV_Q5_0, KV_Q5_1, KV_IQ4_NL };

INFLLM_PORTABLE uint64_t kv_row_bytes(kv_type type, uint64_t n) {
    switch (type) {
        case KV_F16:
        case KV_BF16:   return 2*n;
        case KV_Q8_0:   return n/32*34;
        case KV_Q4_0:
        case KV_IQ4_NL: return n/32*18;
        case KV_Q4_1:   return n/32*20;
        case KV_Q5_0:   return n/32*22;
        case KV_Q5_1:   return n/32*24;
    }
    return 0;
}

INFLLM_PORTABLE uint16_t load_u16(const uint8_t * p)             { return uint16_t(p[0] | p[1] << 8); }
INFLLM_PORTABLE void     store_u16(uint8_t * p, uint16_t value)  { p[0] = uint8_t(value); p[1] = uint8_t(value >> 8); }

// the values of 4 bits of iq4_nl (kvalues_iq4nl of ggml-common.h)
INFLLM_PORTABLE int kv_iq4_nl(uint32_t quant) {
    const int8_t values[16] = { -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113 };
    return values[quant];
}

// value i of a row
INFLLM_PORTABLE float kv_load(kv_type type, const uint8_t * row, uint32_t i) {
    if (type == KV_F16 || type == KV_BF16) {
        uint16_t h;
        memcpy(&h, row + 2*i, sizeof(h));
        return type == KV_F16 ? half_to_float(h) : float_from_bits(uint32_t(h) << 16);
    }
    const uint32_t  j     = i%32;
    const uint8_t * block = row + kv_row_bytes(type, i - j);
    const float     d     = half_to_float(load_u16(block));
    if (type == KV_Q8_0) {
        return d*float(int8_t(block[2 + j]));
    }
    const bool      has_min  = type == KV_Q4_1 || type == KV_Q5_1;
    const bool      has_high = type == KV_Q5_0 || type == KV_Q5_1; // fifth bits come first
    const uint8_t * high     = block + (has_min ? 4 : 2);
    const uint8_t * low      = high + (has_high ? 4 : 0);
    const uint32_t  q        = (j < 16 ? low[j] & 0x0f : low[j - 16] >> 4) | (has_high ? (high[j/8] >> j%8 & 1) << 4 : 0);
    return type == KV_IQ4_NL ? d*float(kv_iq4_nl(q)) :
           has_min           ? d*float(q) + half_to_float(load_u16(block + 2)) :
                               d*float(int(q) - (has_high ? 16 : 8));
}

// x as a whole number from min to max, which it is near to; what is none, of a model whose values are none, becomes min
INFLLM_PORTABLE int kv_quant(float x, float min, float max) {
    return int(x > min ? (x < max ? x : max) : min);
}

// the values x [32] as a block of q8_0 or q4_0
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
            block[2 + j] = uint8_t(kv_quant(roundf(x[j]*id), -127.0f, 127.0f));
        }
        return;
    }
    const float d  = max/-8.0f;
    const float id = d != 0.0f ? 1.0f/d : 0.0f;
    store_u16(block, half_from_float(d));
    for (uint32_t j = 0; j < 16; ++j) {
        const int lo = kv_quant(x[j     ]*id + 8.5f, 0.0f, 15.0f);
        const int hi = kv_quant(x[j + 16]*id + 8.5f, 0.0f, 15.0f);
        block[2 + j] = uint8_t(lo | hi << 4);
    }
}

} // namespace infllm
