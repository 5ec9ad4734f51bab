#include "kv-row.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>

using namespace infllm;

TEST(Half, RoundTripsAllValues) {
    for (uint32_t h = 0; h < 0x10000; ++h) {
        const float f = half_to_float(uint16_t(h));
        if (std::isnan(f)) {
            EXPECT_EQ(h & 0x7c00, 0x7c00u);
            EXPECT_TRUE(std::isnan(half_to_float(half_from_float(f))));
        } else {
            ASSERT_EQ(half_from_float(f), h);
        }
    }
    EXPECT_EQ(half_to_float(0x3c00), 1.0f);
    EXPECT_EQ(half_to_float(0xc000), -2.0f);
    EXPECT_EQ(half_to_float(0x0001), std::ldexp(1.0f, -24));
    EXPECT_EQ(half_to_float(0x7bff), 65504.0f);
}

TEST(Half, RoundsToNearestEven) {
    std::mt19937 rng(1);
    for (int i = 0; i < 100000; ++i) {
        const uint16_t a = uint16_t(rng()%0x7bff); // a and the next value
        const float    f = half_to_float(a);
        const float    g = half_to_float(uint16_t(a + 1));
        const float    m = (f + g)/2;              // exact in a float
        EXPECT_EQ(half_from_float(std::nextafter(m, f)), a);
        EXPECT_EQ(half_from_float(std::nextafter(m, g)), a + 1);
        EXPECT_EQ(half_from_float(m), a%2 == 0 ? a : a + 1);
        EXPECT_EQ(half_from_float(-m), 0x8000 | (a%2 == 0 ? a : a + 1));
    }
    EXPECT_EQ(half_from_float(65519.99f), 0x7bff);
    EXPECT_EQ(half_from_float(65520.0f),  0x7c00);
}

TEST(KvRow, QuantisedValuesAreClose) {
    std::mt19937 rng(1);
    std::normal_distribution<float> normal;
    for (const kv_type type : { KV_Q8_0, KV_Q4_0 }) {
        for (int n = 0; n < 1000; ++n) {
            float x[32];
            float max = 0.0f;
            for (auto & f : x) {
                f   = n == 0 ? 0.0f : normal(rng);
                max = std::max(max, std::fabs(f));
            }
            uint8_t block[34];
            kv_store_block(type, block, x);
            for (uint32_t i = 0; i < 32; ++i) {
                // half a step and the rounding of the scale; a step at the end of the range of q4_0 that has no value of its own
                EXPECT_NEAR(kv_load(type, block, i), x[i], type == KV_Q8_0 ? 0.57f*max/127 : 1.01f*max/8);
            }
        }
    }
}
