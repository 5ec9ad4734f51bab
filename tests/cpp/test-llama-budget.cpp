// How large a resident buffer is where nobody says, and how window and slots divide it.

#include "random-model.h"

#include "llama-infllm.h"

#include <algorithm>

namespace {

llama_context_params context_params(uint32_t n_ctx, uint32_t n_ubatch = 64) {
    auto res = llama_context_default_params();
    res.n_ctx           = n_ctx;
    res.n_batch         = 512;
    res.n_ubatch        = n_ubatch;
    res.n_threads       = 1;
    res.n_threads_batch = 1;
    res.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    return res;
}

} // namespace

class Budget : public testing::Test {
protected:
    static void SetUpTestSuite() {
        llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
        llama_backend_init();
        random_model def;
        model   = def.load();
        n_train = llama_model_n_ctx_train(model.get());
    }

    static void TearDownTestSuite() { model.reset(); }

    static llama_infllm_plan plan(const llama_context_params & cparams, const llama_infllm_params & params) {
        llama_infllm_plan res = {};
        EXPECT_TRUE(llama_infllm_get_plan(model.get(), &cparams, &params, &res)) << llama_infllm_last_error();
        return res;
    }

    static llama_infllm_params resolve(const llama_context_params & cparams, llama_infllm_params params) {
        EXPECT_TRUE(llama_infllm_params_resolve(model.get(), &cparams, &params)) << llama_infllm_last_error();
        return params;
    }

    static std::string why_not(const llama_context_params & cparams, llama_infllm_params params) {
        EXPECT_FALSE(llama_infllm_params_resolve(model.get(), &cparams, &params));
        return llama_infllm_last_error();
    }

    static model_ptr model;
    static uint32_t  n_train;
};

model_ptr Budget::model;
uint32_t  Budget::n_train;

TEST_F(Budget, BytesAreKeptToAndUsed) {
    for (const uint32_t n_ubatch : { 1u, 16u, 64u }) {
        const auto cparams = context_params(100000, n_ubatch);
        for (uint32_t n_cells = 512; n_cells <= n_train; n_cells += 100) {
            auto params = llama_infllm_default_params();
            params.block_size = 16;
            params.budget     = n_cells*plan(cparams, params).bytes_cell;

            const auto res = resolve(cparams, params);
            const uint32_t n = llama_infllm_n_cells(&res, n_ubatch);
            EXPECT_LE(n, n_cells);
            EXPECT_GE(n + 256 + 2*params.block_size, n_cells);
            EXPECT_GE(res.n_local, n_ubatch);
            EXPECT_GE(res.topk, 1u);
            EXPECT_EQ(res.topk, res.max_cached_blocks);
            EXPECT_EQ(plan(cparams, params).n_cells, n);
        }
    }
}

TEST_F(Budget, WhatIsDividedIsDividedAgainToTheSame) {
    const auto cparams = context_params(100000);
    for (const auto profile : { LLAMA_INFLLM_PROFILE_EXACT, LLAMA_INFLLM_PROFILE_BALANCED, LLAMA_INFLLM_PROFILE_FAST }) {
        auto params = llama_infllm_default_params();
        params.block_size = 16;
        params.profile    = profile;
        const auto once  = resolve(cparams, params);
        const auto twice = resolve(cparams, once);
        EXPECT_EQ(once.n_local, twice.n_local);
        EXPECT_EQ(once.topk, twice.topk);
        EXPECT_EQ(once.max_cached_blocks, twice.max_cached_blocks);
    }
}

TEST_F(Budget, ProfilesAreInOrder) {
    const auto cparams = context_params(100000);
    auto params = llama_infllm_default_params();
    params.block_size = 16;
    uint32_t n_before = n_train;
    for (const auto profile : { LLAMA_INFLLM_PROFILE_EXACT, LLAMA_INFLLM_PROFILE_BALANCED, LLAMA_INFLLM_PROFILE_FAST }) {
        params.profile = profile;
        const auto res = plan(cparams, params);
        EXPECT_LE(res.n_cells, n_before);
        EXPECT_GE(res.n_cells, res.n_cells_fast/256*256);
        n_before = res.n_cells;
    }
    params.profile = LLAMA_INFLLM_PROFILE_AUTO;
    const auto automatic = plan(cparams, params);
    params.profile = LLAMA_INFLLM_PROFILE_BALANCED;
    EXPECT_EQ(automatic.n_cells, plan(cparams, params).n_cells);
    EXPECT_LE(uint64_t(automatic.n_cells), std::max<uint64_t>(automatic.n_cells_fast, automatic.bytes_weights/automatic.bytes_cell));
}

TEST_F(Budget, AContextWithinItsBudgetIsExact) {
    const uint32_t n_ctx = n_train;
    const auto cparams = context_params(n_ctx, 50);
    auto params = llama_infllm_default_params();
    params.n_init  = 10; // no whole block, as the ubatch
    params.profile = LLAMA_INFLLM_PROFILE_EXACT;
    EXPECT_EQ(plan(cparams, params).limit, LLAMA_INFLLM_LIMIT_N_CTX);

    std::vector<llama_token> tokens(n_ctx);
    for (uint32_t i = 0; i < n_ctx; ++i) {
        tokens[i] = llama_token(i*7919%random_model::N_VOCAB);
    }
    const auto logits = [&](llama_context * ctx) {
        for (uint32_t i = 0; i < n_ctx; i += 512) {
            EXPECT_EQ(llama_decode(ctx, llama_batch_get_one(tokens.data() + i, int32_t(std::min(512u, n_ctx - i)))), 0);
        }
        const float * l = llama_get_logits_ith(ctx, -1);
        return std::vector<float>(l, l + random_model::N_VOCAB);
    };
    const context_ptr with(llama_infllm_init_from_model(model.get(), cparams, params));
    const context_ptr without(llama_infllm_init_from_model_plain(model.get(), cparams));
    ASSERT_TRUE(with && without) << llama_infllm_last_error();
    EXPECT_EQ(logits(with.get()), logits(without.get()));

    llama_infllm_stats stats = {};
    ASSERT_TRUE(llama_infllm_get_stats(with.get(), -1, &stats));
    EXPECT_EQ(stats.n_blocks, 0u);
}

TEST_F(Budget, MemoryThatIsLeftFreeIsAskedFor) {
    const auto cparams = context_params(100000);
    auto params = llama_infllm_default_params();
    params.profile = LLAMA_INFLLM_PROFILE_EXACT;
    params.reserve = uint64_t(1) << 60;
    const auto res = plan(cparams, params);
    EXPECT_EQ(res.n_cells_memory, 0u);
    EXPECT_EQ(res.limit, LLAMA_INFLLM_LIMIT_MEMORY);
    EXPECT_EQ(res.n_cells, res.n_cells_fast); // less is asked for by a budget
}

TEST_F(Budget, PartsAreTheCallersOwn) {
    const auto cparams = context_params(100000);
    auto params = llama_infllm_default_params();
    params.n_local = 96;
    EXPECT_EQ(resolve(cparams, params).n_local, 96u);
    EXPECT_EQ(plan(cparams, params).limit, LLAMA_INFLLM_LIMIT_PARTS);

    params.budget = 1 << 20;
    EXPECT_NE(why_not(cparams, params).find("budget is given"), std::string::npos) << llama_infllm_last_error();
}

TEST_F(Budget, TooLittleIsRefusedWithWhatIsNeeded) {
    const auto cparams = context_params(100000);
    auto params = llama_infllm_default_params();
    params.budget = 1000;
    EXPECT_NE(why_not(cparams, params).find("at least"), std::string::npos) << llama_infllm_last_error();

    // and what it says is enough
    const std::string error = llama_infllm_last_error();
    const size_t pos = error.rfind(", ");
    params.budget = std::stoull(error.substr(pos + 2));
    resolve(cparams, params);
}
