// the bounds of search = quest, against the products that they bound

#include "pager-store.h"
#include "vectors.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

using namespace infllm;

namespace {

// one of several threads: nothing is shared, so that they may run one after the other
struct thread_of {
    uint32_t i;
    uint32_t n;

    uint32_t rank() const { return i; }
    uint32_t size() const { return n; }
    void     sync() const {}
};

struct bounds_case {
    kv_type  type;
    uint32_t n_repr;
};

// of a block in which a dimension has keys of one sign alone, of either, and of both
struct bounded_block {
    pager_layer          l = {};
    std::vector<uint8_t> k;

    explicit bounded_block(const bounds_case & c) {
        l.cells         = { 4, 24, 24, 2, 48 };
        l.n_head        = 4;
        l.n_head_kv     = 2;
        l.n_head_repr   = 4;
        l.n_embd_head_k = 32;
        l.n_rot         = 32; // is not undone
        l.repr_topk     = l.cells.block_size/c.n_repr;
        l.n_repr        = c.n_repr;
        l.bounds        = 1;
        l.type_k        = c.type;
        l.row_k         = kv_row_bytes(c.type, l.n_embd_k());
        k.resize(l.size_k());

        auto x = random_vector(l.cells.block_size*l.n_embd_k(), 1);
        for (size_t i = 0; i < x.size(); ++i) {
            x[i] += 5.0f*(float(i%l.n_embd_k()%3) - 1.0f);
        }
        for (size_t i = 0; i < x.size(); i += 32) {
            uint8_t * dst = k.data() + kv_row_bytes(c.type, i);
            if (c.type == KV_F16) {
                for (uint32_t j = 0; j < 32; ++j) {
                    store_u16(dst + 2*j, half_from_float(x[i + j]));
                }
            } else {
                kv_store_block(c.type, dst, &x[i]);
            }
        }
    }

    float key(uint32_t m, uint32_t i) const { return kv_load(l.type_k, k.data() + m*l.row_k, i); }

    std::vector<float> bounds(uint32_t n_thread) const {
        std::vector<uint16_t> out(l.n_repr*l.n_embd_repr(), 0x7e00); // not a number
        for (uint32_t i = 0; i < n_thread; ++i) {
            store_representatives(thread_of { i, n_thread }, l, 0, 7, 9, nullptr, k.data(), out.data(), {});
        }
        std::vector<float> res(out.size());
        std::transform(out.begin(), out.end(), res.begin(), half_to_float);
        return res;
    }
};

} // namespace

class Bounds : public testing::TestWithParam<bounds_case> {};

INSTANTIATE_TEST_SUITE_P(Kinds, Bounds, testing::Values(
    bounds_case { KV_F16,  1 },
    bounds_case { KV_F16,  3 },
    bounds_case { KV_Q8_0, 3 },
    bounds_case { KV_Q4_0, 1 }),
    [](const auto & info) { return std::string(info.param.type == KV_F16 ? "F16" : info.param.type == KV_Q8_0 ? "Q8" : "Q4") +
        "Parts" + std::to_string(info.param.n_repr); });

// Quest, section 3.3: no key has a larger product than the bound, as the graph computes it, of any query; and none is too large
TEST_P(Bounds, AreAboveEveryProductAndReached) {
    const bounded_block b(GetParam());
    const auto &   l      = b.l;
    const uint32_t n_embd = l.n_embd_k();
    const uint32_t n_part = l.cells.block_size/l.n_repr;
    const auto     bounds = b.bounds(1);

    ASSERT_EQ(bounds.size(), 2*l.n_repr*n_embd);
    for (uint32_t r = 0; r < l.n_repr; ++r) {
        const float * largest  = &bounds[2*r*n_embd];
        const float * smallest = largest + n_embd;

        for (uint32_t seed = 0; seed < 200; ++seed) {
            const auto q = random_vector(n_embd, 2 + seed);

            double bound = 0.0; // positive parts by the largest, negative ones by the smallest
            double most  = 0.0; // of what can be there, dimension by dimension
            for (uint32_t i = 0; i < n_embd; ++i) {
                bound += double(std::max(q[i], 0.0f))*largest[i] + double(std::min(q[i], 0.0f))*smallest[i];

                double of_dim = -INFINITY;
                for (uint32_t m = r*n_part; m < (r + 1)*n_part; ++m) {
                    of_dim = std::max(of_dim, double(q[i])*b.key(m, i));
                }
                most += of_dim;
            }
            const double rounded = l.type_k == KV_F16 ? 1e-6 : 0.2; // a half float for each value
            EXPECT_NEAR(bound, most, rounded);
            for (uint32_t m = r*n_part; m < (r + 1)*n_part; ++m) {
                double product = 0.0;
                for (uint32_t i = 0; i < n_embd; ++i) {
                    product += double(q[i])*b.key(m, i);
                }
                EXPECT_GE(bound + rounded, product) << "token " << m;
            }
        }
    }
}

TEST_P(Bounds, AreThoseOfOneThreadWithMany) {
    const bounded_block b(GetParam());
    EXPECT_EQ(b.bounds(1), b.bounds(5));
    EXPECT_EQ(store_scratch::size(b.l), 0u);
}
