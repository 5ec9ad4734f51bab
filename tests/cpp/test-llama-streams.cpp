// Sequences that are decoded together: a token of each is one ubatch, with one pass over the weights. What a sequence gives does
// not depend on its neighbours.

#include "random-model.h"

#include "llama-infllm.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <numeric>
#include <set>

namespace {

constexpr uint32_t N_SEQ    = 5;
constexpr uint32_t N_CTX    = 512; // of a sequence
constexpr uint32_t N_UBATCH = 16;
constexpr uint32_t N_STEP   = 24;

// one that fits to its end, one that fits now, and three that page
constexpr uint32_t N_PROMPT[N_SEQ] = { 40, 120, 200, 157, 333 };

struct stream_case {
    llama_infllm_position position;
    llama_infllm_search   search;
    llama_infllm_paging   paging;
};

const char * const SEARCH_NAMES[] = { "", "Keys", "Queries", "Quest", "Preselect" };

std::ostream & operator<<(std::ostream & os, const stream_case & c) {
    return os << (c.position == LLAMA_INFLLM_POSITION_TRUE ? "True" : "Infllm") << SEARCH_NAMES[c.search]
        << (c.paging == LLAMA_INFLLM_PAGING_HOST ? "Host" : "Device");
}

using tokens_t = std::vector<llama_token>;
using logits_t = std::vector<float>;

tokens_t random_tokens(uint32_t n, uint32_t seed) {
    std::mt19937 rng(seed);
    tokens_t res(n);
    std::generate(res.begin(), res.end(), [&] { return llama_token(rng()%random_model::N_VOCAB); });
    return res;
}

float max_diff(const logits_t & a, const logits_t & b) {
    float res = 0.0f;
    for (size_t i = 0; i < random_model::N_VOCAB; ++i) {
        const float d = std::fabs(a.at(i) - b.at(i));
        res = d <= res ? res : d; // NaN wins
    }
    return res;
}

struct choice {
    std::vector<int32_t> selected; // best first
    std::vector<float>   scores;
};

using choices_t = std::map<std::array<int32_t, 3>, choice>; // by sequence, position and layer

// up to the order of sums, which is another one where sequences are decoded together
bool are_close(const std::vector<float> & a, const std::vector<float> & b) {
    const auto [lo, hi] = std::minmax_element(a.begin(), a.end());
    bool res = a.size() == b.size();
    for (size_t i = 0; res && i < a.size(); ++i) {
        res = std::fabs(a[i] - b[i]) <= 5e-3f*(*hi - *lo);
    }
    return res;
}

struct batch {
    llama_batch b = llama_batch_init(4096, 0, 1);

    ~batch() { llama_batch_free(b); }

    void add(llama_token token, llama_pos pos, llama_seq_id seq, bool output) {
        const int32_t i = b.n_tokens++;
        b.token   [i]    = token;
        b.pos     [i]    = pos;
        b.n_seq_id[i]    = 1;
        b.seq_id  [i][0] = seq;
        b.logits  [i]    = output;
    }
};

} // namespace

class LlamaStreams : public testing::TestWithParam<stream_case> {
protected:
    static void SetUpTestSuite() {
        llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
        llama_backend_init();
        random_model m;
        m.n_layer   = 5; // two that search, and those that follow them
        m.n_head    = 4;
        m.n_head_kv = 2;
        model = m.load();
    }

    static void TearDownTestSuite() { model.reset(); }

    void SetUp() override {
        for (uint32_t s = 0; s < N_SEQ; ++s) {
            texts[s] = random_tokens(N_PROMPT[s] + N_STEP + 1, s + 1);
        }
    }

    context_ptr make(uint32_t n_seq, bool plain = false) {
        auto prm = llama_infllm_default_params();
        prm.n_init            = 8;
        prm.n_local           = 32;
        prm.block_size        = 8;
        prm.topk              = 4;
        prm.max_cached_blocks = 8;
        prm.n_score           = 8;
        prm.n_repr            = 4;
        prm.position          = GetParam().position;
        prm.search            = GetParam().search;
        prm.paging            = GetParam().paging;

        auto cprm = llama_context_default_params();
        cprm.n_ctx           = n_seq*N_CTX;
        cprm.n_seq_max       = n_seq;
        cprm.n_batch         = 2048;
        cprm.n_ubatch        = N_UBATCH;
        cprm.n_threads       = 2;
        cprm.n_threads_batch = 2;
        cprm.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
        cprm.cb_eval         = [](ggml_tensor * t, bool ask, void * data) {
            *static_cast<uint32_t *>(data) += ask && std::strcmp(t->name, "result_output") == 0;
            return false;
        };
        cprm.cb_eval_user_data = &n_ubatches;
        context_ptr res(plain ? llama_init_from_model(model.get(), cprm) : llama_infllm_init_from_model(model.get(), cprm, prm));
        EXPECT_TRUE(res) << llama_infllm_last_error();
        return res;
    }

    // the logits of output i
    static logits_t logits(llama_context * ctx, int32_t i) {
        const float * l = llama_get_logits_ith(ctx, i);
        EXPECT_TRUE(l);
        return l ? logits_t(l, l + random_model::N_VOCAB) : logits_t(random_model::N_VOCAB, NAN);
    }

    // read a text, and give what follows it
    logits_t read(llama_context * ctx, uint32_t s, llama_seq_id seq) const {
        batch b;
        for (uint32_t i = 0; i < N_PROMPT[s]; ++i) {
            b.add(texts[s][i], llama_pos(i), seq, i + 1 == N_PROMPT[s]);
        }
        EXPECT_EQ(llama_decode(ctx, b.b), 0) << llama_infllm_last_error();
        return logits(ctx, -1);
    }

    // a token of each of some sequences, in their order
    void step(llama_context * ctx, const std::vector<uint32_t> & seqs, uint32_t i, std::vector<logits_t> & res) const {
        batch b;
        for (const uint32_t s : seqs) {
            b.add(texts[s][N_PROMPT[s] + i], llama_pos(N_PROMPT[s] + i), llama_seq_id(s), true);
        }
        ASSERT_EQ(llama_decode(ctx, b.b), 0) << llama_infllm_last_error();
        for (uint32_t j = 0; j < seqs.size(); ++j) {
            res.at(seqs[j]) = logits(ctx, int32_t(j));
        }
    }

    // what is selected from here on goes into res, as of sequence s, or of each its own if s is -1
    struct tracer {
        choices_t * res;
        int32_t     s;

        static void call(const llama_infllm_trace_event * e, void * user_data) {
            auto & self = *static_cast<tracer *>(user_data);
            (*self.res)[{ self.s < 0 ? e->seq_id : self.s, e->pos, e->il }] = {
                { e->selected, e->selected + e->n_selected }, { e->scores, e->scores + e->n_blocks } };
        }
    };

    // [step][sequence] each in a context of its own
    std::vector<std::vector<logits_t>> alone(bool plain = false, choices_t * choices = nullptr) {
        std::vector<std::vector<logits_t>> res(N_STEP, std::vector<logits_t>(N_SEQ));
        for (uint32_t s = 0; s < N_SEQ; ++s) {
            auto ctx = make(1, plain);
            read(ctx.get(), s, 0);
            tracer t = { choices, int32_t(s) };
            llama_infllm_set_trace(ctx.get(), choices ? tracer::call : nullptr, &t);
            for (uint32_t i = 0; i < N_STEP; ++i) {
                batch b;
                b.add(texts[s][N_PROMPT[s] + i], llama_pos(N_PROMPT[s] + i), 0, true);
                EXPECT_EQ(llama_decode(ctx.get(), b.b), 0);
                res[i][s] = logits(ctx.get(), 0);
            }
        }
        return res;
    }

    // A product with several columns may be summed up in another order than with one, and so may attention: how far plain
    // llama.cpp's logits of sequences together are from those of each alone. What is not resident makes more of a difference.
    float tolerance(const std::vector<std::vector<logits_t>> & paged) {
        const auto expected = alone(true);
        auto ctx = make(N_SEQ, true);
        for (uint32_t s = 0; s < N_SEQ; ++s) {
            read(ctx.get(), s, llama_seq_id(s));
        }
        float res = 0.0f;
        for (uint32_t i = 0; i < N_STEP; ++i) {
            std::vector<logits_t> found(N_SEQ);
            step(ctx.get(), { 0, 1, 2, 3, 4 }, i, found);
            for (uint32_t s = 0; s < N_SEQ; ++s) {
                res = std::max(res, max_diff(found[s], expected[i][s]));
            }
        }
        EXPECT_GT(max_diff(paged[0][N_SEQ - 1], expected[0][N_SEQ - 1]), 4*res);
        return res;
    }

    tokens_t texts[N_SEQ];
    uint32_t n_ubatches = 0;

    static model_ptr model;
};

model_ptr LlamaStreams::model;

INSTANTIATE_TEST_SUITE_P(, LlamaStreams, testing::Values(
        stream_case { LLAMA_INFLLM_POSITION_TRUE,   LLAMA_INFLLM_SEARCH_KEYS,    LLAMA_INFLLM_PAGING_HOST   },
        stream_case { LLAMA_INFLLM_POSITION_INFLLM, LLAMA_INFLLM_SEARCH_KEYS,    LLAMA_INFLLM_PAGING_HOST   },
        stream_case { LLAMA_INFLLM_POSITION_INFLLM, LLAMA_INFLLM_SEARCH_KEYS,    LLAMA_INFLLM_PAGING_DEVICE },
        stream_case { LLAMA_INFLLM_POSITION_TRUE,   LLAMA_INFLLM_SEARCH_QUERIES, LLAMA_INFLLM_PAGING_DEVICE },
        stream_case { LLAMA_INFLLM_POSITION_INFLLM, LLAMA_INFLLM_SEARCH_QUERIES, LLAMA_INFLLM_PAGING_HOST   },
        stream_case { LLAMA_INFLLM_POSITION_TRUE,   LLAMA_INFLLM_SEARCH_QUEST,   LLAMA_INFLLM_PAGING_HOST   },
        stream_case { LLAMA_INFLLM_POSITION_INFLLM, LLAMA_INFLLM_SEARCH_PRESELECT, LLAMA_INFLLM_PAGING_HOST }),
    [](const auto & info) { return testing::PrintToString(info.param); });

TEST_P(LlamaStreams, AreAsEachAlone) {
    choices_t chosen_alone;
    choices_t chosen;
    const auto  expected = alone(false, &chosen_alone);
    const float most     = tolerance(expected);

    auto ctx = make(N_SEQ);
    for (uint32_t s = 0; s < N_SEQ; ++s) {
        read(ctx.get(), s, llama_seq_id(s));
    }

    tracer t = { &chosen, -1 };
    llama_infllm_set_trace(ctx.get(), tracer::call, &t);

    std::set<uint32_t> swapped; // sequences in which blocks that score alike have changed places
    std::set<uint32_t> apart;   // and so others have stayed resident
    std::vector<logits_t> found(N_SEQ);
    for (uint32_t i = 0; i < N_STEP; ++i) {
        n_ubatches = 0;
        std::vector<uint32_t> seqs(N_SEQ);
        std::iota(seqs.begin(), seqs.end(), 0);
        if (i%4 == 3) { // one of them waits: two groups
            std::swap(seqs[2], seqs[4]);
            seqs = { 0, 1, 3, 4 };
        }
        step(ctx.get(), seqs, i, found);
        EXPECT_EQ(n_ubatches, seqs.size() == N_SEQ ? 1u : 2u);
        if (i%4 == 3) {
            step(ctx.get(), { 2 }, i, found);
        }
        for (uint32_t s = 0; s < N_SEQ; ++s) {
            for (int32_t il = 0; il < llama_model_n_layer(model.get()) && !swapped.count(s); ++il) {
                const std::array<int32_t, 3> key = { int32_t(s), int32_t(N_PROMPT[s] + i), il };
                ASSERT_EQ(chosen.count(key), chosen_alone.count(key));
                if (chosen.count(key)) {
                    ASSERT_TRUE(are_close(chosen_alone[key].scores, chosen[key].scores)) << "step " << i << ", sequence " << s;
                    if (chosen[key].selected != chosen_alone[key].selected) {
                        swapped.insert(s);
                    }
                }
            }
            const float diff = max_diff(found[s], expected[i][s]);
            if (!swapped.count(s)) {
                ASSERT_LT(diff, most) << "step " << i << ", sequence " << s;
            } else if (!(diff < most)) {
                apart.insert(s);
            }
        }
        ASSERT_EQ(llama_infllm_check_slots(ctx.get()), 0u);
    }
    EXPECT_EQ(chosen.empty(), GetParam().search == LLAMA_INFLLM_SEARCH_PRESELECT); // which selects when a text is read
    EXPECT_LE(apart.size(), 1u);
}

// whatever the others read: the same bits
TEST_P(LlamaStreams, DoNotDependOnTheirNeighbours) {
    std::vector<logits_t> found[2];
    for (int other = 0; other < 2; ++other) {
        auto ctx = make(N_SEQ);
        for (uint32_t s = 0; s < N_SEQ; ++s) {
            if (other && s != 2) {
                texts[s] = random_tokens(texts[s].size(), 100 + s);
            }
            read(ctx.get(), s, llama_seq_id(s));
        }
        for (uint32_t i = 0; i < N_STEP; ++i) {
            std::vector<logits_t> now(N_SEQ);
            step(ctx.get(), { 0, 1, 2, 3, 4 }, i, now);
            found[other].push_back(now[2]);
        }
    }
    EXPECT_EQ(found[0], found[1]);
}

// a prompt in the same batch is read as it would be alone, wherever it stands among the others' tokens
TEST_P(LlamaStreams, DecodeWhileAPromptIsRead) {
    const auto  expected = alone();
    const float most     = tolerance(expected);

    for (const uint32_t reader : { 0u, 2u, 4u }) {
        auto ctx = make(N_SEQ);

        std::vector<uint32_t> others;
        for (uint32_t s = 0; s < N_SEQ; ++s) {
            if (s != reader) {
                others.push_back(s);
                read(ctx.get(), s, llama_seq_id(s));
            }
        }
        batch b;
        for (uint32_t s = 0; s < N_SEQ; ++s) {
            for (uint32_t i = 0; s == reader && i < N_PROMPT[s]; ++i) {
                b.add(texts[s][i], llama_pos(i), llama_seq_id(s), i + 1 == N_PROMPT[s]);
            }
            if (s != reader) {
                b.add(texts[s][N_PROMPT[s]], llama_pos(N_PROMPT[s]), llama_seq_id(s), true);
            }
        }
        ASSERT_EQ(llama_decode(ctx.get(), b.b), 0) << llama_infllm_last_error();
        for (uint32_t i = 0, n_out = 0; i < uint32_t(b.b.n_tokens); ++i) {
            if (b.b.logits[i]) {
                const uint32_t s = n_out++;
                if (s == reader) {
                    auto one = make(1);
                    EXPECT_EQ(logits(ctx.get(), int32_t(i)), read(one.get(), s, 0));
                } else {
                    EXPECT_LT(max_diff(logits(ctx.get(), int32_t(i)), expected[0][s]), most) << s;
                }
            }
        }
    }
}

// a batch that one of them cannot take is refused as a whole, by its number; the others go on
TEST_P(LlamaStreams, OneThatIsFullLeavesTheOthersGoing) {
    auto ctx = make(N_SEQ);
    auto ref = make(N_SEQ);
    for (uint32_t s = 0; s < N_SEQ; ++s) {
        read(ctx.get(), s, llama_seq_id(s));
        read(ref.get(), s, llama_seq_id(s));
    }
    const auto more = random_tokens(N_CTX, 9);
    for (auto * c : { ctx.get(), ref.get() }) {
        batch b;
        for (uint32_t p = N_PROMPT[4]; p < N_CTX; ++p) {
            b.add(more[p], llama_pos(p), 4, false);
        }
        ASSERT_EQ(llama_decode(c, b.b), 0);
    }
    batch b;
    for (uint32_t s = 0; s < N_SEQ; ++s) {
        b.add(1, llama_pos(s == 4 ? N_CTX : N_PROMPT[s]), llama_seq_id(s), true);
    }
    EXPECT_NE(llama_decode(ctx.get(), b.b), 0);
    EXPECT_NE(std::string(llama_infllm_last_error()).find("sequence 4 needs"), std::string::npos) << llama_infllm_last_error();

    std::vector<logits_t> found(N_SEQ), expected(N_SEQ);
    for (uint32_t i = 0; i < 3; ++i) {
        step(ctx.get(), { 0, 1, 2, 3 }, i, found);
        step(ref.get(), { 0, 1, 2, 3 }, i, expected);
        EXPECT_EQ(found, expected);
    }
}

TEST_P(LlamaStreams, AnAbortedStepIsTakenAgain) {
    auto ctx = make(N_SEQ);
    auto ref = make(N_SEQ);
    for (uint32_t s = 0; s < N_SEQ; ++s) {
        read(ctx.get(), s, llama_seq_id(s));
        read(ref.get(), s, llama_seq_id(s));
    }
    std::vector<logits_t> found(N_SEQ), expected(N_SEQ);
    for (uint32_t i = 0; i < 4; ++i) {
        batch b;
        for (uint32_t s = 0; s < N_SEQ; ++s) {
            b.add(texts[s][N_PROMPT[s] + i], llama_pos(N_PROMPT[s] + i), llama_seq_id(s), true);
        }
        int n_left = 40;
        llama_set_abort_callback(ctx.get(), [](void * data) { return --*static_cast<int *>(data) < 0; }, &n_left);
        EXPECT_EQ(llama_decode(ctx.get(), b.b), 2);
        llama_set_abort_callback(ctx.get(), nullptr, nullptr);
        for (uint32_t s = 0; s < N_SEQ; ++s) {
            EXPECT_EQ(llama_memory_seq_pos_max(llama_get_memory(ctx.get()), llama_seq_id(s)), llama_pos(N_PROMPT[s] + i) - 1);
        }
        step(ctx.get(), { 0, 1, 2, 3, 4 }, i, found);
        step(ref.get(), { 0, 1, 2, 3, 4 }, i, expected);
        if (GetParam().paging == LLAMA_INFLLM_PAGING_HOST) { // no device can be aborted
            EXPECT_EQ(found, expected);
        }
        EXPECT_EQ(llama_infllm_check_slots(ctx.get()), 0u);
    }
}
