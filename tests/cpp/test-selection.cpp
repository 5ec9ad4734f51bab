// the choice of the best blocks, against brute force

#include "on-one-thread.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <random>

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
