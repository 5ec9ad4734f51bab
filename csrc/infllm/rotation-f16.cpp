#include "rotation.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define INFLLM_HAVE_F16
#include <cpuid.h>
#include <immintrin.h>
#elif defined(__aarch64__) && defined(__GNUC__) && !defined(__AARCH64EB__)
#define INFLLM_HAVE_F16
#include <arm_neon.h>
#endif

namespace infllm {

#ifdef INFLLM_HAVE_F16

// Eight numbers at once. A product and a sum are rounded each, without FMA: the results are those of pager.h, bit for bit.
#ifdef __x86_64__

// The library is not compiled for a certain processor, so the instructions are asked for here, and the caller has checked
// that they are there.
#define INFLLM_F16 __attribute__((target("avx2,f16c")))

using f32x8 = __m256;

INFLLM_F16 static inline f32x8 load(const uint16_t * p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
}

INFLLM_F16 static inline void store(uint16_t * p, const f32x8 & v) {
    _mm_storeu_si128(reinterpret_cast<__m128i *>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}

INFLLM_F16 static inline f32x8 mul_add(const f32x8 & a, const float * c, const f32x8 & b, const float * s) {
    return _mm256_add_ps(_mm256_mul_ps(a, _mm256_loadu_ps(c)), _mm256_mul_ps(b, _mm256_loadu_ps(s)));
}

INFLLM_F16 static inline f32x8 exchange_neighbours(const f32x8 & v) {
    return _mm256_permute_ps(v, 0xb1);
}

// not every compiler knows f16c by its name
static bool cpu_has_f16() {
    unsigned int eax, ebx, ecx = 0, edx;
    return __builtin_cpu_supports("avx2") && __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}

#else

#define INFLLM_F16

using f32x8 = float32x4x2_t;

static inline f32x8 load(const uint16_t * p) {
    const float16x8_t v = vreinterpretq_f16_u16(vld1q_u16(p));
    return { { vcvt_f32_f16(vget_low_f16(v)), vcvt_high_f32_f16(v) } };
}

static inline void store(uint16_t * p, const f32x8 & v) {
    vst1q_u16(p, vreinterpretq_u16_f16(vcvt_high_f16_f32(vcvt_f16_f32(v.val[0]), v.val[1])));
}

static inline f32x8 mul_add(const f32x8 & a, const float * c, const f32x8 & b, const float * s) {
    return { {
        vaddq_f32(vmulq_f32(a.val[0], vld1q_f32(c)),     vmulq_f32(b.val[0], vld1q_f32(s))),
        vaddq_f32(vmulq_f32(a.val[1], vld1q_f32(c + 4)), vmulq_f32(b.val[1], vld1q_f32(s + 4))),
    } };
}

static inline f32x8 exchange_neighbours(const f32x8 & v) {
    return { { vrev64q_f32(v.val[0]), vrev64q_f32(v.val[1]) } };
}

// of the 64-bit processors all convert them
static bool cpu_has_f16() {
    return true;
}

#endif

// x[i] = x[i]*c[i] + x[partner of i]*s[i]
INFLLM_F16 static void rotate(uint16_t * x, uint32_t n_vec, uint32_t n_embd_head, uint32_t n_rot, bool neox,
        const float * c, const float * s) {
    const uint32_t n_half = n_rot/2;

    for (uint32_t v = 0; v < n_vec; ++v, x += n_embd_head) {
        if (neox) {
            for (uint32_t i = 0; i < n_half; i += 8) {
                const f32x8 a = load(x + i);
                const f32x8 b = load(x + i + n_half);
                store(x + i,          mul_add(a, c + i, b, s + i));
                store(x + i + n_half, mul_add(b, c + i, a, s + i + n_half));
            }
        } else {
            for (uint32_t i = 0; i < n_rot; i += 8) {
                const f32x8 a = load(x + i);
                store(x + i, mul_add(a, c + i, exchange_neighbours(a), s + i));
            }
        }
    }
}

bool rotation::apply_f16(uint16_t * x, uint32_t n_vec, uint32_t n_embd_head) const {
    static const bool has_f16 = cpu_has_f16();

    if (!has_f16 || n_rot()%16 != 0) {
        return false;
    }

    std::vector<float> c(n_rot());
    std::vector<float> s(n_rot());
    for (uint32_t i = 0; i < n_rot()/2; ++i) {
        const uint32_t i0 = neox ? i             : 2*i;
        const uint32_t i1 = neox ? i + n_rot()/2 : 2*i + 1;
        c[i0] = c[i1] = cs[2*i];
        s[i0] = -cs[2*i + 1];
        s[i1] =  cs[2*i + 1];
    }
    rotate(x + rot0, n_vec, n_embd_head, n_rot(), neox, c.data(), s.data());

    return true;
}

#else

bool rotation::apply_f16(uint16_t *, uint32_t, uint32_t) const {
    return false;
}

#endif

} // namespace infllm
