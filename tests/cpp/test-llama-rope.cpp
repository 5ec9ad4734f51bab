// Rotations of every kind of RoPE: there and back is the identity, and the magnitude of YaRN and LongRoPE, which is in the keys
// once, changes nothing that is selected.

#include "random-model.h"

#include "llama-infllm-probe.h"
#include "llama-infllm.h"

#include "ggml-backend.h"
#include "llama-context.h"

#include <algorithm>
#include <functional>

namespace {

struct rope_case {
    const char * name;
    const char * arch;
    uint32_t     n_rot;
    bool         factors;
    bool         yarn;
};

std::ostream & operator<<(std::ostream & os, const rope_case & c) { return os << c.name; }

llama_context_params context_params(const rope_case & c, float attn_factor) {
    auto res = llama_context_default_params();
    res.n_ctx            = 1024;
    res.n_batch          = 1024;
    res.n_ubatch         = 16;
    res.n_threads        = 1;
    res.n_threads_batch  = 1;
    res.flash_attn_type  = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    res.yarn_attn_factor = attn_factor;
    if (c.yarn) {
        res.rope_scaling_type = LLAMA_ROPE_SCALING_TYPE_YARN;
        res.rope_freq_scale   = 0.25f;
        res.yarn_ext_factor   = 1.0f;
        res.yarn_orig_ctx     = 256;
    }
    return res;
}

llama_infllm_params infllm_params() {
    auto res = llama_infllm_default_params();
    res.n_init            = 8;
    res.n_local           = 32;
    res.block_size        = 8;
    res.topk              = 4;
    res.n_score           = 8;
    res.paging            = LLAMA_INFLLM_PAGING_HOST;
    return res;
}

// selections of the first layer, best first
std::vector<std::vector<int32_t>> select(
        llama_model * model, const llama_context_params & cprm, const llama_infllm_params & prm, const std::vector<llama_token> & tokens) {
    context_ptr ctx(llama_infllm_init_from_model(model, cprm, prm));
    EXPECT_TRUE(ctx) << llama_infllm_last_error();

    std::vector<std::vector<int32_t>> res;
    llama_infllm_set_trace(ctx.get(), [](const llama_infllm_trace_event * e, void * data) {
        static_cast<std::vector<std::vector<int32_t>> *>(data)->emplace_back(e->selected, e->selected + e->n_selected);
    }, &res);
    auto copy = tokens;
    EXPECT_EQ(llama_decode(ctx.get(), llama_batch_get_one(copy.data(), int32_t(copy.size()))), 0) << llama_infllm_last_error();
    return res;
}

} // namespace

class RopeKinds : public testing::TestWithParam<rope_case> {
protected:
    static void SetUpTestSuite() {
        llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
        llama_backend_init();
    }

    void SetUp() override {
        random_model shape;
        shape.arch    = GetParam().arch;
        shape.n_rot   = GetParam().n_rot;
        shape.factors = GetParam().factors;
        model = shape.load();
        ASSERT_TRUE(model);
    }

    model_ptr model;
};

INSTANTIATE_TEST_SUITE_P(Kinds, RopeKinds, testing::Values(
    rope_case { "Norm",        "llama",    64, false, false },
    rope_case { "NormFactors", "llama",    64, true,  false },
    rope_case { "NormYarn",    "llama",    64, false, true  },
    rope_case { "AllAtOnce",   "llama",    64, true,  true  },
    rope_case { "Neox",        "stablelm", 64, false, false },
    rope_case { "NeoxPartial", "stablelm", 16, false, false },
    rope_case { "NeoxYarn",    "stablelm", 32, false, true  }),
    [](const auto & info) { return info.param.name; });

TEST_P(RopeKinds, ThereAndBackIsTheIdentity) {
    for (const float attn_factor : { 1.0f, 1.7f }) {
        context_ptr ctx(llama_init_from_model(model.get(), context_params(GetParam(), attn_factor)));
        ASSERT_TRUE(ctx);
        const llama_infllm_rope rope = *llama_infllm_probe_keys(*model, ctx->get_cparams()).at(0).rope;

        const int64_t n_embd = 64;
        const std::vector<int32_t> there = { 0, 1, 17, 400, -3, 1000 };
        std::vector<int32_t> back;
        for (const int32_t pos : there) {
            back.push_back(-pos);
        }

        ggml_context_ptr ggml { ggml_init({ size_t(1) << 20, nullptr, true }) };
        ggml_backend_ptr cpu  { ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr) };
        ggml_tensor * x  = ggml_new_tensor_3d(ggml.get(), GGML_TYPE_F32, n_embd, 1, int64_t(there.size()));
        ggml_tensor * p0 = ggml_new_tensor_1d(ggml.get(), GGML_TYPE_I32, int64_t(there.size()));
        ggml_tensor * p1 = ggml_new_tensor_1d(ggml.get(), GGML_TYPE_I32, int64_t(there.size()));
        ggml_tensor * y  = rope.build(ggml.get(), x, p0);
        ggml_tensor * z  = rope.build(ggml.get(), y, p1);
        ggml_cgraph * gf = ggml_new_graph(ggml.get());
        ggml_build_forward_expand(gf, z);
        ggml_backend_buffer_ptr buf { ggml_backend_alloc_ctx_tensors(ggml.get(), cpu.get()) };

        std::mt19937 rng(1);
        std::normal_distribution<float> normal;
        std::vector<float> in(n_embd*there.size());
        std::generate(in.begin(), in.end(), [&] { return normal(rng); });
        ggml_backend_tensor_set(x,  in.data(),    0, ggml_nbytes(x));
        ggml_backend_tensor_set(p0, there.data(), 0, ggml_nbytes(p0));
        ggml_backend_tensor_set(p1, back.data(),  0, ggml_nbytes(p1));
        ASSERT_EQ(ggml_backend_graph_compute(cpu.get(), gf), GGML_STATUS_SUCCESS);

        std::vector<float> rotated(in.size());
        std::vector<float> out(in.size());
        ggml_backend_tensor_get(y, rotated.data(), 0, ggml_nbytes(y));
        ggml_backend_tensor_get(z, out.data(),     0, ggml_nbytes(z));

        // the same rotations, applied by ourselves
        const auto rotations = rope.rotations(there);
        for (size_t t = 0; t < there.size(); ++t) {
            std::vector<float> own(in.begin() + n_embd*t, in.begin() + n_embd*(t + 1));
            rotations[t].apply(own.data(), 1, n_embd);
            double norm_in = 0.0, norm_rotated = 0.0;
            for (int64_t i = 0; i < n_embd; ++i) {
                ASSERT_NEAR(out[n_embd*t + i], in[n_embd*t + i], 2e-4f) << there[t];
                ASSERT_NEAR(rotated[n_embd*t + i], own[i], 2e-4f) << there[t];
                norm_in      += std::pow(double(in     [n_embd*t + i]), 2.0);
                norm_rotated += std::pow(double(rotated[n_embd*t + i]), 2.0);
            }
            ASSERT_NEAR(norm_rotated/norm_in, 1.0, 1e-4);
        }
    }
}

TEST_P(RopeKinds, SelectionDoesNotDependOnTheMagnitude) {
    std::mt19937 rng(2);
    std::vector<llama_token> tokens(600);
    for (auto & t : tokens) {
        t = llama_token(rng()%random_model::N_VOCAB);
    }

    for (const auto position : { LLAMA_INFLLM_POSITION_TRUE, LLAMA_INFLLM_POSITION_INFLLM }) {
        for (const auto search : { LLAMA_INFLLM_SEARCH_KEYS, LLAMA_INFLLM_SEARCH_QUERIES }) {
            SCOPED_TRACE(testing::Message() << "position " << position << ", search " << search);
            auto prm = infllm_params();
            prm.position = position;
            prm.search   = search;
            // by queries some keys would be chosen by attention, which the magnitude changes where not all dimensions are rotated
            prm.n_repr    = search == LLAMA_INFLLM_SEARCH_QUERIES ? 1 : 0;
            prm.repr_topk = search == LLAMA_INFLLM_SEARCH_QUERIES ? prm.block_size : 0;

            const auto expected = select(model.get(), context_params(GetParam(), 1.0f), prm, tokens);
            ASSERT_GT(expected.size(), 20u);
            for (const float attn_factor : { 2.0f, 1.3f }) {
                const auto selected = select(model.get(), context_params(GetParam(), attn_factor), prm, tokens);
                ASSERT_EQ(selected.size(), expected.size());
                uint32_t n_same = 0;
                uint32_t n_all  = 0;
                for (size_t i = 0; i < selected.size(); ++i) {
                    for (const int32_t block : selected[i]) {
                        n_same += std::count(expected[i].begin(), expected[i].end(), block) > 0;
                        n_all  += 1;
                    }
                }
                // keys that are rounded otherwise may decide what is nearly equal
                EXPECT_GE(n_same, attn_factor == 2.0f ? n_all : n_all*98/100) << "of " << n_all << ", attn_factor = " << attn_factor;
            }
        }
    }
}

// MiniCPM4, Phi 3.5: contexts beyond the original length have other frequency factors, from their first token on
TEST(LongRope, SwitchesWhereUpstreamDoes) {
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    llama_backend_init();
    random_model shape;
    shape.arch       = "minicpm";
    shape.n_ctx_orig = 512;
    const auto model = shape.load();
    ASSERT_TRUE(model);

    std::mt19937 rng(3);
    std::vector<llama_token> tokens(448);
    for (auto & t : tokens) {
        t = llama_token(rng()%random_model::N_VOCAB);
    }
    const uint32_t n_fit = 96;

    std::vector<std::vector<float>> fitting; // logits
    std::vector<llama_infllm_rope>  ropes;
    for (const uint32_t n_ctx : { 512u, 2048u }) {
        SCOPED_TRACE(n_ctx);
        auto cprm = context_params({ "", "", 64, false, false }, 1.0f);
        cprm.n_ctx = n_ctx;
        auto prm = infllm_params();
        prm.position = LLAMA_INFLLM_POSITION_INFLLM;

        const context_ptr plain(llama_init_from_model(model.get(), cprm));
        const context_ptr ctx(llama_infllm_init_from_model(model.get(), cprm, prm));
        ASSERT_TRUE(plain && ctx) << llama_infllm_last_error();
        ropes.push_back(*llama_infllm_probe_keys(*model, plain->get_cparams()).at(0).rope);

        const auto feed = [&](llama_context * c, uint32_t p0, uint32_t p1) {
            EXPECT_EQ(llama_decode(c, llama_batch_get_one(tokens.data() + p0, int32_t(p1 - p0))), 0);
            const float * l = llama_get_logits_ith(c, -1);
            return std::vector<float>(l, l + random_model::N_VOCAB);
        };
        fitting.push_back(feed(ctx.get(), 0, n_fit));
        EXPECT_EQ(fitting.back(), feed(plain.get(), 0, n_fit));

        // beyond the buffer blocks are moved by the same rotations
        feed(ctx.get(), n_fit, 448);
        llama_infllm_stats stats;
        ASSERT_TRUE(llama_infllm_get_stats(ctx.get(), -1, &stats));
        EXPECT_GT(stats.n_page_in, 0u);
        EXPECT_EQ(llama_infllm_check_slots(ctx.get()), 0u);
    }
    EXPECT_FALSE(ropes[0] == ropes[1]);
    EXPECT_NE(fitting[0], fitting[1]);
}
