#include "rotation.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#include <immintrin.h>

namespace infllm {

// The library is not compiled for a certain processor, so the instructions are asked for here, and the caller has checked
// that they are there.
// FMA is left out: the results are those of pager.h, bit for bit.
#define INFLLM_F16C __attribute__((target("avx2,f16c")))

INFLLM_F16C static inline __m256 load(const uint16_t * p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
}

INFLLM_F16C static inline void store(uint16_t * p, const __m256 & v) {
    _mm_storeu_si128(reinterpret_cast<__m128i *>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}

INFLLM_F16C static inline __m256 mul_add(__m256 a, const float * c, __m256 b, const float * s) {
    return _mm256_add_ps(_mm256_mul_ps(a, _mm256_loadu_ps(c)), _mm256_mul_ps(b, _mm256_loadu_ps(s)));
}

// x[i] = x[i]*c[i] + x[partner of i]*s[i], eight at a time
INFLLM_F16C static void rotate(uint16_t * x, uint32_t n_vec, uint32_t n_embd_head, uint32_t n_rot, bool neox,
        const float * c, const float * s) {
    const uint32_t n_half = n_rot/2;

    for (uint32_t v = 0; v < n_vec; ++v, x += n_embd_head) {
        if (neox) {
            for (uint32_t i = 0; i < n_half; i += 8) {
                const __m256 a = load(x + i);
                const __m256 b = load(x + i + n_half);
                store(x + i,          mul_add(a, c + i, b, s + i));
                store(x + i + n_half, mul_add(b, c + i, a, s + i + n_half));
            }
        } else {
            for (uint32_t i = 0; i < n_rot; i += 8) {
                const __m256 a = load(x + i);
                const __m256 b = _mm256_permute_ps(a, 0xb1); // neighbours exchanged
                store(x + i, mul_add(a, c + i, b, s + i));
            }
        }
    }
}

// not every compiler knows f16c by its name
static bool cpu_has_f16c() {
    unsigned int eax, ebx, ecx = 0, edx;
    return __builtin_cpu_supports("avx2") && __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}

bool rotation::apply_f16(uint16_t * x, uint32_t n_vec, uint32_t n_embd_head) const {
    static const bool has_f16c = cpu_has_f16c();

    if (!has_f16c || n_rot()%16 != 0) {
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

} // namespace infllm

#else

namespace infllm {

bool rotation::apply_f16(uint16_t *, uint32_t, uint32_t) const {
    return false;
}

} // namespace infllm

#endif
