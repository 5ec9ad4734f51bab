// All types of K and V that ggml has, with all kinds of heads, on tiny random models of one layer: a context works, past its
// resident buffer, in both position modes, paged by the host and by the device; or it is refused by a sentence.

#include "tiny-model.h"

#include "llama-infllm.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <string>
#include <vector>

namespace {

constexpr uint32_t N_CTX    = TINY_N_CTX_TRAIN;
constexpr uint32_t N_FIT    = 64;  // of 80 resident cells: 8 init, 4 slots of 8, ring of 16 + 8 + 16
constexpr uint32_t N_UBATCH = 16;

const std::set<ggml_type> works = {
    GGML_TYPE_F16,  GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q5_1, GGML_TYPE_Q5_0, GGML_TYPE_Q4_1, GGML_TYPE_Q4_0, GGML_TYPE_IQ4_NL,
};
// K of these types, and heads up to 256, are what devices page
const std::set<ggml_type> pages_on_device = { GGML_TYPE_F16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0 };

std::vector<ggml_type> all_types() {
    std::vector<ggml_type> res;
    for (int t = 0; t < GGML_TYPE_COUNT; ++t) {
        if (ggml_blck_size(ggml_type(t)) > 0 && std::string(ggml_type_name(ggml_type(t))).find("DEPRECATED") == std::string::npos) {
            res.push_back(ggml_type(t));
        }
    }
    return res;
}

llama_context_params context_params(ggml_type type_k, ggml_type type_v) {
    auto cprm = llama_context_default_params();
    cprm.n_ctx           = N_CTX;
    cprm.n_ubatch        = N_UBATCH;
    cprm.n_threads       = 1;
    cprm.n_threads_batch = 1;
    cprm.no_perf         = true;
    cprm.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    cprm.type_k          = type_k;
    cprm.type_v          = type_v;
    return cprm;
}

llama_infllm_params small_params(llama_infllm_position position, llama_infllm_paging paging) {
    auto prm = llama_infllm_default_params();
    prm.n_init            = 8;
    prm.n_local           = 16;
    prm.block_size        = 8;
    prm.topk              = 2;
    prm.max_cached_blocks = 4;
    prm.n_score           = 8;
    prm.position          = position;
    prm.paging            = paging;
    return prm;
}

std::vector<float> feed(llama_context * ctx, uint32_t p0, uint32_t p1) {
    std::vector<llama_token> tokens;
    for (uint32_t p = p0; p < p1; ++p) {
        tokens.push_back(llama_token(p*p%TINY_N_VOCAB));
    }
    const int rc = llama_decode(ctx, llama_batch_get_one(tokens.data(), int32_t(tokens.size())));
    EXPECT_EQ(rc, 0) << llama_infllm_last_error();
    const float * logits = rc == 0 ? llama_get_logits_ith(ctx, -1) : nullptr;
    return logits ? std::vector<float>(logits, logits + TINY_N_VOCAB) : std::vector<float>();
}

bool all_finite(const std::vector<float> & x) {
    return !x.empty() && std::all_of(x.begin(), x.end(), [](float f) { return std::isfinite(f); });
}

// normalised mean squared error
double nmse(const std::vector<float> & a, const std::vector<float> & b) {
    double err = 0.0;
    double ref = 0.0;
    for (size_t i = 0; i < a.size(); ++i) {
        err += (a[i] - b[i])*(a[i] - b[i]);
        ref += a[i]*a[i];
    }
    return err/ref;
}

void score_oldest(int32_t, uint32_t n_blocks, float * scores, void *) {
    for (uint32_t b = 0; b < n_blocks; ++b) {
        scores[b] = -float(b);
    }
}

void score_latest(int32_t, uint32_t n_blocks, float * scores, void *) {
    for (uint32_t b = 0; b < n_blocks; ++b) {
        scores[b] = float(b);
    }
}

std::string names(ggml_type type_k, ggml_type type_v) {
    return std::string("K ") + ggml_type_name(type_k) + ", V " + ggml_type_name(type_v);
}

} // namespace

class LlamaTypes : public testing::TestWithParam<uint32_t> {
protected:
    static void SetUpTestSuite() {
        llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    }

    void SetUp() override {
        model = tiny_model("llama", GetParam());
        ASSERT_TRUE(model);
        ASSERT_FALSE((f16 = plain_logits(GGML_TYPE_F16, GGML_TYPE_F16)).empty());
    }

    static bool fits(ggml_type type) { return works.count(type) && GetParam()%ggml_blck_size(type) == 0; }

    std::vector<float> plain_logits(ggml_type type_k, ggml_type type_v) const {
        const llama_context_ptr ctx(llama_init_from_model(model.get(), context_params(type_k, type_v)));
        return ctx ? feed(ctx.get(), 0, N_FIT) : std::vector<float>();
    }

    // works as plain does while it fits, and goes on
    void check_works(ggml_type type_k, ggml_type type_v, llama_infllm_position position, llama_infllm_paging paging,
            llama_infllm_type_store type_store = LLAMA_INFLLM_TYPE_STORE_AUTO) const {
        auto prm = small_params(position, paging);
        prm.type_store = type_store;
        const llama_context_ptr ctx(llama_infllm_init_from_model(model.get(), context_params(type_k, type_v), prm));
        ASSERT_TRUE(ctx) << llama_infllm_last_error();

        // upstream rotates keys of a multiple of 64 before they are quantised, see docs/architecture.md
        const auto logits = feed(ctx.get(), 0, N_FIT);
        if (GetParam()%64 != 0 || !ggml_is_quantized(type_k)) {
            EXPECT_EQ(logits, plain_logits(type_k, type_v));
        }
        ASSERT_TRUE(all_finite(logits));
        EXPECT_LT(nmse(f16, logits), 0.05);

        // random keys may select resident blocks alone: at last, select others
        for (uint32_t p = N_FIT; p < 208; p += N_UBATCH) {
            if (p == 176 || p == 192) {
                llama_infllm_set_scores(ctx.get(), p == 176 ? score_oldest : score_latest, nullptr);
            }
            ASSERT_TRUE(all_finite(feed(ctx.get(), p, p + N_UBATCH)));
        }
        llama_infllm_set_scores(ctx.get(), nullptr, nullptr);
        ASSERT_TRUE(all_finite(feed(ctx.get(), 208, 209)));
        llama_infllm_stats stats = {};
        ASSERT_TRUE(llama_infllm_get_stats(ctx.get(), -1, &stats));
        EXPECT_GT(stats.n_page_in, 0u);
        EXPECT_EQ(llama_infllm_check_slots(ctx.get()), 0u);

        // and back
        ASSERT_TRUE(llama_memory_seq_rm(llama_get_memory(ctx.get()), 0, 100, -1));
        ASSERT_TRUE(all_finite(feed(ctx.get(), 100, 101)));
    }

    void check_refused(ggml_type type_k, ggml_type type_v) const {
        const llama_context_ptr ctx(llama_infllm_init_from_model(model.get(), context_params(type_k, type_v),
                    small_params(LLAMA_INFLLM_POSITION_TRUE, LLAMA_INFLLM_PAGING_HOST)));
        ASSERT_FALSE(ctx);
        const std::string error = llama_infllm_last_error();
        const bool        is_k  = !fits(type_k);
        const std::string start = std::string(is_k ? "type_k = " : "type_v = ") + ggml_type_name(is_k ? type_k : type_v);
        EXPECT_EQ(error.find(start), 0u) << error;
        EXPECT_NE(error.find("use f16"), std::string::npos) << error;
    }

    llama_model_ptr    model;
    std::vector<float> f16; // logits of a plain cache
};

INSTANTIATE_TEST_SUITE_P(Head, LlamaTypes, testing::Values(64, 80, 96, 128, 192, 256, 576), testing::PrintToStringParamName());

TEST_P(LlamaTypes, WorkOrAreRefusedByName) {
    for (const ggml_type type_k : all_types()) {
        for (const ggml_type type_v : all_types()) {
            SCOPED_TRACE(names(type_k, type_v));
            if (!fits(type_k) || !fits(type_v)) {
                check_refused(type_k, type_v);
            } else if (type_k == type_v || type_k == GGML_TYPE_F16 || type_v == GGML_TYPE_F16) {
                check_works(type_k, type_v, LLAMA_INFLLM_POSITION_TRUE, LLAMA_INFLLM_PAGING_HOST);
            }
        }
    }
}

TEST_P(LlamaTypes, WorkInBothPositionModesWhoeverPages) {
    for (const ggml_type type : works) {
        for (const auto position : { LLAMA_INFLLM_POSITION_TRUE, LLAMA_INFLLM_POSITION_INFLLM }) {
            SCOPED_TRACE(names(type, type));
            if (!fits(type)) {
                continue;
            }
            if (position == LLAMA_INFLLM_POSITION_INFLLM) {
                check_works(type, type, position, LLAMA_INFLLM_PAGING_HOST);
            }
            const bool wide = GetParam() > 256 && type != GGML_TYPE_F16;
            if (pages_on_device.count(type) && !wide) {
                check_works(type, type, position, LLAMA_INFLLM_PAGING_DEVICE);
            } else {
                const llama_context_ptr ctx(llama_infllm_init_from_model(
                            model.get(), context_params(type, type), small_params(position, LLAMA_INFLLM_PAGING_DEVICE)));
                EXPECT_FALSE(ctx);
                const char * why = pages_on_device.count(type) ? "heads of quantised K have more than 256 values" : ggml_type_name(type);
                EXPECT_NE(std::string(llama_infllm_last_error()).find(why), std::string::npos) << llama_infllm_last_error();
            }
        }
    }
}

//
// the store has a type of its own
//

class LlamaTypeStore : public LlamaTypes {
protected:
    llama_context_ptr make(llama_infllm_type_store type, llama_infllm_position position, llama_infllm_paging paging) const {
        auto prm = small_params(position, paging);
        prm.type_store = type;
        llama_context_ptr ctx(llama_infllm_init_from_model(model.get(), context_params(GGML_TYPE_F16, GGML_TYPE_F16), prm));
        EXPECT_TRUE(ctx) << llama_infllm_last_error();
        return ctx;
    }

    // by the oldest blocks, so that all contexts have the same
    static std::vector<float> read(llama_context * ctx, uint32_t p0, uint32_t p1) {
        llama_infllm_set_scores(ctx, score_oldest, nullptr);
        std::vector<float> res;
        for (uint32_t p = p0; p < p1; p += N_UBATCH) {
            res = feed(ctx, p, p + N_UBATCH);
        }
        return res;
    }

    static llama_infllm_stats stats(const llama_context * ctx) {
        llama_infllm_stats res = {};
        EXPECT_TRUE(llama_infllm_get_stats(ctx, -1, &res));
        return res;
    }
};

INSTANTIATE_TEST_SUITE_P(Head, LlamaTypeStore, testing::Values(64, 96, 128, 256, 576), testing::PrintToStringParamName());

TEST_P(LlamaTypeStore, WorksInBothPositionModesWhoeverPages) {
    for (const auto type : { LLAMA_INFLLM_TYPE_STORE_F16, LLAMA_INFLLM_TYPE_STORE_Q8_0, LLAMA_INFLLM_TYPE_STORE_Q4_0 }) {
        for (const auto position : { LLAMA_INFLLM_POSITION_TRUE, LLAMA_INFLLM_POSITION_INFLLM }) {
            for (const auto paging : { LLAMA_INFLLM_PAGING_HOST, LLAMA_INFLLM_PAGING_DEVICE }) {
                SCOPED_TRACE(std::to_string(type) + std::to_string(position) + std::to_string(paging));
                check_works(GGML_TYPE_F16, GGML_TYPE_F16, position, paging, type);
            }
        }
    }
}

TEST_P(LlamaTypeStore, IsSmallerAndCloseToF16) {
    for (const auto position : { LLAMA_INFLLM_POSITION_TRUE, LLAMA_INFLLM_POSITION_INFLLM }) {
        const auto ctx    = make(LLAMA_INFLLM_TYPE_STORE_F16, position, LLAMA_INFLLM_PAGING_HOST);
        const auto logits = read(ctx.get(), 0, 208);
        const auto size   = double(stats(ctx.get()).bytes_store_kv);

        double last = 0.0;
        for (const auto type : { LLAMA_INFLLM_TYPE_STORE_Q8_0, LLAMA_INFLLM_TYPE_STORE_Q4_0 }) {
            const auto coded   = make(type, position, LLAMA_INFLLM_PAGING_HOST);
            const auto rounded = read(coded.get(), 0, 208);
            EXPECT_EQ(rounded, read(make(type, position, LLAMA_INFLLM_PAGING_DEVICE).get(), 0, 208));
            EXPECT_GT(nmse(logits, rounded), last);
            last = nmse(logits, rounded);
            EXPECT_LT(last, type == LLAMA_INFLLM_TYPE_STORE_Q8_0 ? 1e-4 : 1e-2);
            EXPECT_DOUBLE_EQ(stats(coded.get()).bytes_store_kv/size, type == LLAMA_INFLLM_TYPE_STORE_Q8_0 ? 34.0/64 : 18.0/64);
            EXPECT_EQ(llama_infllm_check_slots(coded.get()), 0u);
        }
    }
}

// what has just left the ring is still there, and need not come out of the store
TEST_P(LlamaTypeStore, AShortTailIsRemovedWithoutLoss) {
    const auto ctx = make(LLAMA_INFLLM_TYPE_STORE_Q4_0, LLAMA_INFLLM_POSITION_INFLLM, LLAMA_INFLLM_PAGING_HOST);
    read(ctx.get(), 0, 192);
    const auto logits = read(ctx.get(), 192, 208);
    ASSERT_TRUE(llama_memory_seq_rm(llama_get_memory(ctx.get()), 0, 192, -1));
    EXPECT_EQ(read(ctx.get(), 192, 208), logits);
}

TEST(LlamaTypeStoreRefused, SaysWhy) {
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    auto prm = small_params(LLAMA_INFLLM_POSITION_TRUE, LLAMA_INFLLM_PAGING_HOST);
    prm.type_store = LLAMA_INFLLM_TYPE_STORE_Q4_0;
    const auto check = [&](uint32_t n_embd_head, ggml_type type_v, const std::string & why) {
        const auto              model = tiny_model("llama", n_embd_head);
        const llama_context_ptr ctx(llama_infllm_init_from_model(model.get(), context_params(GGML_TYPE_F16, type_v), prm));
        EXPECT_FALSE(ctx);
        EXPECT_NE(std::string(llama_infllm_last_error()).find(why), std::string::npos) << llama_infllm_last_error();
    };
    check(64, GGML_TYPE_BF16, "type_store = q4_0 is for type_k = type_v = f16, but these are f16 and bf16");
    check(80, GGML_TYPE_F16,  "type_store = q4_0 needs a multiple of 32 values for each token, but layer 0 has 80");
}
