// scores of blocks and the choice of the best, against brute force

#include "selection.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <random>

using infllm::block_scores;
using infllm::select_topk;

TEST(BlockScores, EqualBruteForce) {
    std::mt19937 rng(1);
    std::normal_distribution<float> normal;

    for (uint32_t n_sub : { 1, 2, 3, 7 }) {
        const uint32_t n_block = 13;
        const uint32_t n_pad   = 16;

        // what lies in the padding must not matter
        std::vector<float> scores(n_sub*n_pad, std::numeric_limits<float>::quiet_NaN());
        for (uint32_t s = 0; s < n_sub; ++s) {
            for (uint32_t b = 0; b < n_block; ++b) {
                scores[s*n_pad + b] = normal(rng) - 3.0f;
            }
        }

        std::vector<float> out(99, 1e9f); // left over from an earlier call
        block_scores(scores.data(), n_block, 1, n_pad, n_sub, out);

        ASSERT_EQ(out.size(), n_block);
        for (uint32_t b = 0; b < n_block; ++b) {
            float best = -std::numeric_limits<float>::infinity();
            for (uint32_t s = 0; s < n_sub; ++s) {
                best = std::max(best, scores[s*n_pad + b]);
            }
            EXPECT_EQ(out[b], best) << "block " << b << ", n_sub " << n_sub;
        }
    }
}

TEST(BlockScores, BestRepresentativeKeyCounts) {
    // 2 sub-chunks, 2 blocks of 3 keys each, one row of padding
    const std::vector<float> scores = {
        0.0f, 1.0f, 2.0f,   5.0f, 4.0f, 3.0f,   9.0f,
        0.0f, 7.0f, 0.0f,  -1.0f, 4.5f, 0.0f,   9.0f,
    };
    std::vector<float> out;
    block_scores(scores.data(), 2, 3, 7, 2, out);
    EXPECT_EQ(out, (std::vector<float>{ 7.0f, 5.0f }));
}

TEST(BlockScores, NoBlocks) {
    std::vector<float> out(3);
    const float scores[1] = { 0.0f };
    block_scores(scores, 0, 4, 1, 1, out);
    EXPECT_TRUE(out.empty());
}

// A ubatch of 8 sub-chunks: 7 of text about block 0, and a question about block 1. The mean over all queries finds block
// 0 only, the best sub-chunk finds the needle.
TEST(BlockScores, BestSubChunkFindsWhatTheMeanMisses) {
    const uint32_t n_sub   = 8;
    const uint32_t n_block = 3;

    std::vector<float> scores(n_sub*n_block);
    std::vector<float> mean(n_block, 0.0f);
    for (uint32_t s = 0; s < n_sub; ++s) {
        const bool question = s == n_sub - 1;
        scores[s*n_block + 0] = question ? 0.0f : 1.0f;
        scores[s*n_block + 1] = question ? 5.0f : -0.5f;
        scores[s*n_block + 2] = 0.5f;
        for (uint32_t b = 0; b < n_block; ++b) {
            mean[b] += scores[s*n_block + b]/n_sub;
        }
    }

    std::vector<float>   out;
    std::vector<int32_t> best;

    block_scores(scores.data(), n_block, 1, n_block, n_sub, out);
    select_topk(out, 1, best);
    EXPECT_EQ(best, (std::vector<int32_t>{ 1 }));

    block_scores(mean.data(), n_block, 1, n_block, 1, out);
    select_topk(out, 2, best);
    EXPECT_EQ(std::count(best.begin(), best.end(), 1), 0);
}

TEST(SelectTopk, EqualsBruteForce) {
    std::mt19937 rng(2);

    for (int i = 0; i < 1000; ++i) {
        // few distinct values, so that there are many ties
        std::vector<float> scores(rng()%40);
        for (auto & s : scores) {
            s = float(rng()%6) - 3.0f;
        }
        const uint32_t k = rng()%20;

        // k times the best of the rest, searched from the most recent block on
        std::vector<int32_t> expected;
        std::vector<bool>    taken(scores.size());
        while (expected.size() < std::min<size_t>(k, scores.size())) {
            int32_t best = -1;
            for (int32_t b = int32_t(scores.size()) - 1; b >= 0; --b) {
                if (!taken[b] && (best < 0 || scores[b] > scores[best])) {
                    best = b;
                }
            }
            taken[best] = true;
            expected.push_back(best);
        }

        std::vector<int32_t> out = { 7, 7, 7 };
        select_topk(scores, k, out);
        ASSERT_EQ(out, expected);
    }
}

TEST(SelectTopk, MoreRecentBlockWinsATie) {
    std::vector<int32_t> out;
    select_topk({ 1.0f, 2.0f, 1.0f, 2.0f, 0.0f }, 3, out);
    EXPECT_EQ(out, (std::vector<int32_t>{ 3, 1, 2 }));
}

TEST(SelectTopk, AllBlocksWhenThereAreFew) {
    std::vector<int32_t> out;
    select_topk({ 0.5f, -1.0f }, 16, out);
    EXPECT_EQ(out, (std::vector<int32_t>{ 0, 1 }));
}
