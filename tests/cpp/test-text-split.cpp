// where ubatches end: bounded, the question alone, and the same wherever reading begins

#include "text-split.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

using infllm::text_split;

namespace {

std::vector<uint32_t> ends(const text_split & split, uint32_t p0, uint32_t p1) {
    std::vector<uint32_t> res;
    while (p0 < p1) {
        p0 = split.next(p0, p1);
        res.push_back(p0);
    }
    return res;
}

} // namespace

TEST(TextSplit, QuestionIsAUbatchOfItsOwn) {
    EXPECT_EQ(ends({ 512, 32 }, 0, 1200), (std::vector<uint32_t> { 512, 1024, 1152, 1168, 1200 }));
    EXPECT_EQ(ends({ 512, 32 }, 0, 1184), (std::vector<uint32_t> { 512, 1024, 1152, 1184 }));
    EXPECT_EQ(ends({ 512,  0 }, 0, 1200), (std::vector<uint32_t> { 512, 1024, 1200 }));
    EXPECT_EQ(ends({ 512, 32 }, 1190, 1200), (std::vector<uint32_t> { 1200 }));
    EXPECT_EQ(ends({ 16, 32 }, 100, 150), (std::vector<uint32_t> { 112, 128, 134, 150 }));
}

TEST(TextSplit, AnyTextIsCoveredByUbatchesOfAtMostTheirSize) {
    std::mt19937 rng(1);
    for (int i = 0; i < 20000; ++i) {
        const text_split split = { 1 + uint32_t(rng()%600), uint32_t(rng()%70) };
        const uint32_t   begin = rng()%3000;
        uint32_t p = begin;
        for (const uint32_t end : ends(split, begin, begin + 1 + rng()%3000)) {
            ASSERT_GT(end, p);
            ASSERT_LE(end - p, split.n_ubatch);
            p = end;
        }
    }
}

// a batch that is split by itself, as the memory does that sees no more of the text, ends its ubatches where the text does
TEST(TextSplit, BatchesAreSplitAsTheText) {
    std::mt19937 rng(3);
    for (int i = 0; i < 5000; ++i) {
        const text_split split   = { 1 + uint32_t(rng()%300), uint32_t(rng()%64) };
        const uint32_t   n_batch = split.n_ubatch + rng()%1000;
        const uint32_t   p1      = 1 + rng()%4000;

        std::vector<uint32_t> all;
        for (uint32_t p0 = 0; p0 < p1;) {
            const uint32_t end = split.batch_end(p0, p1, n_batch);
            ASSERT_GT(end, p0);
            ASSERT_LE(end - p0, n_batch);
            const auto part = ends({ split.n_ubatch, end == p1 ? split.n_end : 0 }, p0, end);
            all.insert(all.end(), part.begin(), part.end());
            p0 = end;
        }
        ASSERT_EQ(all, ends(split, 0, p1)) << split.n_ubatch << " " << split.n_end << " " << n_batch;
    }
}

// interrupted after any ubatch and resumed there, and for another question at any multiple of n_ubatch
TEST(TextSplit, IsTheSameFromAnyOfItsEnds) {
    std::mt19937 rng(2);
    for (int i = 0; i < 2000; ++i) {
        const text_split split = { 64 + uint32_t(rng()%512), uint32_t(rng()%64) };
        const uint32_t   p1    = 1 + rng()%4000;
        const auto       all   = ends(split, 0, p1);
        for (size_t j = 0; j + 1 < all.size(); ++j) {
            ASSERT_EQ(ends(split, all[j], p1), std::vector<uint32_t>(all.begin() + j + 1, all.end()));
        }

        const auto other = ends(split, 0, p1 + rng()%100);
        for (size_t j = 0; j < all.size() && all[j] + split.n_end < p1; ++j) {
            if (all[j]%split.n_ubatch == 0) {
                ASSERT_EQ(other[j], all[j]);
            }
        }
    }
}
