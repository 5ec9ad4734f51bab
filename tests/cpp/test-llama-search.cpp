// The searches of the field in the graph: what quest computes is a bound of attention, and what preselect has chosen stays.

#include "random-model.h"

#include "llama-infllm.h"

#include "ggml-backend.h"

#include <algorithm>
#include <cstring>
#include <map>

namespace {

constexpr uint32_t N_INIT  = 8;
constexpr uint32_t N_BLOCK = 8; // tokens
constexpr uint32_t N_PART  = 4; // tokens that bounds are of
constexpr uint32_t N_TEXT  = 300;

using tokens_t = std::vector<llama_token>;
using logits_t = std::vector<float>;

struct seen_layer {
    std::vector<std::vector<float>> k; // of each token, all heads
    std::vector<float>              q; // of the ubatch
    std::vector<float>              scores;
};

std::vector<float> values(const ggml_tensor * t) {
    std::vector<uint8_t> bytes(ggml_nbytes(t));
    ggml_backend_tensor_get(t, bytes.data(), 0, bytes.size());

    std::vector<float> res;
    for (int64_t i2 = 0; i2 < t->ne[2]; ++i2) {
        for (int64_t i1 = 0; i1 < t->ne[1]; ++i1) {
            const auto * row = reinterpret_cast<const float *>(bytes.data() + i2*t->nb[2] + i1*t->nb[1]);
            res.insert(res.end(), row, row + t->ne[0]);
        }
    }
    return res;
}

class LlamaSearch : public testing::Test {
protected:
    void SetUp() override {
        llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
        shape.n_layer   = 4;
        shape.n_head    = 4;
        shape.n_head_kv = 2;
        model = shape.load();
        for (uint32_t i = 0; i < N_TEXT; ++i) {
            text.push_back(llama_token(rng()%random_model::N_VOCAB));
        }
    }

    context_ptr make(llama_infllm_search search, llama_infllm_position position = LLAMA_INFLLM_POSITION_TRUE, bool watch = false) {
        auto prm = llama_infllm_default_params();
        prm.n_init            = N_INIT;
        prm.n_local           = 32;
        prm.block_size        = N_BLOCK;
        prm.topk              = 3;
        prm.max_cached_blocks = 4;
        prm.n_score           = 8;
        prm.n_repr            = N_BLOCK/N_PART;
        prm.search            = search;
        prm.position          = position;

        auto cprm = llama_context_default_params();
        cprm.n_ctx           = 512;
        cprm.n_ubatch        = 16;
        cprm.n_threads       = 1;
        cprm.n_threads_batch = 1;
        cprm.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
        if (watch) {
            cprm.cb_eval           = [](ggml_tensor * t, bool ask, void * data) { return static_cast<LlamaSearch *>(data)->see(t, ask); };
            cprm.cb_eval_user_data = this;
        }
        context_ptr res(llama_infllm_init_from_model(model.get(), cprm, prm));
        EXPECT_TRUE(res) << llama_infllm_last_error();
        return res;
    }

    static logits_t feed(llama_context * ctx, tokens_t tokens) {
        EXPECT_EQ(llama_decode(ctx, llama_batch_get_one(tokens.data(), int32_t(tokens.size()))), 0) << llama_infllm_last_error();
        const float * l = llama_get_logits_ith(ctx, -1);
        return { l, l + random_model::N_VOCAB };
    }

    static llama_infllm_stats stats(const llama_context * ctx) {
        llama_infllm_stats res;
        EXPECT_TRUE(llama_infllm_get_stats(ctx, -1, &res));
        return res;
    }

    random_model shape;
    model_ptr    model;
    tokens_t     text;
    std::mt19937 rng { 1 };

    std::map<int, seen_layer> seen;

private:
    bool see(const ggml_tensor * t, bool ask) {
        const char * dash = std::strrchr(t->name, '-');
        const auto   name = std::string(t->name, dash ? size_t(dash - t->name) : 0);
        const bool   is_q = name == "Qcur" && t->op == GGML_OP_ROPE;
        const bool   is_k = name == "Kcur" && t->op == GGML_OP_ROPE;
        if (ask) {
            return is_q || is_k || name == "infllm_scores";
        }
        auto & l = seen[std::atoi(dash + 1)];
        auto   x = values(t);
        if (is_k) {
            const size_t n = shape.n_head_kv*shape.n_embd_head;
            for (size_t i = 0; i < x.size(); i += n) {
                l.k.push_back({ x.begin() + i, x.begin() + i + n });
            }
        } else {
            (is_q ? l.q : l.scores) = std::move(x);
        }
        return true;
    }
};

} // namespace

// Quest, section 3.3: the score of a part of a block is the sum over the heads of what bounds their products, of the mean over a
// sub-chunk; layers search each for itself
TEST_F(LlamaSearch, QuestBoundsAttention) {
    const auto ctx = make(LLAMA_INFLLM_SEARCH_QUEST, LLAMA_INFLLM_POSITION_TRUE, true);
    feed(ctx.get(), text);

    const uint32_t n_head  = shape.n_head;
    const uint32_t n_embd  = shape.n_embd_head;
    const uint32_t n_group = n_head/shape.n_head_kv;
    for (const uint32_t n_tokens : { 4u, 8u, 1u }) { // ubatches end at multiples of 16
        feed(ctx.get(), tokens_t(text.begin(), text.begin() + n_tokens));
        ASSERT_EQ(seen.size(), shape.n_layer);

        const auto s = stats(ctx.get());
        const auto n_part = uint32_t(s.n_blocks/s.n_layer*N_BLOCK/N_PART);
        ASSERT_GT(n_part, 40u);
        for (const auto & [il, l] : seen) {
            ASSERT_EQ(l.q.size(), n_tokens*n_head*n_embd);
            ASSERT_GE(l.scores.size(), n_part);
            for (uint32_t r = 0; r < n_part; ++r) {
                const auto * keys = &l.k[N_INIT + r*N_PART];

                double expected = 0.0;
                double product  = 0.0; // the largest that each query has with a key
                for (uint32_t i = 0; i < n_tokens*n_head; ++i) {
                    const float *  q   = &l.q[i*n_embd];
                    const uint32_t kv0 = i%n_head/n_group*n_embd;
                    double best[N_PART] = {};
                    for (uint32_t e = 0; e < n_embd; ++e) {
                        double most = -INFINITY;
                        for (uint32_t m = 0; m < N_PART; ++m) {
                            most     = std::max(most, double(q[e])*keys[m][kv0 + e]);
                            best[m] += double(q[e])*keys[m][kv0 + e];
                        }
                        expected += most/n_tokens;
                    }
                    product += *std::max_element(best, best + N_PART)/n_tokens;
                }
                ASSERT_NEAR(l.scores[r], expected, 1e-2*std::abs(expected)) << "layer " << il << ", part " << r;
                ASSERT_GT(l.scores[r], product);
            }
        }
    }
}

// one token after the other changes nothing that is resident; the next text chooses anew
TEST_F(LlamaSearch, PreselectKeepsWhatAQuestionChose) {
    for (const auto position : { LLAMA_INFLLM_POSITION_TRUE, LLAMA_INFLLM_POSITION_INFLLM }) {
        const auto keys = make(LLAMA_INFLLM_SEARCH_KEYS,      position);
        const auto once = make(LLAMA_INFLLM_SEARCH_PRESELECT, position);
        EXPECT_EQ(feed(keys.get(), text), feed(once.get(), text)); // a text is read as by keys
        EXPECT_EQ(stats(keys.get()).n_page_in, stats(once.get()).n_page_in);

        const auto before = stats(once.get());
        bool       same   = true;
        for (uint32_t i = 0; i < 60; ++i) {
            const auto a = feed(keys.get(), { text[i] });
            const auto b = feed(once.get(), { text[i] });
            same = same && a == b;
            ASSERT_EQ(llama_infllm_check_slots(once.get()), 0u);
        }
        EXPECT_FALSE(same); // by keys others come in
        EXPECT_GT(stats(keys.get()).n_page_in, before.n_page_in);
        EXPECT_EQ(stats(once.get()).n_select,  before.n_select);
        EXPECT_EQ(stats(once.get()).n_page_in, before.n_page_in);
        EXPECT_GT(stats(once.get()).n_blocks,  before.n_blocks); // what was written leaves the local window

        feed(once.get(), tokens_t(text.begin(), text.begin() + 8));
        EXPECT_GT(stats(once.get()).n_page_in, before.n_page_in);
    }
}
