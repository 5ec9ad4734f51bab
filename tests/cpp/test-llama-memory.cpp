// Memory is taken as tokens come, in tables and representative keys, too; what cannot fit is refused before anything is computed.

#include "random-model.h"

#include "llama-infllm.h"

#include <algorithm>
#include <fstream>
#include <string>

#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace {

constexpr uint32_t N_CTX_MAX = (1u << 31) - 256;

llama_infllm_params small_params() {
    auto res = llama_infllm_default_params();
    res.n_init     = 8;
    res.n_local    = 64;
    res.block_size = 8;
    res.topk       = 4;
    res.n_score    = 8;
    res.n_repr     = 2;
    res.position   = LLAMA_INFLLM_POSITION_INFLLM;
    return res;
}

llama_context_params context_params(uint32_t n_ctx) {
    auto res = llama_context_default_params();
    res.n_ctx           = n_ctx;
    res.n_batch         = 1024;
    res.n_ubatch        = 64;
    res.n_threads       = 1;
    res.n_threads_batch = 1;
    res.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    return res;
}

} // namespace

class Memory : public testing::TestWithParam<llama_infllm_paging> {
protected:
    static void SetUpTestSuite() {
#ifdef __GLIBC__
        // large memory comes from the system and goes back: what is kept would be taken again without a trace, or cleared
        mallopt(M_MMAP_THRESHOLD, 128*1024);
#endif
        llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
        llama_backend_init();
        model = random_model().load();
    }

    static void TearDownTestSuite() { model.reset(); }

    static context_ptr make(uint32_t n_ctx, llama_infllm_params prm = small_params()) {
        prm.paging = GetParam();
        context_ptr res(llama_infllm_init_from_model(model.get(), context_params(n_ctx), prm));
        EXPECT_TRUE(res) << llama_infllm_last_error();
        return res;
    }

    // logits of the last token of a text
    static std::vector<float> feed(llama_context * ctx, uint32_t n, uint32_t seed) {
        std::mt19937 rng(seed);
        std::vector<llama_token> tokens(n);
        std::generate(tokens.begin(), tokens.end(), [&] { return llama_token(rng()%random_model::N_VOCAB); });
        for (uint32_t i = 0; i < n; i += 1024) {
            EXPECT_EQ(llama_decode(ctx, llama_batch_get_one(tokens.data() + i, int32_t(std::min(1024u, n - i)))), 0)
                << llama_infllm_last_error();
        }
        const float * l = llama_get_logits_ith(ctx, -1);
        return l ? std::vector<float>(l, l + random_model::N_VOCAB) : std::vector<float>();
    }

    static llama_infllm_stats stats(const llama_context * ctx) {
        llama_infllm_stats res = {};
        EXPECT_TRUE(llama_infllm_get_stats(ctx, -1, &res));
        return res;
    }

    static model_ptr model;
};

model_ptr Memory::model;

INSTANTIATE_TEST_SUITE_P(Paging, Memory, testing::Values(LLAMA_INFLLM_PAGING_HOST, LLAMA_INFLLM_PAGING_DEVICE),
    [](const auto & info) { return info.param == LLAMA_INFLLM_PAGING_HOST ? "Host" : "Device"; });

TEST_P(Memory, LargestContextTakesNoMoreThanASmallOne) {
    auto large = make(N_CTX_MAX);
    auto small = make(16384);
    ASSERT_TRUE(large && small);
    EXPECT_EQ(stats(large.get()).bytes_repr,     stats(small.get()).bytes_repr);
    EXPECT_EQ(stats(large.get()).bytes_resident, stats(small.get()).bytes_resident);
    EXPECT_EQ(feed(large.get(), 2000, 1), feed(small.get(), 2000, 1));
}

// representative keys and tables move when they grow; what they say stays
TEST_P(Memory, GrowthChangesNoResult) {
    auto grown   = make(N_CTX_MAX);
    auto growing = make(N_CTX_MAX);
    ASSERT_TRUE(grown && growing);

    const uint32_t n = 20000; // 2,500 blocks
    const auto before = stats(grown.get()).bytes_repr;
    feed(grown.get(), n, 2);
    EXPECT_GT(stats(grown.get()).bytes_repr, before);
    llama_memory_clear(llama_get_memory(grown.get()), false);

    for (const uint32_t seed : { 1u, 3u }) {
        EXPECT_EQ(feed(growing.get(), n, seed), feed(grown.get(), n, seed));
        EXPECT_EQ(stats(growing.get()).bytes_repr, stats(grown.get()).bytes_repr);
        EXPECT_EQ(llama_infllm_check_slots(growing.get()), 0u);
        llama_memory_clear(llama_get_memory(growing.get()), false);
        llama_memory_clear(llama_get_memory(grown.get()),   false);
    }
}

TEST_P(Memory, WhatCannotFitIsRefusedWithItsSize) {
    auto prm  = small_params();
    auto cprm = context_params(N_CTX_MAX);
    prm.paging     = GetParam();
    prm.position   = LLAMA_INFLLM_POSITION_TRUE;
    prm.n_local    = 1u << 24;
    cprm.n_seq_max = 64;
    const context_ptr ctx(llama_infllm_init_from_model(model.get(), cprm, prm));
    EXPECT_FALSE(ctx);
    const std::string error = llama_infllm_last_error();
    EXPECT_NE(error.find("MiB"),     std::string::npos) << error;
    EXPECT_NE(error.find("n_local"), std::string::npos) << error;
}

#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) // which takes memory of its own
// exact, unlike statm, whose counters run behind
static size_t resident_bytes() {
    std::ifstream file("/proc/self/smaps_rollup");
    std::string word;
    while (file >> word) {
        size_t kib = 0;
        if (word == "Rss:" && file >> kib) {
            return kib*1024;
        }
    }
    return 0;
}

TEST_P(Memory, ASequenceTakesNoneBeforeItIsUsed) {
    const uint32_t n_seq = 32;

    auto prm  = small_params();
    auto cprm = context_params(n_seq*100000);
    cprm.n_seq_max = n_seq;
    prm.n_local    = 8192; // beyond what this model is trained for
    prm.position   = LLAMA_INFLLM_POSITION_TRUE;
    prm.paging     = GetParam();

    const size_t before = resident_bytes();
    if (before == 0) {
        GTEST_SKIP() << "this system does not say what is resident";
    }
    const context_ptr ctx(llama_infllm_init_from_model(model.get(), cprm, prm));
    ASSERT_TRUE(ctx) << llama_infllm_last_error();
    const size_t each = (stats(ctx.get()).bytes_resident + stats(ctx.get()).bytes_repr)/n_seq;
    const size_t made = resident_bytes();
    EXPECT_LT(made - before, (n_seq/4)*each);

    feed(ctx.get(), 100, 1); // sequence 0
    const size_t fed = resident_bytes();
    EXPECT_GT(fed - made, each/2);
    EXPECT_LT(fed - made, 4*each);
}
#endif

TEST_P(Memory, ATextIsRefusedBeforeItIsRead) {
    auto prm = small_params();
    prm.store_max_bytes = 1 << 20;
    auto limited = make(N_CTX_MAX, prm);
    auto ctx     = make(N_CTX_MAX);
    ASSERT_TRUE(limited && ctx);

    EXPECT_TRUE(llama_infllm_check_tokens(limited.get(), 0, 1000));
    EXPECT_FALSE(llama_infllm_check_tokens(limited.get(), 0, 100000));
    EXPECT_NE(std::string(llama_infllm_last_error()).find("store_max_bytes"), std::string::npos) << llama_infllm_last_error();

    // 256 bytes a token
    EXPECT_TRUE(llama_infllm_check_tokens(ctx.get(), 0, 100000));
    EXPECT_FALSE(llama_infllm_check_tokens(ctx.get(), 0, N_CTX_MAX));
    EXPECT_NE(std::string(llama_infllm_last_error()).find("are free"), std::string::npos) << llama_infllm_last_error();
    EXPECT_FALSE(llama_infllm_check_tokens(ctx.get(), 1, 10));
    EXPECT_NE(std::string(llama_infllm_last_error()).find("sequence 1"), std::string::npos) << llama_infllm_last_error();
}
