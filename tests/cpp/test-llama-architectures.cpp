// Every architecture of which upstream's tests can make a small random model: while all tokens fit, the graph is that of a
// plain KV cache, node by node, and so are the logits, bit for bit; beyond, blocks are paged in. Or the context is refused.

int upstream_main(int argc, char ** argv);
#define main upstream_main
#include <test-llama-archs.cpp> // upstream's: get_gguf_ctx() and what it can do
#undef main

#include "llama-infllm-composite.h"
#include "llama-infllm.h"

#include "llama-context.h"
#include "llama-kv-cache-iswa.h"
#include "llama-kv-cache.h"
#include "llama-memory-hybrid-iswa.h"
#include "llama-memory-hybrid.h"
#include "llama-model.h"

#include <gtest/gtest.h>

#include <map>

namespace {

constexpr uint32_t N_CTX    = 256; // what these models are trained for
constexpr uint32_t N_UBATCH = 16;
constexpr uint32_t N_FIT    = 96; // of the 128 resident cells

struct arch_case {
    llm_arch arch;
    bool     moe;
};

std::vector<arch_case> arch_cases() {
    std::vector<arch_case> res;
    for (const llm_arch arch : llm_arch_all()) {
        if (!arch_supported(arch) || !llama_model_saver_supports_arch(arch) || arch == LLM_ARCH_EAGLE3 || arch == LLM_ARCH_DFLASH) {
            continue; // as in upstream's save_models()
        }
        for (const bool moe : { false, true }) {
            if (moe ? moe_implemented(arch) : !moe_mandatory(arch)) {
                res.push_back({ arch, moe });
            }
        }
    }
    return res;
}

std::ostream & operator<<(std::ostream & os, const arch_case & c) {
    return os << llm_arch_name(c.arch) << (c.moe ? "_moe" : "");
}

std::string arch_name(const testing::TestParamInfo<arch_case> & info) {
    std::string res = testing::PrintToString(info.param);
    std::replace_if(res.begin(), res.end(), [](unsigned char c) { return !std::isalnum(c); }, '_');
    return res;
}

// the nodes of the graphs that a context computes, as text
struct graph_log {
    std::vector<std::string>             nodes;
    std::map<const ggml_tensor *, size_t> idx;

    void clear() {
        nodes.clear();
        idx.clear();
    }

    static bool callback(ggml_tensor * t, bool ask, void * user_data) {
        if (ask) {
            static_cast<graph_log *>(user_data)->add(t);
        }
        return false;
    }

private:
    void add(const ggml_tensor * t) {
        std::ostringstream os;
        os << ggml_op_desc(t) << ' ' << ggml_type_name(t->type);
        for (int i = 0; i < GGML_MAX_DIMS; ++i) {
            os << ' ' << t->ne[i];
            if (t->ne[i] > 1) {
                os << '/' << t->nb[i];
            }
        }
        for (const int32_t p : t->op_params) { // precision, RoPE, offset of a view, ...
            os << ' ' << p;
        }
        for (const ggml_tensor * src : t->src) {
            if (const auto it = idx.find(src); it != idx.end()) {
                os << " #" << it->second;
            } else if (src) {
                os << ' ' << ggml_type_name(src->type) << '[' << src->ne[0] << ']'; // a weight, an input or cells
            }
        }
        idx[t] = nodes.size();
        nodes.push_back(os.str());
    }
};

llama_infllm_params small_params(llama_infllm_position position) {
    auto prm = llama_infllm_default_params();
    prm.n_init            = 8;
    prm.n_local           = 32;
    prm.block_size        = 8;
    prm.topk              = 4;
    prm.max_cached_blocks = 8;
    prm.n_score           = 8;
    prm.position          = position;
    return prm;
}

llama_context_params context_params(graph_log * log) {
    auto cprm = llama_context_default_params();
    cprm.n_ctx             = N_CTX;
    cprm.n_ubatch          = N_UBATCH;
    cprm.n_threads         = 1;
    cprm.n_threads_batch   = 1;
    cprm.no_perf           = true;
    cprm.swa_full          = false; // as with the method
    cprm.flash_attn_type   = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    cprm.cb_eval           = log ? graph_log::callback : nullptr;
    cprm.cb_eval_user_data = log;
    return cprm;
}

// logits of all tokens
std::vector<float> feed(llama_context * ctx, const std::vector<llama_token> & tokens, uint32_t p0, uint32_t p1, llama_seq_id seq = 0) {
    const int n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(ctx)));

    common_batch batch(ctx);
    for (uint32_t p = p0; p < p1; ++p) {
        batch.add(tokens[p], p, seq, true);
    }
    const int rc = llama_process(ctx, LLAMA_PROCESS_TYPE_DECODE, batch.get());
    EXPECT_EQ(rc, 0) << llama_infllm_last_error();

    std::vector<float> res;
    for (uint32_t i = 0; rc == 0 && i < p1 - p0; ++i) {
        const float * logits = llama_get_logits_ith(ctx, i);
        res.insert(res.end(), logits, logits + n_vocab);
    }
    return res;
}

// logits of a token of sequence 0 and of one of sequence 1, in one batch
std::vector<float> feed_both(llama_context * ctx, const std::vector<llama_token> & tokens, const std::vector<llama_pos> & pos) {
    const int n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(ctx)));

    common_batch batch(ctx);
    for (size_t s = 0; s < tokens.size(); ++s) {
        batch.add(tokens[s], pos[s], llama_seq_id(s), true);
    }
    EXPECT_EQ(llama_process(ctx, LLAMA_PROCESS_TYPE_DECODE, batch.get()), 0) << llama_infllm_last_error();

    std::vector<float> res;
    for (size_t s = 0; s < tokens.size(); ++s) {
        const float * logits = llama_get_logits_ith(ctx, int32_t(s));
        res.insert(res.end(), logits, logits + n_vocab);
    }
    return res;
}

llama_model_ptr load(const arch_case & c) {
    auto               mprm    = llama_model_default_params();
    ggml_backend_dev_t devices = nullptr;
    mprm.devices = &devices;
    tensor_data_params weights = { /*.seed =*/ 1, /*.stdev =*/ 0.1f };

    const auto gguf = get_gguf_ctx(c.arch, c.moe);
    llama_model_ptr model(llama_model_init_from_user(gguf.get(), set_tensor_data, &weights, mprm));
    if (!model) {
        return model;
    }
    if (const auto type = llama_model_rope_type(model.get()); type == LLAMA_ROPE_TYPE_NORM || type == LLAMA_ROPE_TYPE_NEOX) {
        // that of GLM4 and others has M-RoPE as an option, which models of text do not have
        gguf_remove_key(gguf.get(), (std::string(llm_arch_name(c.arch)) + ".rope.dimension_sections").c_str());
        model.reset(llama_model_init_from_user(gguf.get(), set_tensor_data, &weights, mprm));
    }
    return model;
}

// The memory cannot have a part of ours, in upstream's words.
bool needs_another_memory(const llama_model & model, const llama_context & plain) {
    const auto & hparams = model.hparams;
    auto *       memory  = plain.get_memory();

    bool any_full = false;
    for (uint32_t il = 0; il < hparams.n_layer(); ++il) {
        any_full = any_full || (hparams.n_head_kv(il) > 0 && !hparams.is_swa(il));
    }
    const bool composes = dynamic_cast<llama_kv_cache *>(memory) || dynamic_cast<llama_kv_cache_iswa *>(memory) ||
        dynamic_cast<llama_memory_hybrid *>(memory) || dynamic_cast<llama_memory_hybrid_iswa *>(memory);

    return !composes || !any_full || hparams.indexer_head_size > 0 ||
        !plain.get_cparams().flash_attn;
}

} // namespace

class LlamaArch : public testing::TestWithParam<arch_case> {};

INSTANTIATE_TEST_SUITE_P(All, LlamaArch, testing::ValuesIn(arch_cases()), arch_name);

TEST_P(LlamaArch, IsComputedAsPlainWhileItFitsOrRefused) {
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);

    const auto model = load(GetParam());
    ASSERT_TRUE(model);

    // with ALiBi the true positions would be other ones in each layer
    const auto first_position = model->hparams.use_alibi ? LLAMA_INFLLM_POSITION_INFLLM : LLAMA_INFLLM_POSITION_TRUE;

    graph_log log_plain;
    graph_log log;
    const llama_context_ptr plain(llama_init_from_model(model.get(), context_params(&log_plain)));
    ASSERT_TRUE(plain);

    auto       prm       = small_params(first_position);
    const auto cprm      = context_params(&log);
    const bool supported = llama_infllm_params_resolve(model.get(), &cprm, &prm);

    const llama_context_ptr ctx(llama_infllm_init_from_model(model.get(), cprm, small_params(first_position)));
    EXPECT_EQ(ctx != nullptr, supported);
    EXPECT_EQ(ctx == nullptr, needs_another_memory(*model, *plain)) << llama_infllm_last_error();
    if (!ctx) {
        std::cout << "refused: " << llama_infllm_last_error() << "\n";
        const std::string expected = std::string("architecture \"") + llm_arch_name(GetParam().arch) + "\": ";
        EXPECT_NE(std::string(llama_infllm_last_error()).find(expected), std::string::npos) << llama_infllm_last_error();
        return;
    }

    const auto tokens = get_tokens(N_CTX, llama_vocab_n_tokens(llama_model_get_vocab(model.get())), 1);

    for (uint32_t p = 0; p < N_FIT;) {
        const uint32_t n = p < N_FIT - 2 ? std::min(N_UBATCH, N_FIT - 2 - p) : 1;
        log_plain.clear();
        log.clear();
        const auto a = feed(plain.get(), tokens, p, p + n);
        const auto b = feed(ctx.get(),   tokens, p, p + n);
        ASSERT_EQ(log_plain.nodes.size(), log.nodes.size());
        for (size_t i = 0; i < log.nodes.size(); ++i) {
            ASSERT_EQ(log_plain.nodes[i], log.nodes[i]) << "node " << i << " at token " << p;
        }
        ASSERT_EQ(a, b) << "at token " << p;
        p += n;
    }
    for (auto * c : { plain.get(), ctx.get() }) {
        llama_set_causal_attn(c, false); // some programs do so for images
    }
    ASSERT_EQ(feed(plain.get(), tokens, N_FIT, N_FIT + N_UBATCH), feed(ctx.get(), tokens, N_FIT, N_FIT + N_UBATCH));

    const auto & layers = llama_infllm_find(llama_get_memory(ctx.get()))->get_layers();
    for (const auto position : { LLAMA_INFLLM_POSITION_TRUE, LLAMA_INFLLM_POSITION_INFLLM }) {
        if (model->hparams.use_alibi ? position == LLAMA_INFLLM_POSITION_TRUE : position == LLAMA_INFLLM_POSITION_INFLLM &&
                (model->hparams.rope_type == LLAMA_ROPE_TYPE_NONE || layers.has_weighted())) {
            const llama_context_ptr none(llama_infllm_init_from_model(model.get(), context_params(nullptr), small_params(position)));
            EXPECT_FALSE(none);
            EXPECT_EQ(std::string(llama_infllm_last_error()).find("position = "), 0u) << llama_infllm_last_error();
            continue;
        }
        const llama_context_ptr far(llama_infllm_init_from_model(model.get(), context_params(nullptr), small_params(position)));
        ASSERT_TRUE(far) << llama_infllm_last_error();
        const auto feed_all = [&](const llama_context_ptr & far) {
            std::vector<float> last;
            for (uint32_t p = 0; p < N_CTX && !testing::Test::HasFatalFailure(); p += N_UBATCH) {
                last = feed(far.get(), tokens, p, p + N_UBATCH);
                EXPECT_TRUE(std::all_of(last.begin(), last.end(), [](float x) { return std::isfinite(x); })) << "at token " << p;
            }
            return last;
        };
        const auto last = feed_all(far);
        llama_infllm_stats stats = {};
        ASSERT_TRUE(llama_infllm_get_stats(far.get(), -1, &stats));
        EXPECT_GT(stats.n_page_in, 0u);
        EXPECT_EQ(llama_infllm_check_slots(far.get()), 0u);

        // the same by the pager that devices run
        auto by_device = small_params(position);
        by_device.paging = LLAMA_INFLLM_PAGING_DEVICE;
        const llama_context_ptr device(llama_infllm_init_from_model(model.get(), context_params(nullptr), by_device));
        if (device) {
            EXPECT_EQ(feed_all(device), last);
        } else {
            EXPECT_NE(std::string(llama_infllm_last_error()).find("cannot page this model"), std::string::npos);
        }

        // what a failed ubatch, too, is followed by: it is removed; then a recurrent state is lost, and all must be read again
        auto * mem = llama_get_memory(far.get());
        if (llama_memory_seq_rm(mem, 0, N_CTX - N_UBATCH, -1)) {
            EXPECT_EQ(llama_memory_seq_pos_max(mem, 0), llama_pos(N_CTX - N_UBATCH) - 1);
            EXPECT_EQ(feed(far.get(), tokens, N_CTX - N_UBATCH, N_CTX), last);
        } else {
            EXPECT_TRUE(llama_model_is_hybrid(model.get()));
            EXPECT_EQ(llama_memory_seq_pos_max(mem, 0), -1);
            EXPECT_EQ(feed_all(far), last);
        }
        // with a checkpoint of what cannot go back by itself, everything can
        const llama_pos half = N_CTX/2;
        const auto feed_to = [&](uint32_t p0, uint32_t p1) {
            std::vector<float> res;
            for (uint32_t p = p0; p < p1; p += N_UBATCH) {
                res = feed(far.get(), tokens, p, p + N_UBATCH);
            }
            return res;
        };
        ASSERT_TRUE(llama_memory_seq_rm(mem, 0, -1, -1));
        feed_to(0, half);
        const auto flags = LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY;
        std::vector<uint8_t> checkpoint(llama_state_seq_get_size_ext(far.get(), 0, flags));
        EXPECT_EQ(llama_state_seq_get_data_ext(far.get(), checkpoint.data(), checkpoint.size(), 0, flags), checkpoint.size());
        EXPECT_EQ(feed_to(half, N_CTX), last);
        EXPECT_EQ(llama_state_seq_set_data_ext(far.get(), checkpoint.data(), checkpoint.size(), 0, flags), checkpoint.size());
        ASSERT_TRUE(llama_memory_seq_rm(mem, 0, half, -1));
        EXPECT_EQ(llama_memory_seq_pos_max(mem, 0), half - 1);

        // the whole state, in a context of its own
        std::vector<uint8_t> state(llama_state_seq_get_size(far.get(), 0));
        ASSERT_EQ(llama_state_seq_get_data(far.get(), state.data(), state.size(), 0), state.size());
        EXPECT_EQ(feed_to(half, N_CTX), last);
        const llama_context_ptr other(llama_infllm_init_from_model(model.get(), context_params(nullptr), small_params(position)));
        ASSERT_EQ(llama_state_seq_set_data(other.get(), state.data(), state.size(), 0), state.size()) << llama_infllm_last_error();
        std::vector<float> again;
        for (uint32_t p = half; p < N_CTX; p += N_UBATCH) {
            again = feed(other.get(), tokens, p, p + N_UBATCH);
        }
        EXPECT_EQ(again, last);

        // beside another sequence
        auto cprm_two = context_params(nullptr);
        cprm_two.n_ctx     = 2*N_CTX;
        cprm_two.n_seq_max = 2;
        const llama_context_ptr two(llama_infllm_init_from_model(model.get(), cprm_two, small_params(position)));
        ASSERT_TRUE(two) << llama_infllm_last_error();
        const std::vector<llama_token> reversed(tokens.rbegin(), tokens.rend());
        for (uint32_t p = 0; p < N_CTX; p += N_UBATCH) {
            feed(two.get(), reversed, p, p + N_UBATCH, 0);
            again = feed(two.get(), tokens, p, p + N_UBATCH, 1);
        }
        EXPECT_EQ(again, last);

        // a token of both at a time, and of each by itself
        const llama_context_ptr apart(llama_infllm_init_from_model(model.get(), cprm_two, small_params(position)));
        ASSERT_TRUE(apart) << llama_infllm_last_error();
        for (const auto & c : { two.get(), apart.get() }) {
            llama_memory_clear(llama_get_memory(c), true);
            feed(c, reversed, 0, half, 0);
            feed(c, tokens,   0, half + 8, 1);
        }
        double diff = 0.0;
        double norm = 0.0;
        for (uint32_t i = 0; i < 4; ++i) {
            auto expected = feed(apart.get(), reversed, half + i, half + i + 1, 0);
            for (const float x : feed(apart.get(), tokens, half + 8 + i, half + 9 + i, 1)) {
                expected.push_back(x);
            }
            const auto found = feed_both(two.get(), { reversed[half + i], tokens[half + 8 + i] }, { half + llama_pos(i), half + 8 + llama_pos(i) });
            ASSERT_EQ(found.size(), expected.size());
            for (size_t j = 0; j < found.size(); ++j) {
                diff += std::pow(found[j] - expected[j], 2.0);
                norm += std::pow(expected[j], 2.0);
            }
        }
        EXPECT_LT(diff/norm, 1e-4); // sums are in another order
        EXPECT_EQ(llama_infllm_check_slots(two.get()), 0u);

        // further back than a window reaches, nothing can be followed on; else the rest is whole
        if (llama_memory_seq_rm(mem, 0, half, -1)) {
            EXPECT_EQ(llama_memory_seq_pos_max(mem, 0), half - 1);
            EXPECT_EQ(feed(far.get(), tokens, half, half + N_UBATCH).empty(), false);
        } else {
            EXPECT_TRUE(model->hparams.swa_type != LLAMA_SWA_TYPE_NONE || llama_model_is_hybrid(model.get()));
            EXPECT_EQ(llama_memory_seq_pos_max(mem, 0), llama_pos(N_CTX) - 1);
            EXPECT_TRUE(llama_memory_seq_rm(mem, 0, -1, -1));
            EXPECT_EQ(llama_memory_seq_pos_max(mem, 0), -1);
        }
    }

    // positions that are rows of a tensor end with it
    if (model->pos_embd) {
        auto longer = context_params(nullptr);
        longer.n_ctx = N_CTX + 1;
        const llama_context_ptr none(llama_infllm_init_from_model(model.get(), longer, small_params(first_position)));
        EXPECT_FALSE(none);
        EXPECT_NE(std::string(llama_infllm_last_error()).find("n_ctx = 257"), std::string::npos) << llama_infllm_last_error();
    }
}

// Of a text that is one token again and again, all keys of the first layer are the same but for RoPE: undone, wherever in a head
// it is, it leaves the same representative keys for all blocks.
TEST_P(LlamaArch, RepresentativeKeysHaveNoRope) {
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);

    const auto model = load(GetParam());
    ASSERT_TRUE(model);

    auto prm = small_params(model->hparams.use_alibi ? LLAMA_INFLLM_POSITION_INFLLM : LLAMA_INFLLM_POSITION_TRUE);
    prm.search = LLAMA_INFLLM_SEARCH_QUERIES; // keys are not centred
    const llama_context_ptr ctx(llama_infllm_init_from_model(model.get(), context_params(nullptr), prm));
    if (!ctx) {
        GTEST_SKIP() << llama_infllm_last_error();
    }
    const auto & layers = llama_infllm_find(llama_get_memory(ctx.get()))->get_layers();
    const auto & l      = layers.all()[0];
    if (l.il > 0 || model->pos_embd) {
        GTEST_SKIP() << "keys of the first of these layers know of the text before";
    }
    if (layers.has_weighted()) {
        GTEST_SKIP() << "keys are weighted after RoPE, which is undone by and large";
    }

    const std::vector<llama_token> tokens(N_CTX, 7);
    for (uint32_t p = 0; p < N_CTX; p += N_UBATCH) {
        feed(ctx.get(), tokens, p, p + N_UBATCH);
    }
    const size_t n_embd = l.repr->ne[0];
    const auto   row    = [&](const ggml_tensor * t, size_t i) {
        std::vector<ggml_fp16_t> half(n_embd);
        ggml_backend_tensor_get(t, half.data(), i*t->nb[1], n_embd*sizeof(ggml_fp16_t));
        std::vector<float> res(n_embd);
        ggml_fp16_to_fp32_row(half.data(), res.data(), n_embd);
        return res;
    };
    const auto distance = [&](const std::vector<float> & a, const std::vector<float> & b) {
        double diff = 0.0;
        double norm = 0.0;
        for (size_t i = 0; i < n_embd; ++i) {
            diff += std::pow(double(a[i]) - b[i], 2.0);
            norm += std::pow(double(a[i]),        2.0);
        }
        return std::sqrt(diff/norm);
    };

    const uint32_t n_repr = 12*layers.prm.infllm.n_repr; // of 12 blocks
    for (uint32_t i = 1; i < n_repr; ++i) {
        ASSERT_LT(distance(row(l.repr, 0), row(l.repr, i)), 5e-3) << "representative key " << i;
    }
    if (l.rope >= 0) { // or this test would see nothing
        EXPECT_GT(distance(row(l.k, 0), row(l.k, 5)), 5e-2);
    }
}
