// the representative keys of a block, as test-pager.cpp expects them, against brute force

#include "reference-representatives.h"

#include "vectors.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

namespace {

constexpr uint32_t N_TOKEN   = 12;
constexpr uint32_t N_HEAD_KV = 3;
constexpr uint32_t N_EMBD    = 8;

rotation make_rotation(double dist) {
    rotation rot;
    for (uint32_t i = 0; i < N_EMBD/2; ++i) {
        const double a = dist*std::pow(100.0, -2.0*i/N_EMBD);
        rot.cs.push_back(float(std::cos(a)));
        rot.cs.push_back(float(std::sin(a)));
    }
    return rot;
}

float dot(const float * a, const float * b) {
    return std::inner_product(a, a + N_EMBD, b, 0.0f);
}

// score(m, h) as given; mean of the keys of the n best tokens of each head
template <typename F>
std::vector<float> brute_force(const std::vector<float> & k, uint32_t n_best, F score) {
    std::vector<float> res(N_HEAD_KV*N_EMBD, 0.0f);
    for (uint32_t h = 0; h < N_HEAD_KV; ++h) {
        std::vector<uint32_t> order(N_TOKEN);
        std::iota(order.begin(), order.end(), 0);
        std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return score(a, h) > score(b, h); });
        for (uint32_t j = 0; j < n_best; ++j) {
            for (uint32_t i = 0; i < N_EMBD; ++i) {
                res[h*N_EMBD + i] += k[(order[j]*N_HEAD_KV + h)*N_EMBD + i]/float(n_best);
            }
        }
    }
    return res;
}

// by the products with the queries, a head of representative keys for each KV head
std::vector<float> by_queries(
        const std::vector<float> & k, const std::vector<float> & q, uint32_t n_best, const std::vector<rotation> & undo = {}) {
    std::vector<float> scores(N_HEAD_KV*N_TOKEN);
    token_scores(k.data(), q.data(), N_TOKEN, N_HEAD_KV, N_EMBD, scores.data());

    std::vector<float> out(N_HEAD_KV*N_EMBD, 99.0f);
    representative_keys(k.data(), scores.data(), N_TOKEN, N_HEAD_KV, N_HEAD_KV, N_EMBD, 1, n_best, undo, out.data());
    return out;
}

} // namespace

TEST(RepresentativeKey, EqualsBruteForce) {
    const auto k = random_vector(N_TOKEN*N_HEAD_KV*N_EMBD, 1);
    const auto q = random_vector(N_HEAD_KV*N_EMBD, 2);

    for (uint32_t n_best : { 1u, 4u, N_TOKEN }) {
        expect_near(by_queries(k, q, n_best), brute_force(k, n_best, [&](uint32_t m, uint32_t h) {
            return dot(&q[h*N_EMBD], &k[(m*N_HEAD_KV + h)*N_EMBD]);
        }));
    }
}

TEST(RepresentativeKey, EveryHeadChoosesItsOwnTokens) {
    // head h: the query is e_h, and only token 2*h has a key along it
    std::vector<float> k(N_TOKEN*N_HEAD_KV*N_EMBD, 0.0f);
    std::vector<float> q(N_HEAD_KV*N_EMBD, 0.0f);
    for (uint32_t h = 0; h < N_HEAD_KV; ++h) {
        q[h*N_EMBD + h] = 1.0f;
        k[(2*h*N_HEAD_KV + h)*N_EMBD + h] = 5.0f + float(h);
    }

    const auto out = by_queries(k, q, 1);
    for (uint32_t h = 0; h < N_HEAD_KV; ++h) {
        for (uint32_t i = 0; i < N_EMBD; ++i) {
            EXPECT_EQ(out[h*N_EMBD + i], i == h ? 5.0f + float(h) : 0.0f);
        }
    }
}

// InfLLM's score, the mean of q_i . k_m over the queries that follow, chooses the same tokens as the sum of the queries
TEST(RepresentativeKey, SumOfQueriesStandsForTheMeanOfScores) {
    const uint32_t n_query = 50;

    const auto k       = random_vector(N_TOKEN*N_HEAD_KV*N_EMBD, 3);
    const auto queries = random_vector(n_query*N_HEAD_KV*N_EMBD, 4);

    std::vector<float> q(N_HEAD_KV*N_EMBD, 0.0f);
    for (uint32_t i = 0; i < n_query; ++i) {
        for (uint32_t j = 0; j < q.size(); ++j) {
            q[j] += queries[i*q.size() + j];
        }
    }

    expect_near(by_queries(k, q, 4), brute_force(k, 4, [&](uint32_t m, uint32_t h) {
        float mean = 0.0f;
        for (uint32_t i = 0; i < n_query; ++i) {
            mean += dot(&queries[(i*N_HEAD_KV + h)*N_EMBD], &k[(m*N_HEAD_KV + h)*N_EMBD])/n_query;
        }
        return mean;
    }));
}

// tokens are chosen by rotated keys and queries, but the key that comes out has no rotation left
TEST(RepresentativeKey, UndoesTheRotation) {
    const auto plain = random_vector(N_TOKEN*N_HEAD_KV*N_EMBD, 5);
    const auto q     = random_vector(N_HEAD_KV*N_EMBD, 6);

    auto rotated = plain;
    std::vector<rotation> undo;
    for (uint32_t m = 0; m < N_TOKEN; ++m) {
        const auto rot = make_rotation(1000 + m);
        rot.apply(&rotated[m*N_HEAD_KV*N_EMBD], N_HEAD_KV, N_EMBD);
        undo.push_back(rot.inverse());
    }

    const auto expected = brute_force(plain, 4, [&](uint32_t m, uint32_t h) {
        return dot(&q[h*N_EMBD], &rotated[(m*N_HEAD_KV + h)*N_EMBD]);
    });
    expect_near(by_queries(rotated, q, 4, undo), expected);

    // the rotation does change the choice here, or this test would not see which keys are scored
    const auto by_plain = brute_force(plain, 4, [&](uint32_t m, uint32_t h) {
        return dot(&q[h*N_EMBD], &plain[(m*N_HEAD_KV + h)*N_EMBD]);
    });
    EXPECT_NE(expected, by_plain);
}

// two query heads that share a KV head choose each for itself
TEST(RepresentativeKey, QueryHeadsChooseOfTheirKvHead) {
    const uint32_t n_head = 2*N_HEAD_KV;

    const auto k      = random_vector(N_TOKEN*N_HEAD_KV*N_EMBD, 7);
    const auto scores = random_vector(n_head*N_TOKEN, 8);

    std::vector<float> out(n_head*N_EMBD);
    representative_keys(k.data(), scores.data(), N_TOKEN, n_head, N_HEAD_KV, N_EMBD, 1, 3, {}, out.data());

    for (uint32_t g = 0; g < 2; ++g) {
        const auto expected = brute_force(k, 3, [&](uint32_t m, uint32_t h) { return scores[(2*h + g)*N_TOKEN + m]; });
        for (uint32_t h = 0; h < N_HEAD_KV; ++h) {
            const auto * of_head = &out[(2*h + g)*N_EMBD];
            expect_near(std::vector<float>(of_head, of_head + N_EMBD),
                    std::vector<float>(&expected[h*N_EMBD], &expected[h*N_EMBD] + N_EMBD));
        }
    }
}

// every part of a block has the key that it would have as a block
TEST(RepresentativeKey, PartsAreLikeBlocks) {
    const uint32_t n_repr = 3;
    const uint32_t n_part = N_TOKEN/n_repr;

    const auto k      = random_vector(N_TOKEN*N_HEAD_KV*N_EMBD, 9);
    const auto scores = random_vector(N_HEAD_KV*N_TOKEN, 10);

    std::vector<rotation> undo;
    for (uint32_t m = 0; m < N_TOKEN; ++m) {
        undo.push_back(make_rotation(m));
    }

    std::vector<float> out(n_repr*N_HEAD_KV*N_EMBD);
    representative_keys(k.data(), scores.data(), N_TOKEN, N_HEAD_KV, N_HEAD_KV, N_EMBD, n_repr, 2, undo, out.data());

    std::vector<float> part(N_HEAD_KV*N_EMBD);
    for (uint32_t r = 0; r < n_repr; ++r) {
        std::vector<float> of_part;
        for (uint32_t h = 0; h < N_HEAD_KV; ++h) {
            const auto * begin = &scores[h*N_TOKEN + r*n_part];
            of_part.insert(of_part.end(), begin, begin + n_part);
        }
        representative_keys(&k[r*n_part*N_HEAD_KV*N_EMBD], of_part.data(), n_part, N_HEAD_KV, N_HEAD_KV, N_EMBD, 1, 2,
                { undo.begin() + r*n_part, undo.begin() + (r + 1)*n_part }, part.data());
        expect_near(part, { out.begin() + r*part.size(), out.begin() + (r + 1)*part.size() });
    }
}
