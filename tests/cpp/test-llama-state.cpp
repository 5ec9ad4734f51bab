// States saved and loaded: what follows is the same, bit for bit; what does not fit or is damaged is refused, and changes nothing.

#include "temp-folder.h"
#include "tiny-model.h"

#include "llama-infllm.h"
#include "session-file.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <random>
#include <string>
#include <vector>

namespace {

using tokens_t = std::vector<llama_token>;
using logits_t = std::vector<float>;
using bytes_t  = std::vector<uint8_t>;

struct state_case {
    llama_infllm_position position;
    llama_infllm_paging   paging;
    ggml_type             type;
    llama_infllm_search   search;
    uint32_t              n_tokens; // that are saved
};

const char * const SEARCH_NAMES[] = { "", "Keys", "Queries", "Quest", "Preselect" };

std::ostream & operator<<(std::ostream & os, const state_case & c) {
    return os << (c.position == LLAMA_INFLLM_POSITION_TRUE ? "True" : "Infllm") << (c.paging == LLAMA_INFLLM_PAGING_HOST ? "Host" : "Device")
        << ggml_type_name(c.type) << SEARCH_NAMES[c.search] << c.n_tokens;
}

llama_infllm_params infllm_params(const state_case & c) {
    auto prm = llama_infllm_default_params();
    prm.n_init            = 8;
    prm.n_local           = 32;
    prm.block_size        = 8;
    prm.topk              = 4;
    prm.max_cached_blocks = 8;
    prm.n_score           = 8;
    prm.position          = c.position;
    prm.paging            = c.paging;
    prm.search            = c.search;
    return prm;
}

llama_context_params context_params(const state_case & c, uint32_t n_seq = 1) {
    auto cprm = llama_context_default_params();
    cprm.n_ctx           = 1024*n_seq;
    cprm.n_seq_max       = n_seq;
    cprm.n_ubatch        = 16;
    cprm.n_threads       = 1;
    cprm.n_threads_batch = 1;
    cprm.type_k          = c.type;
    cprm.type_v          = c.type;
    cprm.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    return cprm;
}

class LlamaState : public testing::TestWithParam<state_case> {
protected:
    static void SetUpTestSuite() {
        llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
        model = tiny_model("llama", 64);
    }

    static void TearDownTestSuite() { model.reset(); }

    static llama_context_ptr make(const state_case & c, uint32_t n_seq = 1) {
        llama_context_ptr ctx(llama_infllm_init_from_model(model.get(), context_params(c, n_seq), infllm_params(c)));
        EXPECT_TRUE(ctx) << llama_infllm_last_error();
        return ctx;
    }

    static int n_vocab() { return llama_vocab_n_tokens(llama_model_get_vocab(model.get())); }

    static tokens_t text(uint32_t n, uint32_t seed) {
        std::mt19937 rng(seed);
        tokens_t res(n);
        for (auto & t : res) {
            t = llama_token(rng()%uint32_t(n_vocab()));
        }
        return res;
    }

    // logits of the last token
    static logits_t feed(llama_context * ctx, const tokens_t & tokens, llama_seq_id seq = 0) {
        llama_batch batch = llama_batch_init(int32_t(tokens.size()), 0, 1);
        const llama_pos p0 = llama_memory_seq_pos_max(llama_get_memory(ctx), seq) + 1;
        for (size_t i = 0; i < tokens.size(); ++i) {
            batch.token   [i]    = tokens[i];
            batch.pos     [i]    = p0 + llama_pos(i);
            batch.n_seq_id[i]    = 1;
            batch.seq_id  [i][0] = seq;
            batch.logits  [i]    = i + 1 == tokens.size();
        }
        batch.n_tokens = int32_t(tokens.size());
        EXPECT_EQ(llama_decode(ctx, batch), 0) << llama_infllm_last_error();
        llama_batch_free(batch);
        const float * logits = llama_get_logits_ith(ctx, -1);
        return { logits, logits + n_vocab() };
    }

    // logits of n tokens that are decoded one by one, and of a text
    static std::vector<logits_t> go_on(llama_context * ctx, uint32_t n, llama_seq_id seq = 0) {
        std::vector<logits_t> res = { feed(ctx, { 1 }, seq) };
        for (uint32_t i = 1; i < n; ++i) {
            const auto & last = res.back();
            res.push_back(feed(ctx, { llama_token(std::max_element(last.begin(), last.end()) - last.begin()) }, seq));
        }
        res.push_back(feed(ctx, text(40, 9), seq));
        return res;
    }

    static bytes_t save(llama_context * ctx, llama_seq_id seq = 0) {
        bytes_t res(llama_state_seq_get_size(ctx, seq));
        EXPECT_EQ(llama_state_seq_get_data(ctx, res.data(), res.size(), seq), res.size());
        return res;
    }

    static bool load(llama_context * ctx, const bytes_t & state, llama_seq_id seq = 0) {
        return llama_state_seq_set_data(ctx, state.data(), state.size(), seq) == state.size() && !state.empty();
    }

    static inline llama_model_ptr model;
};

constexpr auto TRUE_POS = LLAMA_INFLLM_POSITION_TRUE;
constexpr auto INFLLM   = LLAMA_INFLLM_POSITION_INFLLM;
constexpr auto HOST     = LLAMA_INFLLM_PAGING_HOST;
constexpr auto DEVICE   = LLAMA_INFLLM_PAGING_DEVICE;
constexpr auto KEYS     = LLAMA_INFLLM_SEARCH_KEYS;
constexpr auto QUERIES  = LLAMA_INFLLM_SEARCH_QUERIES;
constexpr auto QUEST    = LLAMA_INFLLM_SEARCH_QUEST;
constexpr auto ONCE     = LLAMA_INFLLM_SEARCH_PRESELECT;

INSTANTIATE_TEST_SUITE_P(Kinds, LlamaState, testing::Values(
    state_case { TRUE_POS, HOST,   GGML_TYPE_F16,  KEYS,    0   },
    state_case { TRUE_POS, HOST,   GGML_TYPE_F16,  KEYS,    90  }, // all fits
    state_case { TRUE_POS, HOST,   GGML_TYPE_F16,  KEYS,    400 },
    state_case { INFLLM,   HOST,   GGML_TYPE_F16,  KEYS,    400 },
    state_case { INFLLM,   DEVICE, GGML_TYPE_F16,  KEYS,    400 },
    state_case { TRUE_POS, HOST,   GGML_TYPE_F16,  QUERIES, 90  },
    state_case { INFLLM,   HOST,   GGML_TYPE_F16,  QUERIES, 400 },
    state_case { TRUE_POS, DEVICE, GGML_TYPE_Q8_0, QUERIES, 400 },
    state_case { INFLLM,   HOST,   GGML_TYPE_Q8_0, KEYS,    400 },
    state_case { INFLLM,   HOST,   GGML_TYPE_Q4_0, KEYS,    400 },
    state_case { INFLLM,   HOST,   GGML_TYPE_BF16, KEYS,    400 },
    state_case { INFLLM,   DEVICE, GGML_TYPE_F16,  QUEST,   400 },
    state_case { TRUE_POS, HOST,   GGML_TYPE_Q8_0, QUEST,   400 },
    state_case { INFLLM,   HOST,   GGML_TYPE_F16,  ONCE,    400 },
    state_case { TRUE_POS, DEVICE, GGML_TYPE_F16,  ONCE,    90  }),
    testing::PrintToStringParamName());

} // namespace

TEST_P(LlamaState, GoesOnBitForBit) {
    const auto ctx = make(GetParam());
    if (GetParam().n_tokens > 0) {
        feed(ctx.get(), text(GetParam().n_tokens, 1));
        feed(ctx.get(), { 3 }); // after it slots are as decoding has them
    }
    const auto state    = save(ctx.get());
    const auto expected = go_on(ctx.get(), 64);

    // in another context, over whatever is there, and where it comes from
    const auto other = make(GetParam());
    feed(other.get(), text(300, 2));
    for (auto * to : { other.get(), ctx.get() }) {
        ASSERT_TRUE(load(to, state)) << llama_infllm_last_error();
        EXPECT_EQ(save(to), state);
        EXPECT_EQ(llama_infllm_check_slots(to), 0u);
        ASSERT_EQ(go_on(to, 64), expected);
    }

    // and back, as if it had never been saved
    if (GetParam().n_tokens > 100) {
        for (auto * to : { other.get(), ctx.get() }) {
            ASSERT_TRUE(load(to, state));
            ASSERT_TRUE(llama_memory_seq_rm(llama_get_memory(to), 0, 64, -1));
        }
        EXPECT_EQ(go_on(ctx.get(), 8), go_on(other.get(), 8));
    }
}

TEST_P(LlamaState, IsOneOfASequence) {
    const auto two = make(GetParam(), 2);
    const auto a   = text(150, 3);
    const auto b   = text(GetParam().n_tokens + 1, 4);
    feed(two.get(), a, 0);
    feed(two.get(), b, 1);
    const auto state    = save(two.get(), 1);
    const auto expected = go_on(two.get(), 8, 1);
    const auto follows  = go_on(two.get(), 8, 0);

    // another sequence becomes it, and the first one goes on
    const auto other = make(GetParam(), 2);
    feed(other.get(), a, 0);
    feed(other.get(), a, 1);
    ASSERT_TRUE(load(other.get(), state, 1)) << llama_infllm_last_error();
    EXPECT_EQ(go_on(other.get(), 8, 1), expected);
    EXPECT_EQ(go_on(other.get(), 8, 0), follows);
    ASSERT_TRUE(load(other.get(), state, 0));
    EXPECT_EQ(go_on(other.get(), 8, 0), expected);
}

TEST_P(LlamaState, OfAllSequences) {
    const auto ctx = make(GetParam(), 2);
    feed(ctx.get(), text(150, 3), 0);
    feed(ctx.get(), text(GetParam().n_tokens + 1, 4), 1);
    bytes_t state(llama_state_get_size(ctx.get()));
    ASSERT_EQ(llama_state_get_data(ctx.get(), state.data(), state.size()), state.size());
    const auto expected = go_on(ctx.get(), 8, 1);

    const auto other = make(GetParam(), 2);
    ASSERT_EQ(llama_state_set_data(other.get(), state.data(), state.size()), state.size()) << llama_infllm_last_error();
    EXPECT_EQ(go_on(other.get(), 8, 1), expected);
}

TEST_P(LlamaState, WhatDoesNotFitIsRefusedByName) {
    const auto ctx = make(GetParam());
    feed(ctx.get(), text(GetParam().n_tokens + 1, 1));
    const auto state = save(ctx.get());

    const struct {
        const char * name;
        void (*change)(llama_infllm_params &, llama_context_params &);
    } others[] = {
        { "n_local",    [](auto & p, auto &) { p.n_local = 48; } },
        { "block_size", [](auto & p, auto &) { p.block_size = 16; } },
        { "n_init",     [](auto & p, auto &) { p.n_init = 16; } },
        { "max_cached_blocks", [](auto & p, auto &) { p.max_cached_blocks = 6; } },
        { "position",   [](auto & p, auto &) { p.position = p.position == TRUE_POS ? INFLLM : TRUE_POS; } },
        { "search",     [](auto & p, auto &) { p.search = p.search == KEYS ? QUERIES : KEYS; } },
        { "type_k",     [](auto &, auto & c) { c.type_k = c.type_k == GGML_TYPE_Q8_0 ? GGML_TYPE_F16 : GGML_TYPE_Q8_0; } },
    };
    for (const auto & other : others) {
        SCOPED_TRACE(other.name);
        auto prm  = infllm_params(GetParam());
        auto cprm = context_params(GetParam());
        other.change(prm, cprm);
        const llama_context_ptr to(llama_infllm_init_from_model(model.get(), cprm, prm));
        ASSERT_TRUE(to) << llama_infllm_last_error();
        feed(to.get(), text(200, 5));
        const auto before = save(to.get());

        EXPECT_FALSE(load(to.get(), state));
        EXPECT_NE(std::string(llama_infllm_last_error()).find(other.name), std::string::npos) << llama_infllm_last_error();
        EXPECT_EQ(save(to.get()), before);
    }

    // one of a plain cache
    const llama_context_ptr plain(llama_init_from_model(model.get(), context_params(GetParam())));
    feed(plain.get(), text(50, 1));
    EXPECT_FALSE(load(ctx.get(), save(plain.get())));
    EXPECT_NE(std::string(llama_infllm_last_error()).find("InfLLM"), std::string::npos) << llama_infllm_last_error();
    EXPECT_EQ(save(ctx.get()), state);
}

// INFLLM_TEST_FUZZ: states to try
TEST_P(LlamaState, DamagedOnesAreRefusedOrRight) {
    const char * n_fuzz = std::getenv("INFLLM_TEST_FUZZ");
    const int    n      = n_fuzz ? std::atoi(n_fuzz) : 150;

    const auto ctx = make(GetParam());
    feed(ctx.get(), text(GetParam().n_tokens + 1, 1));
    const auto state = save(ctx.get());
    const auto to    = make(GetParam());

    std::mt19937 rng(1);
    for (int i = 0; i < n; ++i) {
        auto damaged = state;
        if (i%3 == 0) {
            damaged.resize(rng()%state.size());
        } else {
            const size_t end = i%3 == 1 ? std::min<size_t>(state.size(), 512) : state.size(); // most numbers come first
            for (uint32_t j = rng()%4; j < 4; ++j) {
                damaged[rng()%end] = uint8_t(rng());
            }
        }
        const auto before = save(to.get());
        if (load(to.get(), damaged)) {
            ASSERT_EQ(save(to.get()), state); // what was changed says nothing of the sequence
        } else {
            ASSERT_EQ(save(to.get()), before);
        }
        if (i%10 == 0) {
            llama_memory_clear(llama_get_memory(to.get()), false);
            feed(to.get(), text(20, 6));
        }
    }
    ASSERT_TRUE(load(to.get(), state));
    EXPECT_EQ(save(to.get()), state);
}

//
// session files
//

namespace {

using session_ptr = std::unique_ptr<llama_infllm_session, void (*)(llama_infllm_session *)>;

struct LlamaSession : LlamaState {
    static bool save_file(llama_context * ctx, const tokens_t & tokens, const std::string & to) {
        return llama_infllm_session_save(ctx, 0, to.c_str(), tokens.data(), tokens.size(), (const uint8_t *) "data", 4);
    }

    static bool load_file(llama_context * ctx, const std::string & from) {
        const session_ptr session(llama_infllm_session_open(from.c_str()), llama_infllm_session_free);
        return session && llama_infllm_session_load(session.get(), ctx, 0);
    }

    static size_t size_of(const std::string & file) {
        std::ifstream in(file, std::ios::binary | std::ios::ate);
        return size_t(in.tellg());
    }

    static llama_infllm_stats stats(const llama_context * ctx) {
        llama_infllm_stats res;
        llama_infllm_get_stats(ctx, -1, &res);
        return res;
    }

    const temp_folder folder;
    const std::string path = folder/"a";
};

INSTANTIATE_TEST_SUITE_P(Kinds, LlamaSession, testing::Values(
    state_case { TRUE_POS, HOST,   GGML_TYPE_F16,  KEYS,    90  }, // all fits
    state_case { INFLLM,   HOST,   GGML_TYPE_F16,  KEYS,    400 },
    state_case { INFLLM,   DEVICE, GGML_TYPE_F16,  KEYS,    400 },
    state_case { TRUE_POS, HOST,   GGML_TYPE_Q8_0, QUERIES, 400 },
    state_case { TRUE_POS, HOST,   GGML_TYPE_F16,  QUEST,   400 },
    state_case { INFLLM,   DEVICE, GGML_TYPE_F16,  ONCE,    400 }),
    testing::PrintToStringParamName());

} // namespace

TEST_P(LlamaSession, GoesOnBitForBit) {
    const auto & c    = GetParam();
    const auto   ctx  = make(c);
    auto         all  = text(c.n_tokens, 1);
    feed(ctx.get(), all);
    ASSERT_TRUE(save_file(ctx.get(), all, path)) << llama_infllm_last_error();
    const auto expected = go_on(ctx.get(), 64);

    const auto other = make(c);
    feed(other.get(), text(300, 2));
    ASSERT_TRUE(load_file(other.get(), path)) << llama_infllm_last_error();

    // blocks stay in the file, but for those that a device reads
    const auto s = stats(other.get());
    EXPECT_EQ(s.bytes_store_file, c.paging == HOST ? s.bytes_store : 0);
    EXPECT_EQ(llama_infllm_check_slots(other.get()), 0u);
    EXPECT_EQ(go_on(other.get(), 64), expected);

    // Go on from the file, save again: the same state, and blocks are not written twice. A device's blocks are in memory.
    ASSERT_TRUE(load_file(ctx.get(), path));
    const auto more = text(40, 5);
    feed(ctx.get(), more);
    all.insert(all.end(), more.begin(), more.end());
    ASSERT_TRUE(llama_memory_seq_rm(llama_get_memory(other.get()), 0, -1, -1));
    const size_t before = size_of(path);
    ASSERT_TRUE(save_file(ctx.get(), all, path)) << llama_infllm_last_error();
    ASSERT_TRUE(save_file(ctx.get(), all, folder/"b")) << llama_infllm_last_error();
    if (c.n_tokens > 100 && c.paging == HOST) {
        const size_t block_bytes = stats(ctx.get()).bytes_store/stats(ctx.get()).n_blocks;
        EXPECT_LT(size_of(path) - before, size_of(folder/"b") - 30*block_bytes);
    }
    const auto follows = go_on(ctx.get(), 8);
    for (const auto & from : { path, folder/"b" }) {
        const session_ptr session(llama_infllm_session_open(from.c_str()), llama_infllm_session_free);
        ASSERT_TRUE(session) << llama_infllm_last_error();
        EXPECT_TRUE(llama_infllm_session_verify(session.get()));
        llama_infllm_session_info info;
        llama_infllm_session_get_info(session.get(), &info);
        EXPECT_EQ(tokens_t(llama_infllm_session_tokens(session.get()), llama_infllm_session_tokens(session.get()) + info.n_tokens), all);
        EXPECT_EQ(std::string((const char *) llama_infllm_session_data(session.get()), info.bytes_data), "data");
        ASSERT_TRUE(llama_infllm_session_load(session.get(), other.get(), 0));
        EXPECT_EQ(go_on(other.get(), 8), follows);
    }
}

TEST_P(LlamaSession, WhatDoesNotFitIsRefused) {
    const auto ctx = make(GetParam());
    const auto all = text(GetParam().n_tokens, 1);
    feed(ctx.get(), all);
    EXPECT_FALSE(save_file(ctx.get(), text(3, 1), path));
    EXPECT_FALSE(save_file(ctx.get(), all, folder/"none/a"));
    EXPECT_NE(std::string(llama_infllm_last_error()).find("cannot be opened"), std::string::npos) << llama_infllm_last_error();
    ASSERT_TRUE(save_file(ctx.get(), all, path));

    auto c = GetParam();
    c.position = c.position == INFLLM ? TRUE_POS : INFLLM;
    const auto other = make(c);
    feed(other.get(), all);
    EXPECT_FALSE(load_file(other.get(), path));
    EXPECT_NE(std::string(llama_infllm_last_error()).find("position"), std::string::npos) << llama_infllm_last_error();
    EXPECT_EQ(go_on(other.get(), 2).size(), 3u);

    // another model of the same shape
    const auto model2 = tiny_model("llama", 64, 2);
    const llama_context_ptr second(llama_infllm_init_from_model(model2.get(), context_params(GetParam()), infllm_params(GetParam())));
    EXPECT_FALSE(load_file(second.get(), path));
    EXPECT_NE(std::string(llama_infllm_last_error()).find("weights"), std::string::npos) << llama_infllm_last_error();

    EXPECT_FALSE(load_file(ctx.get(), folder/"none"));
    EXPECT_EQ(go_on(ctx.get(), 2).size(), 3u);
}

// its checksums are right, but it says otherwise what the sequence is than its state does
TEST_P(LlamaSession, OneThatContradictsItselfIsRefused) {
    {
        const auto ctx = make(GetParam());
        const auto all = text(GetParam().n_tokens, 1);
        feed(ctx.get(), all);
        ASSERT_TRUE(save_file(ctx.get(), all, path)) << llama_infllm_last_error();
    }
    const auto other = make(GetParam());
    feed(other.get(), text(150, 2));
    const auto before = save(other.get());

    const auto file  = infllm::session_file::open(path);
    const auto rest  = file->get_rest();
    const auto state = bytes_t(rest.state.data, rest.state.data + rest.state.size);
    for (int i = 0; i < 4; ++i) {
        auto forged = rest;
        forged.state = { state.data(), state.size() };
        forged.data  = { state.data(), 4 };
        switch (i) {
            case 0: forged.tokens.pop_back(); break;
            case 1: forged.tokens.push_back(1); break;
            case 2: forged.tokens.clear(); break;
            default:
                if (rest.blocks.empty()) {
                    continue;
                }
                forged.blocks.push_back(rest.blocks[0]);
        }
        ASSERT_TRUE(file->begin());
        file->commit(forged);
        EXPECT_FALSE(load_file(other.get(), path)) << i;
        EXPECT_NE(std::string(llama_infllm_last_error()).find("damaged"), std::string::npos) << llama_infllm_last_error();
        EXPECT_EQ(save(other.get()), before) << i;
    }
}

// what a file has is not written over as long as another sequence, or a fork, reads it
TEST_P(LlamaSession, SavingOneLeavesOthersAsTheyAre) {
    const auto & c   = GetParam();
    const auto   all = text(c.n_tokens, 1);
    const auto   ctx = make(c);
    feed(ctx.get(), all);
    ASSERT_TRUE(save_file(ctx.get(), all, path));
    const auto expected = go_on(ctx.get(), 8);

    ASSERT_TRUE(load_file(ctx.get(), path));
    const auto fork = make(c);
    ASSERT_TRUE(llama_infllm_fork(ctx.get(), 0, fork.get(), 0)) << llama_infllm_last_error();
    for (const uint32_t eighths : { 6, 5, 4 }) { // ever other blocks, saved by the fork to the file that the first one reads
        const uint32_t n = c.n_tokens*eighths/8;
        ASSERT_TRUE(llama_memory_seq_rm(llama_get_memory(fork.get()), 0, llama_pos(n), -1));
        auto other = text(n, 1);
        const auto more = text(c.n_tokens, 7 + n);
        feed(fork.get(), more);
        other.insert(other.end(), more.begin(), more.end());
        ASSERT_TRUE(save_file(fork.get(), other, path)) << llama_infllm_last_error();
    }
    EXPECT_EQ(llama_infllm_check_slots(ctx.get()), 0u);
    ASSERT_TRUE(save_file(ctx.get(), all, path));
    EXPECT_EQ(go_on(ctx.get(), 8), expected);

    const session_ptr session(llama_infllm_session_open(path.c_str()), llama_infllm_session_free);
    ASSERT_TRUE(session);
    EXPECT_TRUE(llama_infllm_session_verify(session.get())) << llama_infllm_last_error();
    ASSERT_TRUE(llama_infllm_session_load(session.get(), fork.get(), 0));
    EXPECT_EQ(go_on(fork.get(), 8), expected);
}
