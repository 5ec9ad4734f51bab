// rotations: pairing of the dimensions, composition, inverse

#include "rotation.h"

#include "portable.h"
#include "vectors.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

using infllm::rotation;

namespace {

double theta(uint32_t pair, uint32_t n_rot) {
    return std::pow(10000.0, -2.0*pair/n_rot);
}

rotation make_rotation(bool neox, uint32_t n_rot, double dist) {
    rotation rot;
    rot.neox = neox;
    for (uint32_t i = 0; i < n_rot/2; ++i) {
        rot.cs.push_back(float(std::cos(dist*theta(i, n_rot))));
        rot.cs.push_back(float(std::sin(dist*theta(i, n_rot))));
    }
    return rot;
}

} // namespace

class Rotation : public testing::TestWithParam<bool> {}; // neox

INSTANTIATE_TEST_SUITE_P(Pairing, Rotation, testing::Bool(), [](const auto & info) { return info.param ? "Neox" : "Norm"; });

TEST_P(Rotation, PairsTheRightDimensions) {
    const bool neox = GetParam();

    for (uint32_t n_rot : { 2, 8, 12, 16 }) { // up to n_embd_head
        const uint32_t n_embd_head = 16;
        const uint32_t n_vec       = 3;

        const auto x0 = random_vector(n_vec*n_embd_head, n_rot);
        auto x = x0;
        make_rotation(neox, n_rot, 7).apply(x.data(), n_vec, n_embd_head);

        auto expected = x0;
        for (uint32_t v = 0; v < n_vec; ++v) {
            for (uint32_t i = 0; i < n_rot/2; ++i) {
                const uint32_t i0 = v*n_embd_head + (neox ? i           : 2*i);
                const uint32_t i1 = v*n_embd_head + (neox ? i + n_rot/2 : 2*i + 1);
                const double   a  = 7*theta(i, n_rot);
                expected[i0] = float(x0[i0]*std::cos(a) - x0[i1]*std::sin(a));
                expected[i1] = float(x0[i0]*std::sin(a) + x0[i1]*std::cos(a));
            }
        }
        expect_near(x, expected);
    }
}

TEST_P(Rotation, LeavesTheOtherDimensionsAlone) {
    const auto x0 = random_vector(2*24, 1);
    auto x = x0;
    make_rotation(GetParam(), 8, 3).apply(x.data(), 2, 24);

    for (uint32_t i = 0; i < x.size(); ++i) {
        if (i%24 >= 8) {
            EXPECT_EQ(x[i], x0[i]);
        } else {
            EXPECT_NE(x[i], x0[i]);
        }
    }
}

TEST_P(Rotation, CompositionAddsDistances) {
    const bool neox = GetParam();

    const auto sum = make_rotation(neox, 16, 11)*make_rotation(neox, 16, -30);
    EXPECT_EQ(sum.neox, neox);
    expect_near(sum.cs, make_rotation(neox, 16, -19).cs);

    // and is what one gets by applying one after the other
    auto x = random_vector(20, 2);
    auto y = x;
    make_rotation(neox, 16, -30).apply(x.data(), 1, 20);
    make_rotation(neox, 16,  11).apply(x.data(), 1, 20);
    sum.apply(y.data(), 1, 20);
    expect_near(x, y);
}

TEST_P(Rotation, InverseUndoes) {
    const bool neox = GetParam();
    const auto rot  = make_rotation(neox, 16, 123);

    expect_near(rot.inverse().cs, make_rotation(neox, 16, -123).cs);

    const auto x0 = random_vector(16*5, 3);
    auto x = x0;
    rot.apply(x.data(), 5, 16);
    rot.inverse().apply(x.data(), 5, 16);
    expect_near(x, x0);
}

TEST_P(Rotation, ScoresDependOnTheDistanceOnly) {
    const bool neox = GetParam();

    const auto score = [&](double pos_q, double pos_k) {
        auto q = random_vector(16, 4);
        auto k = random_vector(16, 5);
        make_rotation(neox, 16, pos_q).apply(q.data(), 1, 16);
        make_rotation(neox, 16, pos_k).apply(k.data(), 1, 16);
        float sum = 0.0f;
        for (int i = 0; i < 16; ++i) {
            sum += q[i]*k[i];
        }
        return sum;
    };

    EXPECT_NEAR(score(100, 60), score(40, 0), 1e-3f);
    EXPECT_GT(std::abs(score(100, 60) - score(100, 0)), 1e-2f);
}

TEST(RotationEmpty, DoesNothing) {
    const rotation rot;
    EXPECT_TRUE(rot.empty());

    const auto x0 = random_vector(8, 6);
    auto x = x0;
    rot.apply(x.data(), 1, 8);
    EXPECT_EQ(x, x0);
}

TEST_P(Rotation, HalfFloatsAreRotatedAlike) {
    const uint32_t n_embd_head = 80;
    const uint32_t n_vec       = 5;

    auto x = random_vector(n_vec*n_embd_head, 7);

    std::vector<uint16_t> half(x.size());
    std::transform(x.begin(), x.end(), half.begin(), infllm::half_from_float);
    std::transform(half.begin(), half.end(), x.begin(), infllm::half_to_float);

    const auto rot = make_rotation(GetParam(), 64, 1234.0);
    if (!rot.apply_f16(half.data(), n_vec, n_embd_head)) {
        GTEST_SKIP() << "this processor has no instructions for half floats";
    }
    rot.apply(x.data(), n_vec, n_embd_head);

    std::vector<uint16_t> expected(x.size());
    std::transform(x.begin(), x.end(), expected.begin(), infllm::half_from_float);
    EXPECT_EQ(half, expected);
}

TEST(RotationHalf, RefusesWhatItCannotVectorise) {
    std::vector<uint16_t> x(24, 0x3c00); // 1.0
    EXPECT_FALSE(make_rotation(false, 24, 3.0).apply_f16(x.data(), 1, 24));
    EXPECT_EQ(x, std::vector<uint16_t>(24, 0x3c00));
}

TEST_P(Rotation, ByAnyNumberOfBlocks) {
    const uint32_t n_rot = 8;
    const uint32_t size  = 4;
    const uint32_t n_max = 3*infllm::block_rotations::N_LOW + 5;

    infllm::block_rotations by;
    for (uint32_t i = 0; i < by.n_low(n_max); ++i) {
        by.low.push_back(make_rotation(GetParam(), n_rot, double(i)*size));
    }
    for (uint32_t i = 0; i < by.n_high(n_max); ++i) {
        by.high.push_back(make_rotation(GetParam(), n_rot, double(i)*size*by.N_LOW));
    }
    for (const int64_t n : { 0, 1, -1, 4095, 4096, -4096, 10000, -int(n_max), int(n_max) }) {
        const auto expected = make_rotation(GetParam(), n_rot, double(n)*size);
        const auto rot      = by.by(n);
        ASSERT_EQ(rot.neox, GetParam());
        for (uint32_t i = 0; i < n_rot; ++i) {
            ASSERT_NEAR(rot.cs[i], expected.cs[i], 1e-6) << n;
        }
    }
    EXPECT_EQ(by.n_low(10), 11u);
}
