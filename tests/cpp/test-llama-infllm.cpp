// The InfLLM memory end to end, on the model that the environment variable INFLLM_TEST_MODEL names. Budgets are small:
// 128 resident cells, so that few tokens page. Most tests are about cells and blocks: the first layers will do for them.

#include "first-layers.h"
#include "random-model.h"

#include "llama-infllm.h"
#include "llama.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <climits>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

namespace {

constexpr uint32_t N_UBATCH = 16;
constexpr uint32_t N_CTX    = 512;
constexpr uint32_t N_CELLS  = 128;  // 8 init + 8 slots*8 + ring of 32 + 8 + 16
constexpr uint32_t N_ALLOC  = 256;  // cells that are allocated: padded
constexpr uint32_t N_END    = 16;   // 2*n_score: the end of a text is a ubatch of its own
constexpr uint32_t N_TRAIN  = 160;  // training length of small_model: positions are shifted back within N_CTX
constexpr uint32_t N_LAYER  = 9;    // first layers of the model, for most tests: three that search, and those that follow them

llama_infllm_params small_params(llama_infllm_position position = LLAMA_INFLLM_POSITION_TRUE) {
    auto prm = llama_infllm_default_params();
    prm.n_init            = 8;
    prm.n_local           = 32;
    prm.block_size        = 8;
    prm.topk              = 4;
    prm.max_cached_blocks = 8;
    prm.n_score           = 8;
    prm.n_repr            = 4; // of 2 tokens each: sub-chunks of 8 tokens and of 4
    prm.position          = position;

    // all tests run in both ways, see CMakeLists.txt
    const char * paging = std::getenv("INFLLM_TEST_PAGING");
    prm.paging = paging && std::string(paging) == "device" ? LLAMA_INFLLM_PAGING_DEVICE : LLAMA_INFLLM_PAGING_HOST;
    return prm;
}

// as published, but for the positions; 4 slots
llama_infllm_params published_params(llama_infllm_position position) {
    auto prm = small_params(position);
    prm.max_cached_blocks = 0;
    prm.n_score           = 0;
    prm.n_repr            = 1;
    prm.attend            = LLAMA_INFLLM_ATTEND_TOPK;
    prm.scores            = LLAMA_INFLLM_SCORES_PUBLISHED;
    prm.paging            = LLAMA_INFLLM_PAGING_HOST;
    return prm;
}

llama_context_params context_params() {
    auto cprm = llama_context_default_params();
    cprm.n_ctx           = N_CTX;
    cprm.n_batch         = N_CTX;
    cprm.n_ubatch        = N_UBATCH;
    cprm.n_threads       = 1;
    cprm.n_threads_batch = 1;
    cprm.no_perf         = true;
    cprm.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    return cprm;
}

using tokens_t = std::vector<llama_token>;
using logits_t = std::vector<float>;

float max_diff(const logits_t & a, const logits_t & b) {
    EXPECT_EQ(a.size(), b.size());
    float res = a.empty() || a.size() != b.size() ? INFINITY : 0.0f;
    for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
        const float d = std::fabs(a[i] - b[i]);
        res = d <= res ? res : d; // NaN wins
    }
    return res;
}

bool all_finite(const logits_t & logits) {
    return !logits.empty() && std::all_of(logits.begin(), logits.end(), [](float x) { return std::isfinite(x); });
}

llama_token argmax(const logits_t & logits) {
    return llama_token(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

uint32_t n_tokens(const llama_context * ctx, llama_seq_id seq_id = 0) {
    return uint32_t(llama_memory_seq_pos_max(llama_get_memory(ctx), seq_id) + 1);
}

llama_infllm_stats get_stats(const llama_context * ctx, int32_t il = -1) {
    llama_infllm_stats stats = {};
    EXPECT_TRUE(llama_infllm_get_stats(ctx, il, &stats));
    return stats;
}

// blocks that a sequence has offloaded, had its last ubatch the positions [p0, p1)
uint32_t n_blocks(uint32_t p0, uint32_t p1) {
    return p1 <= N_CELLS ? 0 : (p0 - 32 - 8)/8;
}

} // namespace

class Infllm : public testing::Test {
protected:
    static void SetUpTestSuite() {
        const std::string path = model_path();
        if (!path.empty()) {
            const std::string first = testing::TempDir() + "infllm-test-" + std::to_string(getpid()) + ".gguf";
            write_first_layers(path, first, N_LAYER);
            load(first);
            std::remove(first.c_str());
        }
    }

    static std::string model_path() {
        const char * path = std::getenv("INFLLM_TEST_MODEL");
        return path ? path : "";
    }

    static void load(const std::string & path) {
        llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr); // many tests cause errors on purpose
        llama_backend_init();

        auto mprm = llama_model_default_params();
        mprm.n_gpu_layers = 0;
        model.reset(llama_model_load_from_file(path.c_str(), mprm));
        ASSERT_TRUE(model) << "failed to load " << path;

        char arch[64] = "";
        llama_model_meta_val_str(model.get(), "general.architecture", arch, sizeof(arch));

        llama_model_kv_override overrides[2] = {};
        snprintf(overrides[0].key, sizeof(overrides[0].key), "%s.context_length", arch);
        overrides[0].tag     = LLAMA_KV_OVERRIDE_TYPE_INT;
        overrides[0].val_i64 = N_TRAIN;
        mprm.kv_overrides = overrides;
        small_model.reset(llama_model_load_from_file(path.c_str(), mprm));
        ASSERT_TRUE(small_model);
        ASSERT_EQ(llama_model_n_ctx_train(small_model.get()), int32_t(N_TRAIN));
    }

    static void TearDownTestSuite() {
        model.reset();
        small_model.reset();
    }

    void SetUp() override {
        if (!model) {
            ASSERT_EQ(std::getenv("CI"), nullptr) << "INFLLM_TEST_MODEL must name a GGUF file in CI";
            GTEST_SKIP() << "set INFLLM_TEST_MODEL to a small GGUF file to run this test";
        }
    }

    static context_ptr make_plain() {
        return context_ptr(llama_init_from_model(model.get(), context_params()));
    }

    static context_ptr make_infllm(
            const llama_infllm_params & prm = small_params(), const llama_context_params & cprm = context_params()) {
        auto * m   = prm.position == LLAMA_INFLLM_POSITION_INFLLM ? small_model.get() : model.get();
        auto * ctx = llama_infllm_init_from_model(m, cprm, prm);
        EXPECT_NE(ctx, nullptr) << llama_infllm_last_error();
        return context_ptr(ctx);
    }

    static tokens_t random_tokens(size_t n, uint32_t seed = 1) {
        std::mt19937 rng(seed);
        const auto n_vocab = uint32_t(llama_vocab_n_tokens(llama_model_get_vocab(model.get())));
        tokens_t res(n);
        for (auto & t : res) {
            t = llama_token(100 + rng()%(n_vocab - 100));
        }
        return res;
    }

    static int decode(llama_context * ctx, const llama_token * tokens, size_t n, llama_seq_id seq_id = 0, bool all_logits = false) {
        llama_batch batch = llama_batch_init(int32_t(n), 0, 1);
        const auto  p0    = llama_pos(n_tokens(ctx, seq_id));
        for (size_t i = 0; i < n; ++i) {
            batch.token   [i]    = tokens[i];
            batch.pos     [i]    = p0 + llama_pos(i);
            batch.n_seq_id[i]    = 1;
            batch.seq_id  [i][0] = seq_id;
            batch.logits  [i]    = all_logits || i + 1 == n;
        }
        batch.n_tokens = int32_t(n);
        const int rc = llama_decode(ctx, batch);
        llama_batch_free(batch);
        return rc;
    }

    // logits of the next token
    static logits_t feed(llama_context * ctx, const tokens_t & tokens, llama_seq_id seq_id = 0) {
        const int rc = decode(ctx, tokens.data(), tokens.size(), seq_id);
        EXPECT_EQ(rc, 0) << llama_infllm_last_error();
        const float * logits = rc == 0 ? llama_get_logits_ith(ctx, -1) : nullptr;
        return logits ? logits_t(logits, logits + llama_vocab_n_tokens(llama_model_get_vocab(model.get()))) : logits_t();
    }

    static tokens_t slice(const tokens_t & tokens, size_t i0, size_t i1) {
        return tokens_t(tokens.begin() + i0, tokens.begin() + i1);
    }

    static model_ptr model;
    static model_ptr small_model; // the same, but trained for N_TRAIN positions only
};

model_ptr Infllm::model;
model_ptr Infllm::small_model;

class InfllmPosition : public Infllm, public testing::WithParamInterface<llama_infllm_position> {};

// with all layers
class InfllmWhole : public InfllmPosition {
protected:
    static void SetUpTestSuite() {
        if (!model_path().empty()) {
            load(model_path());
        }
    }
};

constexpr auto position_name = [](const auto & info) { return info.param == LLAMA_INFLLM_POSITION_TRUE ? "True" : "Infllm"; };

INSTANTIATE_TEST_SUITE_P(Position, InfllmPosition,
        testing::Values(LLAMA_INFLLM_POSITION_TRUE, LLAMA_INFLLM_POSITION_INFLLM), position_name);
INSTANTIATE_TEST_SUITE_P(Position, InfllmWhole,
        testing::Values(LLAMA_INFLLM_POSITION_TRUE, LLAMA_INFLLM_POSITION_INFLLM), position_name);

//
// attention
//

TEST_P(InfllmPosition, EqualsPlainWhileItFits) {
    auto plain  = make_plain();
    auto infllm = make_infllm(small_params(GetParam()));
    ASSERT_TRUE(plain && infllm);
    EXPECT_TRUE (llama_infllm_active(infllm.get()));
    EXPECT_FALSE(llama_infllm_active(plain.get()));

    tokens_t next = random_tokens(100);
    while (n_tokens(plain.get()) < 110) {
        const auto a = feed(plain.get(),  next);
        const auto b = feed(infllm.get(), next);
        ASSERT_TRUE(all_finite(b));
        ASSERT_LE(max_diff(a, b), 1e-2f) << "after " << n_tokens(plain.get()) << " tokens";
        ASSERT_EQ(argmax(a), argmax(b));
        next = { argmax(a) };
    }
    EXPECT_EQ(get_stats(infllm.get()).n_select, 0u);
    EXPECT_EQ(get_stats(infllm.get()).n_blocks, 0u);
}

// A random text that repeats itself can only be continued by what was read one period ago. That is beyond the ring, so it has
// to be found, paged in and attended at the right positions. Search by keys finds it in every text. Published scores choose by
// the queries of a whole ubatch, and of such a text each wants another block: they find most, over several texts.
TEST_P(InfllmWhole, ContinuesFromPagedBlocks) {
    const uint32_t n_period = 64;
    const uint32_t n_test   = 31; // ubatches end at multiples of N_UBATCH

    // tokens of the last n_test that are predicted
    const auto n_right = [&](llama_context * ctx, const tokens_t & tokens) {
        llama_memory_clear(llama_get_memory(ctx), true);
        const size_t n = tokens.size() - n_test;
        feed(ctx, slice(tokens, 0, n - 1));
        EXPECT_EQ(decode(ctx, &tokens[n - 1], n_test, 0, true), 0);
        int res = 0;
        for (uint32_t i = 0; i < n_test; ++i) {
            const float * l = llama_get_logits_ith(ctx, int32_t(i));
            res += argmax(logits_t(l, l + llama_vocab_n_tokens(llama_model_get_vocab(model.get())))) == tokens[n + i];
        }
        return res;
    };

    auto prm = small_params(GetParam());
    prm.topk              = 8;
    prm.max_cached_blocks = 12;
    auto plain  = make_plain();
    auto infllm = make_infllm(prm);
    prm.topk              = 1;
    prm.max_cached_blocks = 1;
    auto forgetful = make_infllm(prm);
    prm = published_params(GetParam());
    prm.topk = 8;
    auto published = make_infllm(prm);
    ASSERT_TRUE(plain && infllm && forgetful && published);

    int sum_plain     = 0;
    int sum_published = 0;
    for (const uint32_t seed : { 1u, 2u, 3u }) {
        const auto period = random_tokens(n_period, seed);
        tokens_t tokens;
        for (int i = 0; i < 4; ++i) {
            tokens.insert(tokens.end(), period.begin(), period.end());
        }
        const int n_plain = n_right(plain.get(), tokens);
        EXPECT_GE(n_plain, int(n_test)*3/4) << "seed " << seed;
        EXPECT_GE(n_right(infllm.get(), tokens), n_plain*3/4) << "seed " << seed;
        EXPECT_LE(n_right(forgetful.get(), tokens), n_plain/2) << "seed " << seed; // or this test would see nothing
        const int n_published = n_right(published.get(), tokens);
        sum_plain     += n_plain;
        sum_published += n_published;
    }
    EXPECT_GT(2*sum_published, sum_plain);
    EXPECT_GT(get_stats(infllm.get()).n_page_in, 0u);
    EXPECT_GT(get_stats(published.get()).n_page_in, 0u);
}

TEST_P(InfllmPosition, PublishedScoresAreTruncatedAndCopied) {
    auto cprm = context_params();
    cprm.n_ctx     = 2*N_CTX;
    cprm.n_seq_max = 2;

    auto ctx   = make_infllm(published_params(GetParam()), cprm);
    auto fresh = make_infllm(published_params(GetParam()));
    ASSERT_TRUE(ctx && fresh);

    auto *     mem    = llama_get_memory(ctx.get());
    const auto tokens = random_tokens(350);
    feed(ctx.get(), tokens);

    llama_memory_seq_cp(mem, 0, 1, -1, -1);
    const auto more = random_tokens(20, 2);
    EXPECT_EQ(max_diff(feed(ctx.get(), more, 0), feed(ctx.get(), more, 1)), 0.0f);
    EXPECT_EQ(llama_infllm_check_slots(ctx.get()), 0u);

    for (const uint32_t n : { 304u, 259u, 200u, 150u }) {
        ASSERT_TRUE(llama_memory_seq_rm(mem, 0, llama_pos(n), -1));
        ASSERT_TRUE(all_finite(feed(ctx.get(), slice(tokens, n, n + 20))));
        ASSERT_EQ(llama_infllm_check_slots(ctx.get()), 0u);
    }

    // nothing is selected within the buffer
    llama_memory_seq_keep(mem, 1);
    ASSERT_TRUE(llama_memory_seq_rm(mem, 1, 70, -1));
    feed(fresh.get(), slice(tokens, 0, 70));
    EXPECT_EQ(get_stats(ctx.get()).n_blocks, 0u);
    EXPECT_EQ(max_diff(feed(ctx.get(), more, 1), feed(fresh.get(), more)), 0.0f);
}

TEST_P(InfllmPosition, PagesWithBoundedResidentMemory) {
    auto ctx = make_infllm(small_params(GetParam()));
    ASSERT_TRUE(ctx);

    const auto n_layer = uint32_t(llama_model_n_layer(model.get()));
    const auto tokens  = random_tokens(300);
    const auto before  = get_stats(ctx.get());
    EXPECT_EQ(before.n_layer, n_layer);
    EXPECT_EQ(before.n_slots, 8*n_layer);
    EXPECT_EQ(before.n_tokens, 0u);
    EXPECT_EQ(before.bytes_store, 0u);

    uint64_t bytes_block = 0;
    uint64_t n_ubatch    = 0; // that page
    for (uint32_t p = 0; p < tokens.size();) {
        const uint32_t n = p < 288 ? N_UBATCH : 1; // prompt, then single tokens
        ASSERT_TRUE(all_finite(feed(ctx.get(), slice(tokens, p, p + n)))) << "at " << p;

        const auto     stats = get_stats(ctx.get());
        const uint32_t n_blk = n_blocks(p, p + n);
        p += n;
        n_ubatch += n_blk > 0;

        ASSERT_EQ(stats.n_seq,    1u);
        ASSERT_EQ(stats.n_tokens, p);
        ASSERT_EQ(stats.n_blocks, uint64_t(n_blk)*n_layer);
        ASSERT_EQ(stats.n_tokens_resident, n_blk == 0 ? p : p - n_blk*8 + 8*8);
        ASSERT_LE(stats.n_tokens_resident, N_CELLS);
        ASSERT_EQ(stats.bytes_resident, before.bytes_resident);
        ASSERT_EQ(stats.bytes_repr,     before.bytes_repr);
        ASSERT_EQ(stats.n_selected, stats.n_hit + stats.n_page_in);
        ASSERT_EQ(stats.n_select,   n_ubatch*n_layer);
        ASSERT_EQ(stats.n_selected, 4*stats.n_select);

        // the store grows by the same number of bytes for every block
        if (n_blk > 0) {
            if (bytes_block == 0) {
                bytes_block = stats.bytes_store/n_blk;
            }
            ASSERT_EQ(stats.bytes_store, n_blk*bytes_block);
        }
        ASSERT_LE(stats.bytes_store_kv, stats.bytes_store);
    }

    const auto all = get_stats(ctx.get());
    EXPECT_GT(all.n_page_in, 0u);
    EXPECT_GT(all.n_hit,     0u);
    // for a prompt other slots are filled, too
    EXPECT_GE(all.bytes_paged_in, all.n_page_in*(all.bytes_store_kv/all.n_blocks));
    EXPECT_EQ(all.bytes_paged_in%(all.bytes_store_kv/all.n_blocks), 0u);
    EXPECT_EQ(all.bytes_store_kv/all.n_blocks, 8*all.bytes_resident/n_layer/N_ALLOC);

    // the layers add up
    uint64_t n_page_in = 0;
    for (uint32_t il = 0; il < n_layer; ++il) {
        n_page_in += get_stats(ctx.get(), int32_t(il)).n_page_in;
    }
    EXPECT_EQ(n_page_in, all.n_page_in);
    llama_infllm_stats none;
    EXPECT_FALSE(llama_infllm_get_stats(ctx.get(), int32_t(n_layer), &none));

    llama_infllm_reset_stats(ctx.get());
    const auto reset = get_stats(ctx.get());
    EXPECT_EQ(reset.n_selected, 0u);
    EXPECT_EQ(reset.n_blocks, all.n_blocks); // gauges stay
}

TEST_F(Infllm, ContextIsFullAtNCtx) {
    auto cprm = context_params();
    cprm.n_ctx = 256;
    auto ctx = make_infllm(small_params(), cprm);
    ASSERT_TRUE(ctx);

    feed(ctx.get(), random_tokens(256u));
    EXPECT_EQ(n_tokens(ctx.get()), 256u);

    const llama_token token = 100;
    EXPECT_NE(decode(ctx.get(), &token, 1), 0);
    EXPECT_NE(std::string(llama_infllm_last_error()).find("n_ctx is 256"), std::string::npos) << llama_infllm_last_error();
    EXPECT_EQ(n_tokens(ctx.get()), 256u);
}

TEST_P(InfllmPosition, QuantisedCachesPage) {
    for (const ggml_type type : { GGML_TYPE_Q8_0, GGML_TYPE_Q4_0 }) {
        SCOPED_TRACE(ggml_type_name(type));

        auto cprm = context_params();
        cprm.type_k = type;
        cprm.type_v = type;
        auto ctx = make_infllm(small_params(GetParam()), cprm);
        ASSERT_TRUE(ctx);

        ASSERT_TRUE(all_finite(feed(ctx.get(), random_tokens(200))));
        EXPECT_GT(get_stats(ctx.get()).n_page_in, 0u);

        const auto n_embd_k = int64_t(llama_model_n_embd(model.get()))/llama_model_n_head(model.get())*
            llama_model_n_head_kv(model.get());
        EXPECT_EQ(get_stats(ctx.get(), 0).bytes_resident, 2*N_ALLOC*ggml_row_size(type, n_embd_k));
    }
}

//
// memory operations
//

// the same blocks in the same slots, whoever pages, through all that can happen to a sequence
TEST_P(InfllmPosition, DevicePagedEqualsHostPaged) {
    const struct { ggml_type type; uint32_t repr_topk; } cases[] = {
        { GGML_TYPE_F16,  2 }, { GGML_TYPE_Q8_0, 2 }, { GGML_TYPE_Q4_0, 2 }, // all keys of a part
        { GGML_TYPE_F16,  1 }, { GGML_TYPE_Q8_0, 1 },                        // chosen by the queries that follow
    };
    for (const auto & [type, repr_topk] : cases) {
        SCOPED_TRACE(std::string(ggml_type_name(type)) + ", repr_topk = " + std::to_string(repr_topk));

        auto cprm = context_params();
        cprm.type_k = type;
        cprm.type_v = type;

        context_ptr ctx[2];
        for (int i = 0; i < 2; ++i) {
            auto prm = small_params(GetParam());
            prm.paging = i == 0 ? LLAMA_INFLLM_PAGING_HOST : LLAMA_INFLLM_PAGING_DEVICE;
            prm.repr_topk = repr_topk;
            ctx[i] = make_infllm(prm, cprm);
            ASSERT_TRUE(ctx[i]);
        }

        const auto same = [&](const tokens_t & tokens) {
            const auto logits = feed(ctx[0].get(), tokens);
            EXPECT_EQ(max_diff(feed(ctx[1].get(), tokens), logits), 0.0f);

            for (int32_t il = 0; il < llama_model_n_layer(model.get()); ++il) {
                const auto host   = get_stats(ctx[0].get(), il);
                const auto device = get_stats(ctx[1].get(), il);
                EXPECT_EQ(device.n_select,       host.n_select);
                EXPECT_EQ(device.n_selected,     host.n_selected);
                EXPECT_EQ(device.n_page_in,      host.n_page_in) << "layer " << il;
                EXPECT_EQ(device.bytes_paged_in, host.bytes_paged_in);
            }
            for (auto & c : ctx) {
                EXPECT_EQ(llama_infllm_check_slots(c.get()), 0u);
            }
        };

        const auto tokens = random_tokens(256);
        same(slice(tokens, 0, 70));    // fits
        same(slice(tokens, 70, 190));  // overflows
        for (size_t i = 190; i < 200; ++i) {
            same(slice(tokens, i, i + 1));
        }
        for (auto & c : ctx) { // blocks come back into the ring
            ASSERT_TRUE(llama_memory_seq_rm(llama_get_memory(c.get()), 0, 150, -1));
        }
        same(slice(tokens, 150, 256));
        EXPECT_GT(get_stats(ctx[1].get()).n_page_in, 0u);

        for (auto & c : ctx) {
            llama_memory_clear(llama_get_memory(c.get()), true);
            llama_infllm_reset_stats(c.get());
        }
        same(slice(tokens, 0, 200));
    }
}

// memory that can be pinned runs out in the middle: the host takes over what the device has done
TEST_P(InfllmPosition, HostTakesOverFromTheDevice) {
    auto prm = small_params(GetParam());
    prm.paging = LLAMA_INFLLM_PAGING_HOST;
    auto host = make_infllm(prm);
    ASSERT_TRUE(host);

    const auto tokens = random_tokens(240);
    feed(host.get(), slice(tokens, 0, 180));

    prm.paging           = LLAMA_INFLLM_PAGING_DEVICE;
    prm.pinned_max_bytes = get_stats(host.get()).bytes_store;
    auto device = make_infllm(prm);
    ASSERT_TRUE(device);
    feed(device.get(), slice(tokens, 0, 180));

    EXPECT_EQ(max_diff(feed(device.get(), slice(tokens, 180, 240)), feed(host.get(), slice(tokens, 180, 240))), 0.0f);
    EXPECT_EQ(get_stats(device.get()).n_page_in, get_stats(host.get()).n_page_in);

    // tracing needs the scores, which a device keeps to itself
    auto traced = make_infllm(prm);
    ASSERT_TRUE(traced);
    feed(traced.get(), slice(tokens, 0, 180));
    int n_event = 0;
    llama_infllm_set_trace(traced.get(), [](const llama_infllm_trace_event *, void * n) { ++*static_cast<int *>(n); }, &n_event);
    feed(traced.get(), slice(tokens, 180, 184));
    EXPECT_EQ(n_event, llama_model_n_layer(model.get()));
}

// However often slots were filled and the ring went round, a key is what it was when it was written: it is rotated in slots alone,
// from what the store has.
TEST_P(InfllmPosition, TruncatedBelowTheBufferIsExact) {
    for (const ggml_type type : { GGML_TYPE_F16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0 }) {
        SCOPED_TRACE(ggml_type_name(type));

        auto cprm = context_params();
        cprm.type_k = type;
        cprm.type_v = type;
        auto ctx   = make_infllm(small_params(GetParam()), cprm);
        auto fresh = make_infllm(small_params(GetParam()), cprm);
        ASSERT_TRUE(ctx && fresh);

        const auto tokens = random_tokens(400);
        feed(ctx.get(), tokens);
        EXPECT_GT(get_stats(ctx.get()).n_blocks, 0u);

        ASSERT_TRUE(llama_memory_seq_rm(llama_get_memory(ctx.get()), 0, 96, -1));
        EXPECT_EQ(n_tokens(ctx.get()), 96u);
        EXPECT_EQ(get_stats(ctx.get()).n_blocks, 0u);
        EXPECT_EQ(get_stats(ctx.get()).bytes_store, 0u);
        EXPECT_EQ(get_stats(ctx.get()).n_tokens_resident, 96u);

        feed(fresh.get(), slice(tokens, 0, 96));

        const auto more = random_tokens(20, 2);
        EXPECT_EQ(max_diff(feed(ctx.get(), more), feed(fresh.get(), more)), 0.0f);
        EXPECT_EQ(max_diff(feed(ctx.get(), { more[0] }), feed(fresh.get(), { more[0] })), 0.0f);
    }
}

TEST_P(InfllmPosition, TruncatedWhilePagingKeepsPaging) {
    auto ctx   = make_infllm(small_params(GetParam()));
    auto fresh = make_infllm(small_params(GetParam()));
    ASSERT_TRUE(ctx && fresh);

    const auto tokens = random_tokens(350);
    feed(ctx.get(), tokens);
    for (const uint32_t n : { 304u, 259u, 200u, 150u, 129u }) {
        ASSERT_TRUE(llama_memory_seq_rm(llama_get_memory(ctx.get()), 0, llama_pos(n), -1));
        const auto stats = get_stats(ctx.get());
        ASSERT_EQ(stats.n_tokens, n);
        ASSERT_EQ(stats.n_blocks, uint64_t(n_blocks(n, n))*stats.n_layer);
        ASSERT_LE(stats.n_tokens_resident, N_CELLS);
        ASSERT_TRUE(all_finite(feed(ctx.get(), slice(tokens, n, n + 1))));
        ASSERT_EQ(n_tokens(ctx.get()), n + 1);
    }

    // from here on again, to the same gauges as without the detour
    feed(ctx.get(),   slice(tokens, 130, 350));
    feed(fresh.get(), tokens);
    const auto a = get_stats(ctx.get());
    const auto b = get_stats(fresh.get());
    EXPECT_EQ(a.n_tokens,          b.n_tokens);
    EXPECT_EQ(n_tokens(ctx.get()), 350u);
    EXPECT_GE(a.n_blocks + b.n_layer*2, b.n_blocks);
    EXPECT_LE(a.n_blocks, b.n_blocks + b.n_layer*2);
}

// what blocks are selected for every ubatch, by layer, and in which order
struct selections {
    std::vector<std::vector<int32_t>> blocks;

    static void trace(const llama_infllm_trace_event * e, void * user_data) {
        auto & s = *static_cast<selections *>(user_data);
        s.blocks.emplace_back(e->selected, e->selected + e->n_selected);
    }
};

// Whatever came after the truncation point, and whatever it had paged in: more slots than are selected, or as many
TEST_P(InfllmPosition, TheSameTextAgainGivesTheSameLogitsAndSelections) {
    for (const uint32_t n_slot : { 4u, 8u }) {
        SCOPED_TRACE(n_slot);

        auto prm = small_params(GetParam());
        prm.topk              = std::min(4u, n_slot);
        prm.max_cached_blocks = n_slot;
        auto ctx = make_infllm(prm);
        ASSERT_TRUE(ctx);
        auto * mem = llama_get_memory(ctx.get());

        // a text that ends with a question, and what is decoded afterwards
        const auto text = random_tokens(230);
        const auto run  = [&](uint32_t from, selections & sel) {
            EXPECT_TRUE(llama_memory_seq_rm(mem, 0, llama_pos(from), -1));
            if (prm.paging != LLAMA_INFLLM_PAGING_DEVICE) { // the host would take over
                llama_infllm_set_trace(ctx.get(), selections::trace, &sel);
            }
            auto res = feed(ctx.get(), slice(text, from, text.size()));
            for (int i = 0; i < 20; ++i) {
                const auto next = feed(ctx.get(), { 300 + i });
                res.insert(res.end(), next.begin(), next.end());
            }
            llama_infllm_set_trace(ctx.get(), nullptr, nullptr);
            EXPECT_EQ(llama_infllm_check_slots(ctx.get()), 0u);
            return res;
        };

        selections first;
        const auto expected = run(0, first);
        ASSERT_TRUE(all_finite(expected));
        // another text comes in between; from the start, from where any ubatch begins, and from where the question begins
        for (const uint32_t from : { 0u, 112u, 208u, uint32_t(text.size()) - N_END }) {
            SCOPED_TRACE("again from " + std::to_string(from));
            feed(ctx.get(), random_tokens(60, from));
            selections again;
            ASSERT_EQ(max_diff(run(from, again), expected), 0.0f);
            ASSERT_LE(again.blocks.size(), first.blocks.size());
            ASSERT_TRUE(std::equal(again.blocks.rbegin(), again.blocks.rend(), first.blocks.rbegin()));
        }
    }
}

// any n_batch that is not below n_ubatch, where batches end at multiples of n_ubatch and before the question
TEST_P(InfllmPosition, BatchesOfAnySizeGiveTheSameLogits) {
    const auto text = random_tokens(262);
    const auto p1   = uint32_t(text.size());

    logits_t expected;
    for (const uint32_t n_batch : { 512u, 64u, 33u, 16u }) {
        auto cprm = context_params();
        cprm.n_batch = n_batch;
        auto ctx = make_infllm(small_params(GetParam()), cprm);
        ASSERT_TRUE(ctx);

        for (uint32_t p0 = 0; p0 < p1;) {
            const uint32_t end = llama_infllm_batch_end(ctx.get(), p0, p1, true);
            ASSERT_LE(end - p0, n_batch);
            llama_batch batch = llama_batch_get_one(const_cast<llama_token *>(text.data()) + p0, int32_t(end - p0));
            std::vector<int8_t> outputs(end - p0, 0);
            outputs.back() = end == p1;
            batch.logits = outputs.data();
            ASSERT_EQ(llama_decode(ctx.get(), batch), 0);
            p0 = end;
        }
        const float * l = llama_get_logits_ith(ctx.get(), -1);
        const logits_t logits(l, l + llama_vocab_n_tokens(llama_model_get_vocab(model.get())));
        if (expected.empty()) {
            expected = logits;
        }
        EXPECT_EQ(max_diff(logits, expected), 0.0f) << n_batch;
    }
}

TEST_P(InfllmPosition, RemovingTheMiddleChangesNothing) {
    auto ctx  = make_infllm(small_params(GetParam()));
    auto same = make_infllm(small_params(GetParam()));
    ASSERT_TRUE(ctx && same);

    const auto tokens = random_tokens(200);
    feed(ctx.get(),  tokens);
    feed(same.get(), tokens);

    auto * mem = llama_get_memory(ctx.get());
    EXPECT_FALSE(llama_memory_seq_rm(mem, 0, 10, 20));
    EXPECT_FALSE(llama_memory_seq_rm(mem, 0, 170, 199));
    EXPECT_FALSE(llama_memory_seq_rm(mem, -1, 0, 100));
    EXPECT_TRUE (llama_memory_seq_rm(mem, 0, 200, -1)); // nothing is there
    EXPECT_FALSE(llama_memory_can_shift(mem));
    llama_memory_seq_add(mem, 0, 100, -1, -50);
    llama_memory_seq_div(mem, 0, 0, -1, 2);

    EXPECT_EQ(n_tokens(ctx.get()), 200u);
    EXPECT_EQ(llama_memory_seq_pos_min(mem, 0), 0);
    EXPECT_EQ(get_stats(ctx.get()).n_blocks, get_stats(same.get()).n_blocks);
    EXPECT_EQ(max_diff(feed(ctx.get(), { 300 }), feed(same.get(), { 300 })), 0.0f);
}

TEST_P(InfllmPosition, ClearStartsAnew) {
    auto ctx   = make_infllm(small_params(GetParam()));
    auto fresh = make_infllm(small_params(GetParam()));
    ASSERT_TRUE(ctx && fresh);

    for (const bool data : { true, false }) {
        feed(ctx.get(), random_tokens(150, 2));
        llama_memory_clear(llama_get_memory(ctx.get()), data);
        EXPECT_EQ(n_tokens(ctx.get()), 0u);
        EXPECT_EQ(get_stats(ctx.get()).bytes_store, 0u);
        EXPECT_EQ(get_stats(ctx.get()).n_seq, 0u);
    }

    const auto tokens = random_tokens(200);
    EXPECT_EQ(max_diff(feed(ctx.get(), tokens), feed(fresh.get(), tokens)), 0.0f);
}

TEST_P(InfllmPosition, InterleavedSequencesAreIndependent) {
    auto cprm = context_params();
    cprm.n_ctx     = 2*N_CTX;
    cprm.n_seq_max = 2;

    auto both = make_infllm(small_params(GetParam()), cprm);
    ASSERT_TRUE(both);

    const tokens_t tokens[2] = { random_tokens(224, 1), random_tokens(160, 2) };
    logits_t last[2];
    for (size_t i = 0; i < 224; i += 32) {
        for (int s = 0; s < 2; ++s) {
            if (i < tokens[s].size()) {
                last[s] = feed(both.get(), slice(tokens[s], i, i + 32), s);
            }
        }
    }
    EXPECT_EQ(get_stats(both.get()).n_seq, 2u);
    EXPECT_EQ(get_stats(both.get()).n_tokens, 224u + 160u);

    for (int s = 0; s < 2; ++s) {
        auto alone = make_infllm(small_params(GetParam()));
        ASSERT_TRUE(alone);
        logits_t logits;
        for (size_t i = 0; i < tokens[s].size(); i += 32) {
            logits = feed(alone.get(), slice(tokens[s], i, i + 32));
        }
        EXPECT_EQ(max_diff(last[s], logits), 0.0f) << "sequence " << s;
    }
}

TEST_P(InfllmPosition, CopyContinuesLikeItsSource) {
    auto cprm = context_params();
    cprm.n_ctx     = 2*N_CTX;
    cprm.n_seq_max = 2;

    auto ctx   = make_infllm(small_params(GetParam()), cprm);
    auto alone = make_infllm(small_params(GetParam()));
    ASSERT_TRUE(ctx && alone);

    const auto tokens = random_tokens(200);
    const auto more   = random_tokens(40, 2);
    feed(ctx.get(),   tokens);
    feed(alone.get(), tokens);

    auto * mem = llama_get_memory(ctx.get());
    const auto n_stored = get_stats(ctx.get()).n_blocks;
    llama_memory_seq_cp(mem, 0, 1, -1, -1);
    EXPECT_EQ(n_tokens(ctx.get(), 1), 200u);
    EXPECT_EQ(get_stats(ctx.get()).n_blocks, n_stored); // shared

    const auto expected = feed(alone.get(), more);
    EXPECT_EQ(max_diff(feed(ctx.get(), more, 1), expected), 0.0f);
    EXPECT_EQ(max_diff(feed(ctx.get(), more, 0), expected), 0.0f);

    // the copy outlives its source
    EXPECT_TRUE(llama_memory_seq_rm(mem, 0, -1, -1));
    EXPECT_EQ(n_tokens(ctx.get(), 0), 0u);
    EXPECT_EQ(max_diff(feed(ctx.get(), { 300 }, 1), feed(alone.get(), { 300 })), 0.0f);

    llama_memory_seq_keep(mem, 0);
    EXPECT_EQ(get_stats(ctx.get()).bytes_store, 0u);
}

//
// failures
//

TEST_P(InfllmPosition, FullStoreFailsTheBatchOnly) {
    auto probe = make_infllm(small_params(GetParam()));
    ASSERT_TRUE(probe);
    feed(probe.get(), random_tokens(192));
    feed(probe.get(), random_tokens(4));
    const auto stats = get_stats(probe.get());

    auto prm = small_params(GetParam());
    prm.store_max_bytes = stats.bytes_store + 1;
    auto ctx = make_infllm(prm);
    ASSERT_TRUE(ctx);

    const auto tokens = random_tokens(296);
    feed(ctx.get(), slice(tokens, 0, 192));
    feed(ctx.get(), slice(tokens, 192, 196));
    const auto before = get_stats(ctx.get());

    EXPECT_NE(decode(ctx.get(), tokens.data() + 196, 100), 0);
    const std::string error = llama_infllm_last_error();
    EXPECT_NE(error.find("store_max_bytes"), std::string::npos) << error;
    EXPECT_EQ(n_tokens(ctx.get()), 196u);
    EXPECT_EQ(get_stats(ctx.get()).n_blocks, before.n_blocks);

    // what fits still works: here until the next block leaves
    EXPECT_TRUE(all_finite(feed(ctx.get(), { 300 })));
    EXPECT_EQ(n_tokens(ctx.get()), 197u);

    llama_memory_clear(llama_get_memory(ctx.get()), true);
    EXPECT_TRUE(all_finite(feed(ctx.get(), slice(tokens, 0, 196))));
    EXPECT_EQ(n_tokens(ctx.get()), 196u);
}

// where blocks are makes no difference to what is computed
TEST_P(InfllmPosition, TheStoreGoesOnInFiles) {
    auto prm = small_params(GetParam());
    prm.paging = LLAMA_INFLLM_PAGING_HOST;
    auto in_memory = make_infllm(prm);
    prm.store_max_bytes = 1;
    std::strcpy(prm.store_path, testing::TempDir().c_str());
    auto in_files = make_infllm(prm);
    ASSERT_TRUE(in_memory && in_files) << llama_infllm_last_error();

    const auto tokens = random_tokens(400);
    EXPECT_EQ(feed(in_files.get(), tokens), feed(in_memory.get(), tokens));
    EXPECT_EQ(feed(in_files.get(), { 7 }), feed(in_memory.get(), { 7 }));
    const auto stats = get_stats(in_files.get());
    EXPECT_GT(stats.bytes_store, 0u);
    EXPECT_EQ(stats.bytes_store_file, stats.bytes_store);
    EXPECT_EQ(get_stats(in_memory.get()).bytes_store_file, 0u);
    EXPECT_EQ(llama_infllm_check_slots(in_files.get()), 0u);

    llama_memory_seq_rm(llama_get_memory(in_files .get()), 0, 200, -1);
    llama_memory_seq_rm(llama_get_memory(in_memory.get()), 0, 200, -1);
    EXPECT_EQ(feed(in_files.get(), slice(tokens, 0, 250)), feed(in_memory.get(), slice(tokens, 0, 250)));
}

// what was computed before the failure is kept; what comes after it is as if there had been none
TEST_P(InfllmPosition, AbortedDecodeIsResumed) {
    auto ctx   = make_infllm(small_params(GetParam()));
    auto fresh = make_infllm(small_params(GetParam()));
    ASSERT_TRUE(ctx && fresh);

    // The device keeps its slots to itself: for a single token, these are what the aborted computation left. (No device can be
    // aborted.)
    const bool device = small_params().paging == LLAMA_INFLLM_PAGING_DEVICE;

    const auto tokens = random_tokens(290);
    const struct { uint32_t n0; uint32_t n1; } cases[] = {
        { 112, 142 }, // the aborted batch begins to page
        { 240, 270 }, // it goes on, and the slots move
        { 250, 251 }, // a single token
    };
    for (const auto & [n0, n1] : cases) {
        SCOPED_TRACE(n0);
        const uint32_t n_new = n1 - n0;

        llama_memory_clear(llama_get_memory(fresh.get()), true);
        feed(fresh.get(), slice(tokens, 0, n0));
        const auto expected = feed(fresh.get(), slice(tokens, n0, n1));
        const auto after    = feed(fresh.get(), { 300 });

        // aborted after so many calls of the callback; returns what is left of them
        const auto decode_aborted = [&](int n_left, int expected_rc) {
            llama_memory_clear(llama_get_memory(ctx.get()), true);
            feed(ctx.get(), slice(tokens, 0, n0));
            llama_set_abort_callback(ctx.get(), [](void * data) { return --*static_cast<int *>(data) < 0; }, &n_left);
            EXPECT_EQ(decode(ctx.get(), tokens.data() + n0, n_new), expected_rc);
            llama_set_abort_callback(ctx.get(), nullptr, nullptr);
            return n_left;
        };
        const int n_calls = INT_MAX - decode_aborted(INT_MAX, 0);
        ASSERT_GT(n_calls, 4);

        for (const int eighths : { 1, 5 }) {
            SCOPED_TRACE(eighths);
            decode_aborted(n_calls*eighths/8, 2);
            const uint32_t n_kept = n_tokens(ctx.get());
            ASSERT_TRUE(n_kept == n0 || (n_new > 1 && (n_kept == n0 + n_new - N_END || n_kept%N_UBATCH == 0))) << n_kept;
            ASSERT_EQ(get_stats(ctx.get()).n_tokens, n_kept);

            const auto logits = feed(ctx.get(), slice(tokens, n_kept, n1));
            ASSERT_TRUE(all_finite(logits));
            ASSERT_EQ(n_tokens(ctx.get()), n1);
            if (!device || n_new > 1) {
                ASSERT_EQ(max_diff(logits, expected), 0.0f);
                ASSERT_EQ(max_diff(feed(ctx.get(), { 300 }), after), 0.0f);
            }
            ASSERT_EQ(llama_infllm_check_slots(ctx.get()), 0u);
        }
    }
}

TEST_F(Infllm, TokensMustFollowOnEachOther) {
    auto ctx = make_infllm();
    ASSERT_TRUE(ctx);
    feed(ctx.get(), random_tokens(10));

    llama_batch batch = llama_batch_init(1, 0, 1);
    batch.n_tokens = 1;
    batch.token   [0]    = 300;
    batch.pos     [0]    = 20;
    batch.n_seq_id[0]    = 1;
    batch.seq_id  [0][0] = 0;
    batch.logits  [0]    = 1;
    EXPECT_NE(llama_decode(ctx.get(), batch), 0);
    llama_batch_free(batch);

    EXPECT_EQ(n_tokens(ctx.get()), 10u);
    EXPECT_TRUE(all_finite(feed(ctx.get(), { 300 })));
}

TEST_F(Infllm, SequenceBeyondTheContextIsRefused) {
    auto cprm = context_params();
    cprm.kv_unified = true; // a plain cache then takes sequences as they come; this one has a buffer for each
    auto ctx = make_infllm(small_params(), cprm);
    ASSERT_TRUE(ctx);
    feed(ctx.get(), random_tokens(10));

    llama_batch batch = llama_batch_init(1, 0, 1);
    batch.n_tokens = 1;
    batch.token   [0]    = 300;
    batch.pos     [0]    = 0;
    batch.n_seq_id[0]    = 1;
    batch.seq_id  [0][0] = 7;
    batch.logits  [0]    = 1;
    EXPECT_NE(llama_decode(ctx.get(), batch), 0);
    llama_batch_free(batch);

    EXPECT_EQ(n_tokens(ctx.get()), 10u);
}

//
// parameters
//

namespace {

struct bad_case {
    const char * name;
    void (*change)(llama_infllm_params &, llama_context_params &);
    std::vector<const char *> expected; // in the error
};

std::ostream & operator<<(std::ostream & os, const bad_case & c) { return os << c.name; }

} // namespace

class InfllmBadParams : public Infllm, public testing::WithParamInterface<bad_case> {};

INSTANTIATE_TEST_SUITE_P(Params, InfllmBadParams, testing::Values(
    bad_case { "NoFolder",         [](auto & p, auto &) { std::strcpy(p.store_path, "/none"); }, { "store_path = \"/none\"" } },
    bad_case { "FilesOfDevices",   [](auto & p, auto &) { p.store_path[0] = '.'; p.paging = LLAMA_INFLLM_PAGING_DEVICE; },
        { "paging = device", "store_path" } },
    bad_case { "TopkAboveSlots",   [](auto & p, auto &) { p.topk = 9; },           { "topk = 9", "max_cached_blocks = 8" } },
    bad_case { "NoBlockSize",      [](auto & p, auto &) { p.block_size = 0; },     { "block_size = 0", "1 to 4096" } },
    bad_case { "HugeBlockSize",    [](auto & p, auto &) { p.block_size = 5000; },  { "block_size = 5000", "1 to 4096" } },
    bad_case { "BlockAboveLocal",  [](auto & p, auto &) { p.block_size = 33; },    { "block_size = 33", "n_local = 32" } },
    bad_case { "ReprAboveBlock",   [](auto & p, auto &) { p.repr_topk = 9; },      { "repr_topk = 9", "0 to 8" } },
    bad_case { "ReprNoDivisor",    [](auto & p, auto &) { p.n_repr = 3; },         { "n_repr = 3", "block_size = 8" } },
    bad_case { "ReprAbovePart",    [](auto & p, auto &) { p.n_repr = 4; p.repr_topk = 3; }, { "n_repr = 4", "repr_topk = 3" } },
    bad_case { "HugeScore",        [](auto & p, auto &) { p.n_score = UINT32_MAX; }, { "n_score = 4294967295" } },
    bad_case { "ScoreAboveLocal",  [](auto & p, auto &) { p.n_score = 33; },       { "n_score = 33", "n_local = 32" } },
    bad_case { "HugeInit",         [](auto & p, auto &) { p.n_init = UINT32_MAX; }, { "n_init = 4294967295" } },
    bad_case { "UbatchAboveLocal", [](auto &, auto & c) { c.n_ubatch = 128; },     { "n_ubatch = 128", "n_local = 32" } },
    bad_case { "BadPosition",      [](auto & p, auto &) { p.position = llama_infllm_position(3); }, { "position = 3" } },
    bad_case { "BadAttend",        [](auto & p, auto &) { p.attend = llama_infllm_attend(2); }, { "attend = 2" } },
    bad_case { "BadScores",        [](auto & p, auto &) { p.scores = llama_infllm_scores(2); }, { "scores = 2" } },
    bad_case { "BadSearch",        [](auto & p, auto &) { p.search = llama_infllm_search(5); }, { "search = 5" } },
    bad_case { "PublishedByKeys",
        [](auto & p, auto &) { p.scores = LLAMA_INFLLM_SCORES_PUBLISHED; p.search = LLAMA_INFLLM_SEARCH_KEYS; p.paging = LLAMA_INFLLM_PAGING_HOST; },
        { "search = keys", "scores = published" } },
    bad_case { "PublishedOnce",
        [](auto & p, auto &) { p.scores = LLAMA_INFLLM_SCORES_PUBLISHED; p.search = LLAMA_INFLLM_SEARCH_PRESELECT; p.paging = LLAMA_INFLLM_PAGING_HOST; },
        { "search = preselect", "scores = published" } },
    bad_case { "BoundsOfSome",     [](auto & p, auto &) { p.search = LLAMA_INFLLM_SEARCH_QUEST; p.repr_topk = 1; },
        { "repr_topk = 1", "search = quest", "2 keys" } },
    bad_case { "AttendBelowSlots", [](auto & p, auto &) { p.attend = LLAMA_INFLLM_ATTEND_TOPK; p.topk = 4; },
        { "max_cached_blocks = 8", "attend = topk" } },
    bad_case { "PublishedOnDevice",
        [](auto & p, auto &) { p.scores = LLAMA_INFLLM_SCORES_PUBLISHED; p.paging = LLAMA_INFLLM_PAGING_DEVICE; },
        { "paging = device", "scores = published" } },
    bad_case { "FlashAttentionOff",
        [](auto &, auto & c) { c.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED; }, { "flash_attn = off" } },
    bad_case { "UnsupportedType",
        [](auto &, auto & c) { c.type_v = GGML_TYPE_F32; }, { "type_v = f32", "q8_0" } }),
    [](const auto & info) { return info.param.name; });

TEST_P(InfllmBadParams, AreRefusedByName) {
    auto prm  = small_params();
    auto cprm = context_params();
    GetParam().change(prm, cprm);

    const context_ptr ctx(llama_infllm_init_from_model(model.get(), cprm, prm));
    EXPECT_EQ(ctx, nullptr);
    const std::string error = llama_infllm_last_error();
    for (const char * part : GetParam().expected) {
        EXPECT_NE(error.find(part), std::string::npos) << "no \"" << part << "\" in: " << error;
    }

    // the next context does not inherit anything
    EXPECT_NE(make_infllm(), nullptr);
    EXPECT_STREQ(llama_infllm_last_error(), "");
}

TEST_F(Infllm, BufferMustFitTheTrainingLength) {
    auto prm = small_params(LLAMA_INFLLM_POSITION_INFLLM);
    prm.max_cached_blocks = 13; // 168 cells
    const context_ptr ctx(llama_infllm_init_from_model(small_model.get(), context_params(), prm));
    EXPECT_EQ(ctx, nullptr);
    const std::string error = llama_infllm_last_error();
    EXPECT_NE(error.find("max_cached_blocks = 13"), std::string::npos) << error;
    EXPECT_NE(error.find("n_ctx_train = 160"),      std::string::npos) << error;
}

TEST_F(Infllm, NoModelIsAnError) {
    EXPECT_EQ(llama_infllm_init_from_model(nullptr, context_params(), small_params()), nullptr);
    EXPECT_NE(std::string(llama_infllm_last_error()).find("model"), std::string::npos);
}

TEST_F(Infllm, AutomaticValuesAreResolved) {
    auto prm  = llama_infllm_default_params();
    auto cprm = context_params();

    ASSERT_TRUE(llama_infllm_params_resolve(model.get(), &cprm, &prm)) << llama_infllm_last_error();
    EXPECT_GE(prm.n_local, cprm.n_ubatch);
    EXPECT_EQ(prm.max_cached_blocks, prm.topk);
    EXPECT_EQ(prm.position, LLAMA_INFLLM_POSITION_TRUE); // n_ctx is below the training length

    prm = small_params(LLAMA_INFLLM_POSITION_AUTO);
    ASSERT_TRUE(llama_infllm_params_resolve(small_model.get(), &cprm, &prm)) << llama_infllm_last_error();
    EXPECT_EQ(prm.position, LLAMA_INFLLM_POSITION_INFLLM);
    EXPECT_EQ(llama_infllm_n_cells(&prm, N_UBATCH), N_ALLOC);

    auto ctx = make_infllm();
    ASSERT_TRUE(ctx);
    llama_infllm_params got = {};
    ASSERT_TRUE(llama_infllm_get_params(ctx.get(), &got));
    EXPECT_EQ(got.max_cached_blocks, 8u);
    EXPECT_FALSE(llama_infllm_get_params(make_plain().get(), &got));
}

TEST(InfllmParse, GoodTexts) {
    auto prm     = llama_infllm_default_params();
    bool enabled = false;

    EXPECT_TRUE(llama_infllm_params_parse("1", &prm, &enabled));
    EXPECT_TRUE(enabled);
    EXPECT_EQ(prm.block_size, llama_infllm_default_params().block_size);

    for (const char * off : { "", "0" }) {
        EXPECT_TRUE(llama_infllm_params_parse(off, &prm, &enabled));
        EXPECT_FALSE(enabled);
    }
    EXPECT_TRUE(llama_infllm_params_parse(nullptr, &prm, &enabled));
    EXPECT_FALSE(enabled);

    EXPECT_TRUE(llama_infllm_params_parse(
            "n_init=1,n_local=2,block_size=3,topk=4,max_cached_blocks=5,repr_topk=6,n_score=7,n_repr=8,position=infllm,"
            "attend=topk,scores=published,search=queries,paging=host,store_max_bytes=8589934592,store_path=/tmp", &prm, &enabled));
    EXPECT_TRUE(enabled);
    EXPECT_EQ(prm.n_init,            1u);
    EXPECT_EQ(prm.n_local,           2u);
    EXPECT_EQ(prm.block_size,        3u);
    EXPECT_EQ(prm.topk,              4u);
    EXPECT_EQ(prm.max_cached_blocks, 5u);
    EXPECT_EQ(prm.repr_topk,         6u);
    EXPECT_EQ(prm.n_repr,            8u);
    EXPECT_EQ(prm.n_score,           7u);
    EXPECT_EQ(prm.position,          LLAMA_INFLLM_POSITION_INFLLM);
    EXPECT_EQ(prm.attend,            LLAMA_INFLLM_ATTEND_TOPK);
    EXPECT_EQ(prm.scores,            LLAMA_INFLLM_SCORES_PUBLISHED);
    EXPECT_EQ(prm.search,            LLAMA_INFLLM_SEARCH_QUERIES);
    EXPECT_EQ(prm.paging,            LLAMA_INFLLM_PAGING_HOST);
    EXPECT_EQ(prm.store_max_bytes,   8589934592u);
    EXPECT_STREQ(prm.store_path,     "/tmp");
}

TEST(InfllmParse, BadTexts) {
    for (const char * text : {
            "2", "yes", "topk", "topk=", "topk=-1", "topk=4x", "topk=4294967296", "topk= 4", "window=4", "position=far",
            "position=", "attend=all", "search=tokens", "scores=", "store_max_bytes=99999999999999999999", "store_path=", "n_init=4,,topk=4", "n_init=4;topk=4" }) {
        auto prm     = llama_infllm_default_params();
        bool enabled = false;
        EXPECT_FALSE(llama_infllm_params_parse(text, &prm, &enabled)) << text;
        EXPECT_STRNE(llama_infllm_last_error(), "") << text;
    }
}

//
// trace
//

// a question often ends a text: blocks are selected for it alone, whatever comes before it in the batch
TEST_F(Infllm, EndOfATextIsAUbatchOfItsOwn) {
    auto prm = small_params();
    prm.n_score = 5;

    std::vector<uint32_t> sizes;
    const auto trace = [](const llama_infllm_trace_event * e, void * user_data) {
        if (e->il == 0) {
            static_cast<std::vector<uint32_t> *>(user_data)->push_back(e->n_tokens);
        }
    };
    const auto trace_sizes = [&](llama_infllm_search search, bool all_logits) {
        prm.search = search;
        auto ctx = make_infllm(prm);
        EXPECT_TRUE(ctx);

        const auto tokens = random_tokens(236);
        feed(ctx.get(), slice(tokens, 0, 100));
        llama_infllm_set_trace(ctx.get(), trace, &sizes);
        sizes.clear();
        EXPECT_EQ(decode(ctx.get(), tokens.data() + 100, 100, 0, all_logits), 0);
        EXPECT_EQ(decode(ctx.get(), tokens.data() + 200, 1,   0, all_logits), 0);
        return sizes;
    };

    // the first ubatches fit
    EXPECT_EQ(trace_sizes(LLAMA_INFLLM_SEARCH_KEYS, false),    (std::vector<uint32_t> { 16, 16, 16, 14, 10, 1 }));
    EXPECT_EQ(trace_sizes(LLAMA_INFLLM_SEARCH_KEYS, true),     (std::vector<uint32_t> { 16, 16, 16, 16, 8, 1 }));
    EXPECT_EQ(trace_sizes(LLAMA_INFLLM_SEARCH_QUERIES, false), (std::vector<uint32_t> { 16, 16, 16, 16, 8, 1 }));
}

TEST_F(Infllm, TraceSeesEveryLayer) {
    auto ctx = make_infllm();
    ASSERT_TRUE(ctx);
    const auto n_layer = llama_model_n_layer(model.get());
    const auto tokens  = random_tokens(240);

    struct seen {
        std::vector<int> n_events;
        uint64_t n_selected = 0;
        uint64_t n_page_in  = 0;
        bool     ok         = true;
    } res;
    res.n_events.resize(size_t(n_layer));

    feed(ctx.get(), slice(tokens, 0, 208));
    llama_infllm_reset_stats(ctx.get());
    llama_infllm_set_trace(ctx.get(), [](const llama_infllm_trace_event * e, void * user_data) {
        auto & r = *static_cast<seen *>(user_data);
        r.n_events.at(size_t(e->il))++;
        r.n_selected += e->n_selected;
        r.n_page_in  += e->n_page_in;
        r.ok = r.ok && e->seq_id == 0 && (e->pos == 208 || e->pos == 224) && e->n_tokens == N_UBATCH;
        r.ok = r.ok && e->n_selected == 4 && e->n_page_in <= e->n_selected;
        r.ok = r.ok && e->n_blocks == n_blocks(uint32_t(e->pos), uint32_t(e->pos) + N_UBATCH);
        for (uint32_t i = 0; i < e->n_selected; ++i) {
            const int32_t b = e->selected[i];
            r.ok = r.ok && b >= 0 && uint32_t(b) < e->n_blocks;
            r.ok = r.ok && (i == 0 || e->scores[e->selected[i - 1]] >= e->scores[b]);
            for (uint32_t j = 0; j < i; ++j) {
                r.ok = r.ok && e->selected[j] != b;
            }
        }
        for (uint32_t b = 0; b < e->n_blocks; ++b) {
            r.ok = r.ok && std::isfinite(e->scores[b]);
        }
    }, &res);
    feed(ctx.get(), slice(tokens, 208, 240));

    EXPECT_TRUE(res.ok);
    for (const int n : res.n_events) {
        EXPECT_EQ(n, 2);
    }
    const auto stats = get_stats(ctx.get());
    EXPECT_EQ(stats.n_selected, res.n_selected);
    EXPECT_EQ(stats.n_page_in,  res.n_page_in);

    llama_infllm_set_trace(ctx.get(), nullptr, nullptr);
    feed(ctx.get(), { 300 });
    EXPECT_EQ(res.n_events[0], 2);
}
