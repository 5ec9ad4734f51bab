// Layers on a GPU, on the CPU, and on both: the results must not depend on where they are, nor on what the scheduler of ggml
// lends to the GPU. The GPU is offload_device, which computes as the CPU does, so that all is equal to the bit.

#include "first-layers.h"
#include "offload-device.h"

#include "llama-infllm.h"
#include "llama.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <ostream>
#include <random>
#include <string>
#include <vector>

namespace {

constexpr uint32_t N_LAYER   = 5;  // layers 0 and 3 search, the others follow them
constexpr uint32_t N_UBATCH  = 48; // more than the 32 tokens from which GPUs claim products with weights of the CPU
constexpr uint32_t N_CTX     = 512;
constexpr uint32_t N_PROMPT  = 220;
constexpr uint32_t N_DECODE  = 2;
constexpr uint32_t N_GPU_ALL = N_LAYER + 1; // with the output

struct context_deleter {
    void operator()(llama_context * ctx) const { llama_free(ctx); }
};
using context_ptr = std::unique_ptr<llama_context, context_deleter>;

struct model_deleter {
    void operator()(llama_model * model) const { llama_model_free(model); }
};
using model_ptr = std::unique_ptr<llama_model, model_deleter>;

struct result {
    std::vector<float> logits; // of the end of the prompt, and of N_DECODE tokens
    uint64_t           n_page_in = 0;
    uint32_t           n_bad     = 0; // slots
    std::string        copied;        // something of the memory that the scheduler has copied elsewhere to compute with it
};

// a way to use the memory
struct setting {
    const char *    name;
    ggml_type       type;
    void         (* change)(llama_infllm_params &);
};

std::ostream & operator<<(std::ostream & os, const setting & s) { return os << s.name; }

llama_infllm_params small_params() {
    auto prm = llama_infllm_default_params();
    prm.n_init            = 8;
    prm.n_local           = 48;
    prm.block_size        = 8;
    prm.topk              = 4;
    prm.max_cached_blocks = 8;
    prm.n_score           = 8;
    prm.n_repr            = 4;
    prm.position          = LLAMA_INFLLM_POSITION_TRUE;
    prm.paging            = LLAMA_INFLLM_PAGING_HOST;
    return prm;
}

llama_context_params context_params(ggml_type type = GGML_TYPE_F16) {
    auto cprm = llama_context_default_params();
    cprm.n_ctx           = N_CTX;
    cprm.n_batch         = N_CTX;
    cprm.n_ubatch        = N_UBATCH;
    cprm.n_threads       = 1;
    cprm.n_threads_batch = 1;
    cprm.no_perf         = true;
    cprm.type_k          = type;
    cprm.type_v          = type;
    return cprm;
}

} // namespace

class InfllmDevice : public testing::Test {
protected:
    static void SetUpTestSuite() {
        llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
        llama_backend_init();

        if (const char * source = std::getenv("INFLLM_TEST_MODEL")) {
            path = testing::TempDir() + "infllm-test-device-" + std::to_string(getpid()) + ".gguf";
            write_first_layers(source, path, N_LAYER);
        }
    }

    static void TearDownTestSuite() {
        std::remove(path.c_str());
    }

    void SetUp() override {
        if (path.empty()) {
            ASSERT_EQ(std::getenv("CI"), nullptr) << "INFLLM_TEST_MODEL must name a GGUF file in CI";
            GTEST_SKIP() << "set INFLLM_TEST_MODEL to a small GGUF file to run this test";
        }
    }

    static model_ptr load(std::vector<ggml_backend_dev_t> devices, uint32_t n_gpu_layers) {
        devices.push_back(nullptr);

        auto mprm = llama_model_default_params();
        mprm.devices         = devices.data();
        mprm.n_gpu_layers    = int32_t(n_gpu_layers);
        mprm.use_extra_bufts = false; // weights laid out for the CPU's own kernels are not lent
        model_ptr model(llama_model_load_from_file(path.c_str(), mprm));
        EXPECT_TRUE(model);
        return model;
    }

    static context_ptr make(llama_model * model, const llama_infllm_params & prm, const llama_context_params & cprm) {
        context_ptr ctx(llama_infllm_init_from_model(model, cprm, prm));
        EXPECT_TRUE(ctx) << llama_infllm_last_error();
        return ctx;
    }

    static result run(llama_model * model, const llama_infllm_params & prm, llama_context_params cprm) {
        result res;

        // copies that the scheduler makes are named BACKEND#NAME#..
        cprm.cb_eval_user_data = &res;
        cprm.cb_eval = [](ggml_tensor * node, bool, void * data) {
            for (const ggml_tensor * src : node->src) {
                for (const char * name : { "#infllm_k_", "#infllm_v_", "#infllm_repr_", "#infllm_mean_" }) {
                    if (src && std::strstr(src->name, name)) {
                        static_cast<result *>(data)->copied = src->name;
                    }
                }
            }
            return false;
        };

        const auto ctx = make(model, prm, cprm);
        if (!ctx) {
            return res;
        }

        const int32_t n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
        std::mt19937 rng(1);
        std::vector<llama_token> tokens(N_PROMPT + N_DECODE);
        for (auto & t : tokens) {
            t = llama_token(100 + rng()%uint32_t(n_vocab - 100));
        }
        for (uint32_t p = 0; p < tokens.size();) {
            const uint32_t n = p == 0 ? N_PROMPT : 1;
            const int rc = llama_decode(ctx.get(), llama_batch_get_one(tokens.data() + p, int32_t(n)));
            EXPECT_EQ(rc, 0) << llama_infllm_last_error();
            if (rc != 0) {
                return res;
            }
            const float * logits = llama_get_logits_ith(ctx.get(), -1);
            res.logits.insert(res.logits.end(), logits, logits + n_vocab);
            p += n;
        }

        llama_infllm_stats stats = {};
        EXPECT_TRUE(llama_infllm_get_stats(ctx.get(), -1, &stats));
        res.n_page_in = stats.n_page_in;
        res.n_bad     = llama_infllm_check_slots(ctx.get());
        return res;
    }

    static void expect_same(const result & res, const result & expected) {
        EXPECT_TRUE(res.logits == expected.logits);
        EXPECT_EQ(res.n_page_in, expected.n_page_in);
        EXPECT_GT(res.n_page_in, 0u);
        EXPECT_EQ(res.n_bad, 0u);
        EXPECT_EQ(res.copied, "");
        EXPECT_EQ(offload_device::n_misplaced(), 0);
    }

    static std::string path;
};

std::string InfllmDevice::path;

class InfllmPlacement : public InfllmDevice, public testing::WithParamInterface<setting> {};

INSTANTIATE_TEST_SUITE_P(Setting, InfllmPlacement, testing::Values(
    setting { "Keys",       GGML_TYPE_F16,  [](auto &)   {} },
    setting { "Q8",         GGML_TYPE_Q8_0, [](auto &)   {} },
    setting { "Q4",         GGML_TYPE_Q4_0, [](auto &)   {} },
    setting { "Sums",       GGML_TYPE_F16,  [](auto & p) { p.repr_topk = 1; } },
    setting { "Queries",    GGML_TYPE_F16,  [](auto & p) { p.search = LLAMA_INFLLM_SEARCH_QUERIES; p.n_score = 0; } },
    setting { "Positions",  GGML_TYPE_F16,  [](auto & p) { p.position = LLAMA_INFLLM_POSITION_INFLLM; } },
    setting { "Published",  GGML_TYPE_F16,  [](auto & p) {
        p.scores            = LLAMA_INFLLM_SCORES_PUBLISHED;
        p.attend            = LLAMA_INFLLM_ATTEND_TOPK;
        p.max_cached_blocks = 0;
        p.n_score           = 0;
        p.n_repr            = 1;
    } }),
    [](const auto & info) { return info.param.name; });

TEST_P(InfllmPlacement, GivesTheSameResults) {
    auto prm = small_params();
    GetParam().change(prm);

    const auto cprm     = context_params(GetParam().type);
    const auto expected = run(load({}, 0).get(), prm, cprm);

    // all places for one setting, the mixed ones for the others
    const bool all = std::string(GetParam().name) == "Keys";
    for (const uint32_t n_gpu_layers : all ? std::vector<uint32_t> { 0, 1, 3, N_GPU_ALL } : std::vector<uint32_t> { 0, 3 }) {
        offload_device gpu("GPU");
        const auto model = load({ gpu.get() }, n_gpu_layers);
        for (const bool offload_kqv : { true, false }) {
            for (const int64_t n_offload_min : all ? std::vector<int64_t> { 0, 32, 1 } : std::vector<int64_t> { 32 }) {
                SCOPED_TRACE("n_gpu_layers = " + std::to_string(n_gpu_layers) + ", offload_kqv = " + std::to_string(offload_kqv) +
                        ", lent from " + std::to_string(n_offload_min) + " tokens");
                gpu.n_offload_min = n_offload_min;
                auto changed = cprm;
                changed.offload_kqv = offload_kqv;
                changed.op_offload  = n_offload_min > 0; // 0: nothing is lent
                expect_same(run(model.get(), prm, changed), expected);
            }
        }
    }
}

TEST_F(InfllmDevice, TwoDevicesAndTheCPUGiveTheSameResults) {
    offload_device a("A");
    offload_device b("B");

    const auto expected = run(load({}, 0).get(), small_params(), context_params());
    for (const uint32_t n_gpu_layers : { 3u, N_GPU_ALL }) {
        SCOPED_TRACE(n_gpu_layers);
        expect_same(run(load({ a.get(), b.get() }, n_gpu_layers).get(), small_params(), context_params()), expected);
    }
}

// layers of the CPU beside those of a device that pages by itself
TEST_F(InfllmDevice, DevicePagedLayersBesideHostPagedOnes) {
    auto prm = small_params();
    prm.paging = LLAMA_INFLLM_PAGING_AUTO;

    offload_device gpu("GPU");
    gpu.pages = true;

    expect_same(run(load({ gpu.get() }, N_GPU_ALL).get(), prm, context_params()), run(load({}, 0).get(), prm, context_params()));

    const auto model = load({ gpu.get() }, 3);
    auto cprm = context_params();
    cprm.op_offload = false;
    const auto expected = run(model.get(), prm, cprm);
    for (const int64_t n_offload_min : { 32, 1 }) {
        cprm.op_offload   = true;
        gpu.n_offload_min = n_offload_min;
        expect_same(run(model.get(), prm, cprm), expected);
    }
}

// what a device cannot do where the resident buffer is, is refused when the context is made
TEST_F(InfllmDevice, DeviceWithoutAnOpIsRefused) {
    offload_device gpu("GPU");
    const auto model = load({ gpu.get() }, N_GPU_ALL);

    for (const ggml_op op : { GGML_OP_FLASH_ATTN_EXT, GGML_OP_SET_ROWS, GGML_OP_GET_ROWS, GGML_OP_MUL_MAT }) {
        SCOPED_TRACE(ggml_op_name(op));
        gpu.missing_op = op;

        EXPECT_FALSE(context_ptr(llama_infllm_init_from_model(model.get(), context_params(), small_params())));
        const std::string error = llama_infllm_last_error();
        for (const std::string part : { "GPU", ggml_op_name(op), "f16", "offload_kqv" }) {
            EXPECT_NE(error.find(part), std::string::npos) << "no \"" << part << "\" in: " << error;
        }
    }
}
