// relevance of blocks, against brute force

#include "relevance.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

using infllm::block_relevance;
using infllm::relevance_scratch;
using infllm::repr_scores;
using infllm::single_thread;

namespace {

// scores of a layer; what lies in the padding must not matter
struct layer_scores {
    uint32_t n_block;
    uint32_t n_repr;
    uint32_t n_row;
    uint32_t n_sub;

    std::vector<float> data;

    layer_scores(uint32_t n_block, uint32_t n_repr, uint32_t n_sub) :
        n_block(n_block), n_repr(n_repr), n_row(n_block*n_repr + 3), n_sub(n_sub),
        data(n_sub*n_row, std::numeric_limits<float>::quiet_NaN()) {
    }

    template <typename F>
    void fill(F && value) {
        for (uint32_t s = 0; s < n_sub; ++s) {
            for (uint32_t r = 0; r < n_block*n_repr; ++r) {
                data[s*n_row + r] = value(s, r);
            }
        }
    }

    float best(uint32_t s, uint32_t b, bool after = false) const {
        const float * row = data.data() + s*n_row + b*n_repr;
        return *std::max_element(row - (after && b > 0 && n_repr > 1), row + n_repr);
    }

    repr_scores view() { return { data.data(), n_block, n_repr, n_row, n_sub }; }
};

std::vector<float> relevance(layer_scores scores) {
    std::vector<float> out(scores.n_block, 1e9f); // left over from an earlier call
    block_relevance(single_thread(), scores.view(), out.data());
    return out;
}

std::vector<float> relevance(std::vector<layer_scores> layers) {
    const auto & l = layers[0];

    relevance_scratch scratch;
    std::vector<float> sums(l.n_sub*l.n_block, 1e9f);
    std::vector<float> out(l.n_block, 1e9f);
    for (size_t il = 0; il < layers.size(); ++il) {
        block_relevance(single_thread(), layers[il].view(), il == 0, sums.data(), out.data(), scratch);
    }
    return out;
}

} // namespace

TEST(BlockRelevance, EqualsBruteForce) {
    std::mt19937 rng(1);
    std::normal_distribution<float> normal;

    for (uint32_t n_sub : { 1, 2, 3, 7 }) {
        for (uint32_t n_repr : { 1, 4 }) {
            layer_scores scores(13, n_repr, n_sub);
            scores.fill([&](uint32_t, uint32_t) { return normal(rng) - 3.0f; });

            const auto out = relevance(scores);
            for (uint32_t b = 0; b < scores.n_block; ++b) {
                float best = -std::numeric_limits<float>::infinity();
                for (uint32_t s = 0; s < n_sub; ++s) {
                    best = std::max(best, scores.best(s, b));
                }
                EXPECT_EQ(out[b], best) << "block " << b << ", n_sub " << n_sub << ", n_repr " << n_repr;
            }
        }
    }
}

// A ubatch of 8 sub-chunks: 7 of text about block 0, and a question about block 1. The mean over all of them would find
// block 0 only, the best sub-chunk finds the needle.
TEST(BlockRelevance, BestSubChunkFindsWhatTheMeanMisses) {
    layer_scores scores(3, 1, 8);
    scores.fill([](uint32_t s, uint32_t b) {
        const bool question = s == 7;
        return b == 0 ? (question ? 0.0f : 1.0f) : b == 1 ? (question ? 5.0f : -0.5f) : 0.5f;
    });
    layer_scores mean(3, 1, 1);
    mean.fill([&](uint32_t, uint32_t b) {
        float sum = 0.0f;
        for (uint32_t s = 0; s < 8; ++s) {
            sum += scores.best(s, b)/8.0f;
        }
        return sum;
    });

    const auto best = [](const std::vector<float> & out) { return std::max_element(out.begin(), out.end()) - out.begin(); };
    EXPECT_EQ(best(relevance(scores)), 1);
    EXPECT_NE(best(relevance(mean)),   1);
}

TEST(LayersAgree, EqualsBruteForce) {
    std::mt19937 rng(2);
    std::normal_distribution<float> normal;

    for (uint32_t n_sub : { 1, 3, 4, 9 }) {
        for (uint32_t n_block : { 2, 13, 700 }) {
            // scores of layers are of different size, and far from 0
            const uint32_t n_repr = n_block == 2 ? 1 : 3;
            std::vector<layer_scores> layers(3, layer_scores(n_block, n_repr, n_sub));
            for (size_t il = 0; il < layers.size(); ++il) {
                const float scale = std::pow(10.0f, float(il));
                layers[il].fill([&](uint32_t, uint32_t) { return scale*(normal(rng) + 100.0f); });
            }

            std::vector<double> expected(n_block, -std::numeric_limits<double>::infinity());
            for (uint32_t s = 0; s < n_sub; ++s) {
                std::vector<double> sum(n_block, 0.0);
                for (const auto & l : layers) {
                    double mean = 0.0;
                    double var  = 0.0;
                    for (uint32_t b = 0; b < n_block; ++b) {
                        mean += double(l.best(s, b, true))/n_block;
                    }
                    for (uint32_t b = 0; b < n_block; ++b) {
                        var += std::pow(double(l.best(s, b, true)) - mean, 2.0)/n_block;
                    }
                    for (uint32_t b = 0; b < n_block; ++b) {
                        sum[b] += var > 0.0 ? std::pow(std::max(double(l.best(s, b, true)) - mean, 0.0), 2.0)/var : 0.0;
                    }
                }
                for (uint32_t b = 0; b < n_block; ++b) {
                    expected[b] = std::max(expected[b], sum[b]);
                }
            }

            const auto out = relevance(layers);
            for (uint32_t b = 0; b < n_block; ++b) {
                ASSERT_NEAR(out[b], expected[b], 1e-2) << "block " << b << " of " << n_block << ", n_sub " << n_sub;
            }
        }
    }
}

// words like the current ones end a block: what came after them is in the next one
TEST(LayersAgree, FindWhatCameAfter) {
    layer_scores scores(40, 4, 1);
    scores.fill([](uint32_t, uint32_t r) { return r == 4*7 + 3 ? 5.0f : float(r%3)*0.1f; });

    const auto out = relevance(std::vector<layer_scores>{ scores });
    EXPECT_EQ(out[7], out[8]);
    EXPECT_EQ(std::count(out.begin(), out.end(), *std::max_element(out.begin(), out.end())), 2);
}

// a block that is never the best in one layer, but among the best in all of them
TEST(LayersAgree, FindWhatEveryLayerMisses) {
    std::vector<layer_scores> layers(4, layer_scores(40, 1, 1));
    std::vector<float> alone(40, 0.0f);
    for (uint32_t il = 0; il < layers.size(); ++il) {
        layers[il].fill([&](uint32_t, uint32_t b) { return b == 7 ? 3.0f : b == 10 + il ? 4.0f : float(b%3)*0.1f; });

        const auto out = relevance(layers[il]);
        EXPECT_NE(std::max_element(out.begin(), out.end()) - out.begin(), 7);
    }
    const auto out = relevance(layers);
    EXPECT_EQ(std::max_element(out.begin(), out.end()) - out.begin(), 7);
}

TEST(LayersAgree, ALayerThatDoesNotTellBlocksApartHasNoSay) {
    std::vector<layer_scores> layers(2, layer_scores(5, 1, 1));
    layers[0].fill([](uint32_t, uint32_t b) { return float(b*b); });
    layers[1].fill([](uint32_t, uint32_t)   { return 7.0f; });

    EXPECT_EQ(relevance(layers), relevance(std::vector<layer_scores>{ layers[0] }));
}
