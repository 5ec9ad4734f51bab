// what runs on devices, run on the host: by one thread and by several, as in a thread block, against plain C++

#include "kv-row.h"
#include "pager.h"
#include "reference-representatives.h"
#include "rotation.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <condition_variable>
#include <functional>
#include <list>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

using namespace infllm;

namespace {

class barrier {
public:
    explicit barrier(uint32_t n) : n(n), n_left(n) {}

    void wait() {
        std::unique_lock<std::mutex> lock(mutex);
        const uint64_t now = round;
        if (--n_left == 0) {
            n_left = n;
            round++;
            cond.notify_all();
        } else {
            cond.wait(lock, [&] { return round != now; });
        }
    }

private:
    const uint32_t n;
    uint32_t       n_left;
    uint64_t       round = 0;

    std::mutex              mutex;
    std::condition_variable cond;
};

// a thread block of threads of the host: a missing sync() is a data race, which shows in the results sooner or later
class thread_group {
public:
    thread_group(uint32_t rank, uint32_t size, barrier & bar) : i(rank), n(size), bar(&bar) {}

    uint32_t rank() const { return i; }
    uint32_t size() const { return n; }
    void     sync() const { bar->wait(); }
    uint32_t add(uint32_t * p, uint32_t v) const { return __atomic_fetch_add(p, v, __ATOMIC_RELAXED); }

private:
    uint32_t  i;
    uint32_t  n;
    barrier * bar;
};

template <typename F>
void run_group(uint32_t n_thread, F f) {
    barrier bar(n_thread);
    std::vector<std::thread> threads;
    for (uint32_t i = 0; i < n_thread; ++i) {
        threads.emplace_back([&, i] { f(thread_group(i, n_thread, bar)); });
    }
    for (auto & t : threads) {
        t.join();
    }
}

// a cache of n_slot blocks: slots by their last use, found by searching
class model_cache {
public:
    explicit model_cache(uint32_t n_slot) : blocks(n_slot, -1), last(n_slot, 0) {}

    // blocks to copy, and where
    std::vector<std::pair<int32_t, uint32_t>> update(const std::vector<int32_t> & selected) {
        std::vector<std::pair<int32_t, uint32_t>> res;
        ++now;
        for (size_t s = 0; s < blocks.size(); ++s) {
            if (std::count(selected.begin(), selected.end(), blocks[s])) {
                last[s] = now;
            }
        }
        for (const int32_t b : selected) {
            if (std::count(blocks.begin(), blocks.end(), b)) {
                continue;
            }
            const auto s = std::min_element(last.begin(), last.end()) - last.begin();
            blocks[s] = b;
            last  [s] = ++now;
            res.push_back({ b, uint32_t(s) });
        }
        return res;
    }

    std::vector<int32_t> blocks;

private:
    std::vector<uint64_t> last;
    uint64_t now = 0;
};

std::vector<int32_t> model_topk(const std::vector<float> & scores, uint32_t k) {
    std::vector<int32_t> res(scores.size());
    for (size_t i = 0; i < res.size(); ++i) {
        res[i] = int32_t(i);
    }
    std::sort(res.begin(), res.end(), [&](int32_t a, int32_t b) {
        return scores[a] != scores[b] ? scores[a] > scores[b] : a > b;
    });
    res.resize(std::min<size_t>(k, res.size()));
    return res;
}

const uint32_t N_SUB_MAX = 5;

// one layer with memory of its own
struct test_layer {
    pager_layer l = {};

    std::vector<uint8_t>   k, v;
    std::vector<uint16_t>  repr;
    std::vector<uint64_t>  state;
    std::vector<float>     scores;
    std::vector<float>     sums;
    std::vector<int32_t>   chosen;
    std::vector<float>     rope_low, rope_high, rope_undo;
    std::vector<uint64_t>  scratch;

    std::vector<const uint8_t *> blocks;

    block_rotations       rot_block;
    std::vector<rotation> rot_undo;

    explicit test_layer(kv_type type = KV_F16, bool neox = true, bool remap = true, uint32_t n_seq = 1) {
        l.cells         = cell_layout::make(4, 16, 8, 6, 8);
        l.n_head        = 4;
        l.n_head_kv     = 2;
        l.n_head_repr   = 2;
        l.n_embd_head_k = 64;
        l.n_rot         = 32;
        l.neox          = neox;
        l.remap         = remap;
        l.topk          = 4;
        l.repr_topk     = 3;
        l.n_repr        = 2;
        l.n_chunk       = l.cells.n_cells()/l.cells.block_size + 2;
        l.n_sum         = l.n_head_kv*l.n_embd_head_k;
        l.n_block_max   = 64;
        l.type_k        = type;
        l.row_k         = kv_row_bytes(type, l.n_embd_k());
        l.row_v         = kv_row_bytes(type, l.n_embd_k());
        l.offset        = 48;

        const uint64_t n_cells = l.cells.n_cells();
        k.resize(n_seq*n_cells*l.row_k);
        v.resize(n_seq*n_cells*l.row_v);
        repr.resize(size_t(n_seq)*l.n_block_max*l.n_repr*l.n_embd_k());
        state.resize(n_seq*pager_state::size(l)/sizeof(uint64_t));
        scores.resize(l.n_block_max);
        sums.resize(size_t(N_SUB_MAX)*l.n_block_max);
        chosen.resize(l.topk);
        blocks.resize(size_t(n_seq)*l.n_block_max);
        scratch.resize(std::max(page_scratch::size(l), store_scratch::size(l))/sizeof(uint64_t) + 1);

        const auto make = [&](float pos) {
            rotation rot;
            rot.neox = neox;
            for (uint32_t i = 0; i < l.n_rot/2; ++i) {
                const float angle = pos*std::pow(10000.0f, -2.0f*float(i)/float(l.n_rot));
                rot.cs.push_back(std::cos(angle));
                rot.cs.push_back(std::sin(angle));
            }
            return rot;
        };
        for (uint32_t b = 0; b < block_rotations::n_low(l.n_block_max); ++b) {
            rot_block.low.push_back(make(float(b*l.cells.block_size)));
        }
        rot_block.high.push_back(make(0.0f));
        for (uint32_t i = 0; i < l.cells.block_size; ++i) {
            rot_undo.push_back(make(-float(l.cells.n_init + i)));
        }
        const auto table = [](const std::vector<rotation> & rots) {
            std::vector<float> res;
            for (const auto & rot : rots) {
                res.insert(res.end(), rot.cs.begin(), rot.cs.end());
            }
            return res;
        };
        rope_low  = table(rot_block.low);
        rope_high = table(rot_block.high);
        rope_undo = table(rot_undo);

        l.k          = k.data();
        l.v          = v.data();
        l.repr       = repr.data();
        l.state      = reinterpret_cast<uint8_t *>(state.data());
        l.scores     = scores.data();
        l.sums       = sums.data();
        l.chosen     = chosen.data();
        l.stride_k   = n_cells*l.row_k;
        l.stride_v   = n_cells*l.row_v;
        l.blocks     = blocks.data();
        l.rope_low   = rope_low.data();
        l.rope_high  = rope_high.data();
        l.rope_undo  = rope_undo.data();
    }

    pager_state state_of(uint32_t seq = 0) const { return pager_state::of(l, seq); }

    void fill(uint32_t seed) {
        std::mt19937 rng(seed);
        std::normal_distribution<float> normal;
        for (auto * rows : { &k, &v }) {
            for (size_t i = 0; i < rows->size()/kv_row_bytes(l.type_k, 32); ++i) {
                float x[32];
                for (auto & f : x) {
                    f = normal(rng);
                }
                uint8_t * dst = rows->data() + i*kv_row_bytes(l.type_k, 32);
                if (l.type_k == KV_F16) {
                    for (uint32_t j = 0; j < 32; ++j) {
                        store_u16(dst + 2*j, half_from_float(x[j]));
                    }
                } else {
                    kv_store_block(l.type_k, dst, x);
                }
            }
        }
    }

    std::vector<float> k_row(uint32_t cell, uint32_t seq = 0) const {
        std::vector<float> res(l.n_embd_k());
        for (uint32_t i = 0; i < res.size(); ++i) {
            res[i] = kv_load(l.type_k, l.k_cell(seq, cell), i);
        }
        return res;
    }
};

} // namespace

TEST(CopyBytes, AnyAlignmentAndSize) {
    std::vector<uint8_t> src(5000), dst(5000);
    std::mt19937 rng(1);
    for (auto & b : src) {
        b = uint8_t(rng());
    }
    for (int i = 0; i < 300; ++i) {
        const size_t n  = rng()%4000;
        const size_t d0 = i%2 == 0 ? 16*(rng()%8) : rng()%100;
        const size_t s0 = i%2 == 0 ? 16*(rng()%8) : rng()%100;
        std::fill(dst.begin(), dst.end(), 0);
        run_group(1 + i%3, [&](const thread_group & g) { copy_bytes(g, dst.data() + d0, src.data() + s0, n); });
        for (size_t j = 0; j < dst.size(); ++j) {
            ASSERT_EQ(dst[j], j >= d0 && j < d0 + n ? src[s0 + j - d0] : 0);
        }
    }
}

// random score streams over growing sequences: few distinct values, so that there are ties, and at first fewer blocks
// than slots, or than are selected
TEST(PageSelect, EqualsPlainModelOverManySteps) {
    const uint32_t n_seq = 3;
    test_layer t(KV_F16, true, false, n_seq);

    std::vector<model_cache> models(n_seq, model_cache(t.l.cells.n_slot));
    for (uint32_t s = 0; s < n_seq; ++s) {
        std::fill_n(t.state_of(s).slots.block, t.l.cells.n_slot, slot_view::NONE);
    }

    std::mt19937 rng(1);
    std::vector<uint32_t> n_block(n_seq);
    std::vector<float>    scores;
    const std::vector<float> q(t.l.n_head*t.l.n_embd_head_k, 1.0f);

    page_scratch scratch = {};
    scratch.init(t.l, t.scratch.data());

    uint64_t n_page_in = 0;
    for (int step = 0; step < 100000; ++step) {
        const uint32_t s = rng()%n_seq;
        if (rng()%100 == 0) {
            n_block[s] = n_block[s] == t.l.n_block_max ? 1 : n_block[s] + 1;
            if (n_block[s] == 1) {
                models[s] = model_cache(t.l.cells.n_slot);
                std::fill_n(t.state_of(s).slots.block, t.l.cells.n_slot, slot_view::NONE);
                std::fill_n(t.state_of(s).slots.used,  t.l.cells.n_slot, 0);
            }
        }
        const uint32_t n_sub = 1 + rng()%3;
        const uint32_t n_row = 64*t.l.n_repr;
        scores.assign(n_sub*n_row, NAN); // what lies in the padding must not matter
        std::vector<float> best(n_block[s], -INFINITY);
        for (uint32_t i = 0; i < n_sub; ++i) {
            for (uint32_t r = 0; r < n_block[s]*t.l.n_repr; ++r) {
                scores[i*n_row + r] = float(int(rng()%9) - 4)*(step%2 == 0 ? 0.5f : -0.0f);
                best[r/t.l.n_repr] = std::max(best[r/t.l.n_repr], scores[i*n_row + r]);
            }
        }

        const pager_info info = { 0, int32_t(s), 4, 1, int32_t(n_block[s]), 0, PLACE_UPDATE, 0 };
        page_select(single_thread(), t.l, info, q.data(), t.l.n_embd_head_k, uint32_t(q.size()), scores.data(), n_row, n_sub,
                scratch);
        page_count(t.l, info);

        const auto selected = model_topk(best, t.l.topk);
        const auto expected = models[s].update(selected);
        const auto state    = t.state_of(s);

        ASSERT_EQ(*state.n_page_in, expected.size()) << "step " << step;
        for (size_t i = 0; i < expected.size(); ++i) {
            ASSERT_EQ(state.page_ins[i].block, expected[i].first);
            ASSERT_EQ(state.page_ins[i].slot,  expected[i].second);
        }
        ASSERT_TRUE(std::equal(models[s].blocks.begin(), models[s].blocks.end(), state.slots.block));
        if (n_block[s] > 0) {
            ASSERT_TRUE(std::equal(selected.begin(), selected.end(), t.l.chosen));
        }
        n_page_in += expected.size();
    }
    EXPECT_GT(n_page_in, 1000u);

    uint64_t n_counted = 0;
    for (uint32_t s = 0; s < n_seq; ++s) {
        n_counted += t.state_of(s).stats->n_page_in;
    }
    EXPECT_EQ(n_counted, n_page_in);
}

TEST(PageSelect, ManyThreadsDoAsOne) {
    std::mt19937 rng(2);
    std::normal_distribution<float> normal;

    test_layer one;
    std::fill_n(one.state_of().slots.block, one.l.cells.n_slot, slot_view::NONE);
    test_layer many;
    std::fill_n(many.state_of().slots.block, many.l.cells.n_slot, slot_view::NONE);

    std::vector<float> q(2*one.l.n_head*one.l.n_embd_head_k);
    std::vector<float> scores(size_t(N_SUB_MAX)*64*one.l.n_repr);

    for (int step = 0; step < 300; ++step) {
        for (auto * x : { &q, &scores }) {
            for (auto & f : *x) {
                f = normal(rng);
            }
        }
        const int32_t    p0   = 4 + 5*step;
        const pager_info info = { 0, 0, p0, 5, std::min(step, 64), step%2, pager_place(step%7%3), 0 };
        for (test_layer * t : { &one, &many }) {
            t->l.first = step%6 < 2;
            page_scratch scratch = {};
            scratch.init(t->l, t->scratch.data());
            auto scores_t = scores;
            run_group(t == &one ? 1 : 4, [&](const thread_group & g) {
                page_select(g, t->l, info, q.data(), t->l.n_embd_head_k, uint32_t(q.size()/2), scores_t.data(),
                        64*one.l.n_repr, N_SUB_MAX, scratch);
            });
        }
        // page-ins beyond n_page_in are left over
        const uint32_t n = *one.state_of().n_page_in;
        ASSERT_EQ(*many.state_of().n_page_in, n);
        ASSERT_TRUE(std::equal(one.state_of().page_ins, one.state_of().page_ins + n, many.state_of().page_ins,
            [](const page_in & a, const page_in & b) { return a.block == b.block && a.slot == b.slot; }));
        ASSERT_EQ(one.scores, many.scores);
        ASSERT_EQ(one.sums,   many.sums);
        ASSERT_TRUE(std::equal(one.state_of().sums, one.state_of().sums + one.l.n_chunk*one.l.n_embd_k(), many.state_of().sums));
        ASSERT_TRUE(std::equal(one.state_of().slots.used, one.state_of().slots.used + one.l.cells.n_slot, many.state_of().slots.used));
    }
}

TEST(PageSelect, QueriesAddUpPerBlock) {
    test_layer t;
    const uint32_t n_embd = t.l.n_embd_k();

    // 3 init tokens, then 2 of block 0; then the rest of block 0 and 4 of block 1
    std::vector<float> q(2*t.l.n_head*t.l.n_embd_head_k, 1.0f);
    page_scratch scratch = {};
    scratch.init(t.l, t.scratch.data());
    const auto feed = [&](int32_t p0, int32_t n) {
        page_select(single_thread(), t.l, { 0, 0, p0, n, 0, 0, PLACE_UPDATE, 0 }, q.data(), t.l.n_embd_head_k, uint32_t(q.size()/2), nullptr, 0, 0, scratch);
    };
    const float * q_sum = t.state_of().sums;

    feed(0, 3);
    EXPECT_TRUE(std::all_of(q_sum, q_sum + t.l.n_chunk*n_embd, [](float f) { return f == 0.0f; }));
    feed(4, 2);
    EXPECT_EQ(q_sum[0], 2.0f); // two heads share a KV head
    feed(6, 10);
    EXPECT_EQ(q_sum[n_embd - 1], 4.0f);
    EXPECT_EQ(q_sum[n_embd],     2.0f);
    EXPECT_EQ(q_sum[2*n_embd],   0.0f);
    // a block begins: what an older one left in its place is gone
    feed(4 + int32_t(t.l.n_chunk*t.l.cells.block_size), 1);
    EXPECT_EQ(q_sum[0], 2.0f);
}

TEST(Pager, StoreAndGatherBringTheSameBytes) {
    for (const kv_type type : { KV_F16, KV_Q8_0, KV_Q4_0 }) {
        for (const uint32_t n_thread : { 1u, 3u }) {
            test_layer t(type, true, false);
            t.fill(1);

            const uint32_t block = 7; // in the ring
            const auto     bytes = t.l.offset + t.l.size_k() + t.l.size_v() + t.l.n_embd_k()*sizeof(float);
            std::vector<bytes16> stored(bytes/16 + 1);
            auto * data = reinterpret_cast<uint8_t *>(stored.data());

            store_scratch s;
            s.init(t.l, t.scratch.data());
            run_group(n_thread, [&](const thread_group & g) { pager_store(g, t.l, 0, block, block + 1, true, data, s); });

            const auto k = t.k;
            const auto v = t.v;
            t.blocks[block] = data;
            *t.state_of().n_page_in = 1;
            t.state_of().page_ins[0] = { int32_t(block), 3 };
            const pager_info info = { 0, 0, 0, 1, int32_t(block) + 1, 0, PLACE_UPDATE, 0 };
            for (uint32_t part = 0; part < 5; ++part) {
                run_group(n_thread, [&](const thread_group & g) { page_gather(g, t.l, info, 0, part, 5); });
            }
            page_gather(single_thread(), t.l, info, 1, 0, 1); // no such page-in

            const uint32_t from = t.l.cells.cell(t.l.cells.block_pos(block));
            const uint32_t to   = t.l.cells.slot_cell(3);
            EXPECT_TRUE(std::equal(k.begin() + from*t.l.row_k, k.begin() + from*t.l.row_k + t.l.size_k(), t.k.begin() + to*t.l.row_k));
            EXPECT_TRUE(std::equal(v.begin() + from*t.l.row_v, v.begin() + from*t.l.row_v + t.l.size_v(), t.v.begin() + to*t.l.row_v));
            EXPECT_TRUE(std::equal(k.begin(), k.begin() + to*t.l.row_k, t.k.begin()));
            EXPECT_TRUE(std::equal(k.begin() + to*t.l.row_k + t.l.size_k(), k.end(), t.k.begin() + to*t.l.row_k + t.l.size_k()));
        }
    }
}

TEST(RowCodec, RotatesGroupsAndQuantises) {
    std::mt19937 rng(1);
    std::normal_distribution<float> dist;
    for (const uint64_t n_row : { 32u, 96u, 192u, 640u, 1024u }) {
        const uint32_t n_group = codec_group(n_row);
        EXPECT_EQ(n_row%n_group, 0u);
        EXPECT_TRUE(n_group == CODEC_MAX_GROUP || n_row%(2*n_group) != 0);

        // the matrix of Sylvester: the sign of entry i, j is that of the number of common bits
        std::vector<float> x(n_group);
        std::generate(x.begin(), x.end(), [&] { return dist(rng); });
        auto y = x;
        hadamard(y.data(), n_group);
        for (uint32_t i = 0; i < n_group; ++i) {
            double sum = 0.0;
            for (uint32_t j = 0; j < n_group; ++j) {
                sum += __builtin_popcount(i & j)%2 == 0 ? x[j] : -x[j];
            }
            ASSERT_NEAR(y[i], sum/std::sqrt(double(n_group)), 1e-5);
        }

        // one value is a hundred times the others, as in keys: its error would be theirs
        const uint32_t n = 64*n_row; // enough for any sequence of random numbers
        std::vector<uint16_t> rows(n);
        std::vector<float>    values(n);
        for (uint32_t i = 0; i < n; ++i) {
            rows[i]   = half_from_float(i%n_row == 5 ? 100.0f : dist(rng));
            values[i] = half_to_float(rows[i]);
        }
        for (const kv_type type : { KV_Q8_0, KV_Q4_0 }) {
            std::vector<std::vector<uint16_t>> results;
            for (const uint32_t n_thread : { 1u, 3u }) {
                std::vector<uint8_t>  coded(kv_row_bytes(type, n));
                std::vector<uint16_t> back(n);
                run_group(n_thread, [&](const thread_group & g) {
                    encode_rows(g, type, n_row, reinterpret_cast<const uint8_t *>(rows.data()), n, coded.data());
                    g.sync();
                    decode_rows(g, type, n_row, coded.data(), n, reinterpret_cast<uint8_t *>(back.data()));
                });
                results.push_back(back);
            }
            EXPECT_EQ(results[0], results[1]);

            double err = 0.0;
            for (uint32_t i = 0; i < n; ++i) {
                err += std::pow(half_to_float(results[0][i]) - values[i], 2)/n;
            }
            // one group of a row has the large value, whose rotated ones are little over 100/sqrt(n_group); others are below 4. They
            // are rounded to one of 127 steps, or of 8 on one side of zero and 7 on the other
            const double large = 100.0/std::sqrt(double(n_group)) + 4.0;
            const double range = std::sqrt((large*large*n_group + 4.0*4.0*double(n_row - n_group))/double(n_row));
            EXPECT_LT(std::sqrt(err), range/(type == KV_Q8_0 ? 127.0 : 7.5)/std::sqrt(12.0)*1.1);
        }
    }
}

TEST(Pager, GatherRotatesToTheSlot) {
    for (const bool neox : { true, false }) {
        for (const kv_type type : { KV_F16, KV_Q8_0, KV_Q4_0 }) {
            test_layer t(type, neox);
            t.fill(2);

            const uint32_t block = 9;
            const uint32_t shift = 3;
            std::vector<bytes16> stored((t.l.offset + t.l.size_k() + t.l.size_v())/16 + 1);
            auto * data = reinterpret_cast<uint8_t *>(stored.data());
            std::copy_n(t.k.begin(), t.l.size_k(), data + t.l.offset);

            t.blocks[block] = data;
            *t.state_of().n_page_in = 1;
            t.state_of().page_ins[0] = { int32_t(block), 2 };

            std::vector<std::vector<float>> expected;
            for (uint32_t i = 0; i < t.l.cells.block_size; ++i) {
                expected.push_back(t.k_row(i));
                t.rot_block.by(2 + int64_t(shift) - block).apply(expected.back().data(), t.l.n_head_kv, t.l.n_embd_head_k);
            }
            const pager_info info = { 0, 0, 0, 1, int32_t(block) + 1, 0, PLACE_UPDATE, int32_t(shift) };
            run_group(2, [&](const thread_group & g) { page_gather(g, t.l, info, 0, 0, 1); });
            for (uint32_t i = 0; i < t.l.cells.block_size; ++i) {
                const auto row = t.k_row(t.l.cells.slot_cell(2) + i);
                for (uint32_t j = 0; j < row.size(); ++j) {
                    ASSERT_NEAR(row[j], expected[i][j], type == KV_F16 ? 4e-3f : type == KV_Q8_0 ? 3e-2f : 0.6f);
                }
            }
        }
    }
}

TEST(Pager, RepresentativeKeyEqualsTheHosts) {
    for (const bool neox : { true, false }) {
        for (const kv_type type : { KV_F16, KV_Q8_0, KV_Q4_0 }) {
            const bool all = type == KV_Q4_0; // of the keys are averaged

            test_layer t(type, neox);
            if (all) {
                t.l.repr_topk = t.l.cells.block_size/t.l.n_repr;
                t.l.n_chunk   = 0;
                t.scratch.resize(store_scratch::size(t.l)/sizeof(uint64_t) + 1);
            }
            t.fill(3);
            std::mt19937 rng(3);
            std::normal_distribution<float> normal;
            for (uint32_t i = 0; i < t.l.n_chunk*t.l.n_embd_k(); ++i) {
                t.state_of().sums[i] = normal(rng);
            }

            const uint32_t block = 7;
            std::vector<bytes16> stored((t.l.offset + t.l.size())/16 + 1);
            store_scratch s;
            s.init(t.l, t.scratch.data());
            run_group(3, [&](const thread_group & g) {
                pager_store(g, t.l, 0, block, block + 2, false, reinterpret_cast<uint8_t *>(stored.data()), s);
            });

            std::vector<float> k;
            std::vector<float> q(t.l.n_embd_k());
            std::vector<rotation> undo;
            for (uint32_t i = 0; i < t.l.cells.block_size; ++i) {
                const auto row = t.k_row(t.l.cells.cell(t.l.cells.block_pos(block)) + i);
                k.insert(k.end(), row.begin(), row.end());
                undo.push_back(t.rot_block.by(-int64_t(block))*t.rot_undo[i]);
            }
            for (const uint32_t b : { block + 1, block + 2 }) {
                for (uint32_t i = 0; i < q.size() && !all; ++i) {
                    q[i] += t.state_of().sums[b%t.l.n_chunk*t.l.n_embd_k() + i];
                }
            }
            std::vector<float> expected(t.l.n_repr*t.l.n_embd_k());
            std::vector<float> scores(t.l.n_head_kv*t.l.cells.block_size);
            token_scores(k.data(), q.data(), t.l.cells.block_size, t.l.n_head_kv, t.l.n_embd_head_k, scores.data());
            representative_keys(k.data(), scores.data(), t.l.cells.block_size, t.l.n_head_kv, t.l.n_head_kv, t.l.n_embd_head_k,
                    t.l.n_repr, t.l.repr_topk, undo, expected.data());
            for (uint32_t i = 0; i < expected.size(); ++i) {
                ASSERT_NEAR(half_to_float(t.repr[block*expected.size() + i]), expected[i], 2e-3f) << i;
            }

            // once the mean of the keys is known
            std::vector<float> mean(t.l.n_embd_k());
            for (auto & x : mean) {
                x = normal(rng);
            }
            t.l.mean = mean.data();
            run_group(3, [&](const thread_group & g) {
                pager_store(g, t.l, 0, block, block + 2, true, reinterpret_cast<uint8_t *>(stored.data()), s);
            });
            for (uint32_t r = 0; r < t.l.n_repr; ++r) {
                double norm = 0.0;
                for (uint32_t i = 0; i < mean.size(); ++i) {
                    norm += std::pow(double(expected[r*mean.size() + i]) - double(mean[i]), 2.0);
                }
                for (uint32_t i = 0; i < mean.size(); ++i) {
                    const double x = (double(expected[r*mean.size() + i]) - double(mean[i]))/std::sqrt(norm);
                    ASSERT_NEAR(half_to_float(t.repr[block*expected.size() + r*mean.size() + i]), x, 5e-4) << r << ", " << i;
                }
            }
        }
    }
}
