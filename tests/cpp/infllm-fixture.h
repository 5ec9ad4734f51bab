#pragma once

// The InfLLM memory end to end, on the model that the environment variable INFLLM_TEST_MODEL names. Budgets are small:
// 128 resident cells, so that few tokens page. Most tests are about cells and blocks: the first layers will do for them.

#include "first-layers.h"
#include "random-model.h"

#include "llama-infllm.h"
#include "llama.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

constexpr uint32_t N_UBATCH = 16;
constexpr uint32_t N_CTX    = 512;
constexpr uint32_t N_CELLS  = 128;  // 8 init + 8 slots*8 + ring of 32 + 8 + 16
constexpr uint32_t N_ALLOC  = 256;  // cells that are allocated: padded
constexpr uint32_t N_END    = 16;   // 2*n_score: the end of a text is a ubatch of its own
constexpr uint32_t N_TRAIN  = 160;  // training length of small_model: positions are shifted back within N_CTX
constexpr uint32_t N_LAYER  = 9;    // first layers of the model, for most tests: three that search, and those that follow them

inline llama_infllm_params small_params(llama_infllm_position position = LLAMA_INFLLM_POSITION_TRUE) {
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
inline llama_infllm_params published_params(llama_infllm_position position) {
    auto prm = small_params(position);
    prm.max_cached_blocks = 0;
    prm.n_score           = 0;
    prm.n_repr            = 1;
    prm.attend            = LLAMA_INFLLM_ATTEND_TOPK;
    prm.scores            = LLAMA_INFLLM_SCORES_PUBLISHED;
    prm.paging            = LLAMA_INFLLM_PAGING_HOST;
    return prm;
}

inline llama_context_params context_params() {
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

inline float max_diff(const logits_t & a, const logits_t & b) {
    EXPECT_EQ(a.size(), b.size());
    float res = a.empty() || a.size() != b.size() ? INFINITY : 0.0f;
    for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
        const float d = std::fabs(a[i] - b[i]);
        res = d <= res ? res : d; // NaN wins
    }
    return res;
}

inline bool all_finite(const logits_t & logits) {
    return !logits.empty() && std::all_of(logits.begin(), logits.end(), [](float x) { return std::isfinite(x); });
}

inline llama_token argmax(const logits_t & logits) {
    return llama_token(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

inline uint32_t n_tokens(const llama_context * ctx, llama_seq_id seq_id = 0) {
    return uint32_t(llama_memory_seq_pos_max(llama_get_memory(ctx), seq_id) + 1);
}

inline llama_infllm_stats get_stats(const llama_context * ctx, int32_t il = -1) {
    llama_infllm_stats stats = {};
    EXPECT_TRUE(llama_infllm_get_stats(ctx, il, &stats));
    return stats;
}

// blocks that a sequence has offloaded, had its last ubatch the positions [p0, p1)
inline uint32_t n_blocks(uint32_t p0, uint32_t p1) {
    return p1 <= N_CELLS ? 0 : (p0 - 32 - 8)/8;
}

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

    inline static model_ptr model;
    inline static model_ptr small_model; // the same, but trained for N_TRAIN positions only
};

class InfllmPosition : public Infllm, public testing::WithParamInterface<llama_infllm_position> {};

inline constexpr auto position_name = [](const auto & info) { return info.param == LLAMA_INFLLM_POSITION_TRUE ? "True" : "Infllm"; };
