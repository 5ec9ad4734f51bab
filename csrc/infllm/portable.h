#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

// What runs on a device is written once, as templates over the group of threads that runs them together: one thread on the
// host, a thread block in CUDA (csrc/cuda). A group has rank(), size(), sync(), and add(p, n), an atomic p += n that returns
// the old value. Between two sync() every thread does its share of a loop: for (i = g.rank(); i < n; i += g.size()).
#if defined(__CUDACC__)
#define INFLLM_PORTABLE __host__ __device__ inline
#else
#define INFLLM_PORTABLE inline
#endif

namespace infllm {

struct single_thread {
    uint32_t rank() const { return 0; }
    uint32_t size() const { return 1; }
    void     sync() const {}
    uint32_t add(uint32_t * p, uint32_t n) const {
        const uint32_t old = *p;
        *p += n;
        return old;
    }
};

INFLLM_PORTABLE uint32_t float_bits(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof(u));
    return u;
}

INFLLM_PORTABLE float float_from_bits(uint32_t u) {
    float f;
    memcpy(&f, &u, sizeof(f));
    return f;
}

// IEEE half floats, rounded to nearest even
INFLLM_PORTABLE float half_to_float(uint16_t h) {
#if defined(__CUDA_ARCH__)
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
    return f;
#else
    const uint32_t sign = uint32_t(h & 0x8000) << 16;
    const uint32_t rest = h & 0x7fff;
    if (rest >= 0x7c00) { // infinity, NaN
        return float_from_bits(sign | 0x7f800000 | (rest & 0x3ff) << 13);
    }
    if (rest >= 0x0400) {
        return float_from_bits(sign | ((rest << 13) + ((127 - 15) << 23)));
    }
    // below the smallest normal number: a multiple of 2^-24
    const float f = float(rest)*5.9604644775390625e-8f;
    return sign ? -f : f;
#endif
}

INFLLM_PORTABLE uint16_t half_from_float(float f) {
#if defined(__CUDA_ARCH__)
    uint16_t h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
#else
    const uint32_t u    = float_bits(f);
    const uint32_t sign = u >> 16 & 0x8000;
    const uint32_t rest = u & 0x7fffffff;
    if (rest >= 0x7f800000) {
        return uint16_t(sign | 0x7c00 | (rest > 0x7f800000 ? 0x200 : 0));
    }
    if (rest >= 0x477ff000) { // rounds to 65536 or more
        return uint16_t(sign | 0x7c00);
    }
    if (rest >= 0x38800000) {
        return uint16_t(sign | (rest - ((127 - 15) << 23) + 0x0fff + (rest >> 13 & 1)) >> 13);
    }
    // adding 0.5 leaves multiples of 2^-24 in the low bits, rounded
    return uint16_t(sign | (float_bits(float_from_bits(rest) + 0.5f) - 0x3f000000));
#endif
}

} // namespace infllm
