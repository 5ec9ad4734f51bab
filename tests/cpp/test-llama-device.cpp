// Layers on a GPU, on the CPU, and on both: the results must not depend on where they are, nor on what the scheduler of ggml
// lends to the GPU. The GPU is offload_device, which computes as the CPU does, so that all is equal to the bit.

#include "first-layers.h"
#include "offload-device.h"
#include "random-model.h"

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
constexpr uint32_t N_GPU_ALL = N_LAYER + 1; // with the output

struct result {
    std::vector<float> logits; // of the end of the prompt, and of two tokens
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

        for (const uint32_t n : { N_PROMPT, 1u, 1u }) {
            const auto logits = feed(ctx.get(), n);
            res.logits.insert(res.logits.end(), logits.begin(), logits.end());
        }
        // others beside it, a token of each at a time
        for (uint32_t s = 1; s < cprm.n_seq_max; ++s) {
            feed(ctx.get(), 50 + 60*s, llama_seq_id(s));
        }
        for (int i = 0; i < 4 && cprm.n_seq_max > 1; ++i) {
            const auto logits = step(ctx.get(), cprm.n_seq_max);
            res.logits.insert(res.logits.end(), logits.begin(), logits.end());
        }
        res.n_page_in = get_stats(ctx.get()).n_page_in;
        res.n_bad     = llama_infllm_check_slots(ctx.get());
        return res;
    }

    // n further tokens of a sequence, by their position; the logits of the last one
    static std::vector<float> feed(llama_context * ctx, uint32_t n, llama_seq_id seq_id = 0) {
        const int32_t   n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(ctx)));
        const llama_pos p0      = llama_memory_seq_pos_max(llama_get_memory(ctx), seq_id) + 1;

        llama_batch batch = llama_batch_init(int32_t(n), 0, 1);
        batch.n_tokens = int32_t(n);
        for (uint32_t i = 0; i < n; ++i) {
            std::mt19937 rng(uint32_t(p0) + i);
            batch.token   [i]    = llama_token(100 + rng()%uint32_t(n_vocab - 100));
            batch.pos     [i]    = p0 + llama_pos(i);
            batch.n_seq_id[i]    = 1;
            batch.seq_id  [i][0] = seq_id;
            batch.logits  [i]    = i + 1 == n;
        }
        const int rc = llama_decode(ctx, batch);
        llama_batch_free(batch);
        EXPECT_EQ(rc, 0) << llama_infllm_last_error();

        const float * logits = rc == 0 ? llama_get_logits_ith(ctx, -1) : nullptr;
        return logits ? std::vector<float>(logits, logits + n_vocab) : std::vector<float>();
    }

    // a further token of each sequence, in one batch; the logits of all
    static std::vector<float> step(llama_context * ctx, uint32_t n_seq) {
        const int32_t n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(ctx)));

        llama_batch batch = llama_batch_init(int32_t(n_seq), 0, 1);
        batch.n_tokens = int32_t(n_seq);
        for (uint32_t s = 0; s < n_seq; ++s) {
            batch.pos     [s]    = llama_memory_seq_pos_max(llama_get_memory(ctx), llama_seq_id(s)) + 1;
            batch.token   [s]    = llama_token(100 + 7*s + uint32_t(batch.pos[s]));
            batch.n_seq_id[s]    = 1;
            batch.seq_id  [s][0] = llama_seq_id(s);
            batch.logits  [s]    = true;
        }
        const int rc = llama_decode(ctx, batch);
        llama_batch_free(batch);
        EXPECT_EQ(rc, 0) << llama_infllm_last_error();

        std::vector<float> res;
        for (uint32_t s = 0; s < n_seq && rc == 0; ++s) {
            const float * logits = llama_get_logits_ith(ctx, int32_t(s));
            res.insert(res.end(), logits, logits + n_vocab);
        }
        return res;
    }

    static llama_infllm_stats get_stats(const llama_context * ctx, int32_t il = -1) {
        llama_infllm_stats stats = {};
        EXPECT_TRUE(llama_infllm_get_stats(ctx, il, &stats));
        return stats;
    }

    // why the host pages
    static std::string reason(const llama_context * ctx, int32_t il = -1) {
        char buf[256];
        EXPECT_GE(llama_infllm_paging_reason(ctx, il, buf, sizeof(buf)), 0);
        return buf;
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
    setting { "Quest",      GGML_TYPE_F16,  [](auto & p) { p.search = LLAMA_INFLLM_SEARCH_QUEST; } },
    setting { "Preselect",  GGML_TYPE_F16,  [](auto & p) { p.search = LLAMA_INFLLM_SEARCH_PRESELECT; } },
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

TEST_F(InfllmDevice, SeveralSequencesAtATimeGiveTheSameResults) {
    auto cprm = context_params();
    cprm.n_seq_max = 4;
    cprm.n_ctx     = cprm.n_seq_max*N_CTX;

    auto prm = small_params();
    prm.paging = LLAMA_INFLLM_PAGING_AUTO;
    for (const auto position : { LLAMA_INFLLM_POSITION_INFLLM, LLAMA_INFLLM_POSITION_TRUE }) {
        prm.position = position;
        const auto expected = run(load({}, 0).get(), prm, cprm);
        for (const bool pages : { false, true }) {
            for (const uint32_t n_gpu_layers : { 0u, 3u, N_GPU_ALL }) {
                if (pages && n_gpu_layers == 3) {
                    continue; // layers that the host and a device page do not agree on what is relevant
                }
                SCOPED_TRACE(n_gpu_layers);
                offload_device gpu("GPU");
                gpu.pages = pages;
                expect_same(run(load({ gpu.get() }, n_gpu_layers).get(), prm, cprm), expected);
            }
        }
    }
}

// layers of the CPU beside those of a device that pages by itself
TEST_F(InfllmDevice, DevicePagedLayersBesideHostPagedOnes) {
    auto prm = small_params();
    prm.paging = LLAMA_INFLLM_PAGING_AUTO;

    offload_device gpu("GPU");
    gpu.pages = true;

    for (const auto position : { LLAMA_INFLLM_POSITION_INFLLM, LLAMA_INFLLM_POSITION_TRUE }) {
        prm.position = position;
        expect_same(run(load({ gpu.get() }, N_GPU_ALL).get(), prm, context_params()), run(load({}, 0).get(), prm, context_params()));
    }

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

//
// who pages
//

class InfllmWhoPages : public InfllmDevice {
protected:
    void SetUp() override {
        InfllmDevice::SetUp();
        if (!IsSkipped()) {
            gpu.pages = true;
            model     = load({ gpu.get() }, N_GPU_ALL);
            prm.paging = LLAMA_INFLLM_PAGING_AUTO;
        }
    }

    void TearDown() override { offload_device::pins = true; }

    // the same text, with the host as the pager from the start
    context_ptr make_host_paged(uint32_t n_seq = 1) {
        auto host = prm;
        host.paging           = LLAMA_INFLLM_PAGING_HOST;
        host.pinned_max_bytes = 0;
        return make_for(host, n_seq);
    }

    context_ptr make_for(const llama_infllm_params & p, uint32_t n_seq = 1) {
        auto cprm = context_params();
        cprm.n_ctx    *= n_seq;
        cprm.n_seq_max = n_seq;
        return make(model.get(), p, cprm);
    }

    static void expect_paged_by_device(const llama_context * ctx) {
        EXPECT_EQ(reason(ctx), "");
        EXPECT_EQ(get_stats(ctx).n_layer_pager,  N_LAYER);
        EXPECT_EQ(get_stats(ctx).n_layer_device, N_LAYER);
    }

    static void expect_paged_by_host(const llama_context * ctx, const std::string & why) {
        EXPECT_NE(reason(ctx).find(why), std::string::npos) << reason(ctx);
        EXPECT_NE(reason(ctx, 1).find(why), std::string::npos) << reason(ctx, 1);
        EXPECT_EQ(get_stats(ctx).n_layer_pager,  N_LAYER);
        EXPECT_EQ(get_stats(ctx).n_layer_device, 0u);
    }

    // bytes of a block in the store
    uint64_t block_bytes() {
        const auto ctx = make_host_paged();
        feed(ctx.get(), N_PROMPT);
        const auto stats = get_stats(ctx.get());
        return stats.bytes_store/stats.n_blocks*stats.n_layer;
    }

    offload_device      gpu { "GPU" };
    model_ptr           model; // all of it on the device
    llama_infllm_params prm = small_params();
};

TEST_F(InfllmWhoPages, ReasonsAreGiven) {
    expect_paged_by_device(make_for(prm).get());

    auto cprm = context_params();
    cprm.type_k = GGML_TYPE_BF16;
    expect_paged_by_host(make(model.get(), prm, cprm).get(), "device GPU pages K of type f16, q8_0 or q4_0, not bf16");

    auto large = prm;
    large.block_size        = 2048;
    large.n_local           = 2048;
    large.n_repr            = 1024;
    large.topk              = 1;
    large.max_cached_blocks = 1;
    cprm = context_params();
    cprm.n_ctx = 16384;
    expect_paged_by_host(make(model.get(), large, cprm).get(), "n_repr are too large");

    auto published = prm;
    published.scores            = LLAMA_INFLLM_SCORES_PUBLISHED;
    published.attend            = LLAMA_INFLLM_ATTEND_TOPK;
    published.max_cached_blocks = 0;
    published.n_score           = 0;
    published.n_repr            = 1;
    expect_paged_by_host(make_for(published).get(), "scores = published");

    // some layers on the device: the others have no reason
    const auto half = load({ gpu.get() }, 3);
    cprm = context_params();
    cprm.type_k = GGML_TYPE_BF16;
    const auto ctx = make(half.get(), prm, cprm);
    EXPECT_EQ(get_stats(ctx.get()).n_layer_pager, 2u);
    EXPECT_EQ(reason(ctx.get(), 0), "");
    EXPECT_NE(reason(ctx.get(), N_LAYER - 1), "");
}

TEST_F(InfllmWhoPages, NothingIsLostWithoutAPager) {
    // nothing to do about a device that has none
    gpu.pages = false;
    auto ctx = make_for(prm);
    EXPECT_EQ(reason(ctx.get()), "device GPU has no pager of its own");
    EXPECT_EQ(get_stats(ctx.get()).n_layer_pager, 0u);

    prm.paging = LLAMA_INFLLM_PAGING_DEVICE;
    EXPECT_FALSE(context_ptr(llama_infllm_init_from_model(model.get(), context_params(), prm)));
    EXPECT_NE(std::string(llama_infllm_last_error()).find("has no pager of its own"), std::string::npos);

    // nor where the host was asked for, or there is no device, or nothing to page
    gpu.pages  = true;
    prm.paging = LLAMA_INFLLM_PAGING_HOST;
    EXPECT_EQ(reason(make_for(prm).get()), "");

    prm.paging = LLAMA_INFLLM_PAGING_AUTO;
    EXPECT_EQ(reason(make(load({}, 0).get(), prm, context_params()).get()), "");

    auto cprm = context_params(GGML_TYPE_BF16);
    cprm.n_ctx  = 256;
    prm.n_local = 256;
    EXPECT_EQ(reason(make(model.get(), prm, cprm).get()), "");

    EXPECT_EQ(llama_infllm_paging_reason(context_ptr(llama_init_from_model(model.get(), context_params())).get(), -1, nullptr, 0), -1);
}

TEST_F(InfllmWhoPages, DeviceThatIsAskedForSaysWhatItCannotDo) {
    random_model wide;
    wide.n_embd_head = 320;
    wide.n_rot       = 320;
    prm.paging = LLAMA_INFLLM_PAGING_DEVICE;
    EXPECT_FALSE(context_ptr(llama_infllm_init_from_model(wide.load().get(), context_params(GGML_TYPE_Q8_0), prm)));
    EXPECT_NE(std::string(llama_infllm_last_error()).find("heads of quantised K have more than 256 values"), std::string::npos) << llama_infllm_last_error();
}

TEST_F(InfllmWhoPages, DevicePagesAgainAfterClear) {
    const auto host = make_host_paged();
    feed(host.get(), N_PROMPT);
    const auto expected = feed(host.get(), 1);

    for (const bool limited : { true, false }) {
        SCOPED_TRACE(limited);
        prm.pinned_max_bytes = limited ? 2*block_bytes() : 0;
        const auto ctx = make_for(prm);
        expect_paged_by_device(ctx.get());

        offload_device::pins = limited;
        feed(ctx.get(), N_PROMPT);
        expect_paged_by_host(ctx.get(), limited ? "pinned_max_bytes = " : "no more than 0.0 MiB of memory can be pinned");
        EXPECT_TRUE(feed(ctx.get(), 1) == expected);
        const auto n_page_in = get_stats(ctx.get()).n_page_in;
        EXPECT_EQ(n_page_in, get_stats(host.get()).n_page_in);

        offload_device::pins = true;
        llama_memory_clear(llama_get_memory(ctx.get()), true);
        expect_paged_by_device(ctx.get());
        EXPECT_EQ(get_stats(ctx.get()).n_page_in, n_page_in); // counted on

        if (!limited) {
            feed(ctx.get(), N_PROMPT);
            EXPECT_TRUE(feed(ctx.get(), 1) == expected);
            expect_paged_by_device(ctx.get());
            EXPECT_EQ(get_stats(ctx.get()).n_page_in, 2*n_page_in);
            EXPECT_EQ(llama_infllm_check_slots(ctx.get()), 0u);
        }
    }
}

// memory that other sequences give back is pinned for those that are left: the device goes on from what the host has done
TEST_F(InfllmWhoPages, DevicePagesAgainWhenPinnedMemoryIsFree) {
    const auto host = make_host_paged(2);
    feed(host.get(), N_PROMPT, 1);
    const auto n_block = get_stats(host.get()).n_blocks/N_LAYER;

    prm.pinned_max_bytes = n_block*block_bytes()*3/2;
    const auto ctx = make_for(prm, 2);
    feed(ctx.get(), N_PROMPT, 0);
    expect_paged_by_device(ctx.get());
    feed(ctx.get(), N_PROMPT, 1);
    expect_paged_by_host(ctx.get(), "pinned_max_bytes = ");

    // not enough
    auto * mem = llama_get_memory(ctx.get());
    ASSERT_TRUE(llama_memory_seq_rm(mem, 0, N_PROMPT - 8, -1));
    expect_paged_by_host(ctx.get(), "pinned_max_bytes = ");

    ASSERT_TRUE(llama_memory_seq_rm(mem, 0, -1, -1));
    expect_paged_by_device(ctx.get());
    EXPECT_EQ(llama_infllm_check_slots(ctx.get()), 0u);
    for (const uint32_t n : { 1u, 20u, 1u }) {
        EXPECT_TRUE(feed(ctx.get(), n, 1) == feed(host.get(), n, 1));
        EXPECT_EQ(llama_infllm_check_slots(ctx.get()), 0u);
    }
    expect_paged_by_device(ctx.get());
}

TEST_F(InfllmWhoPages, DevicePagesAgainAfterATrace) {
    const auto host = make_host_paged();
    const auto ctx  = make_for(prm);
    for (const bool traced : { false, true, false }) {
        int n_event = 0;
        const llama_infllm_trace_callback trace = [](const llama_infllm_trace_event *, void * n) { ++*static_cast<int *>(n); };
        llama_infllm_set_trace(ctx.get(), traced ? trace : nullptr, &n_event);
        if (traced) {
            expect_paged_by_host(ctx.get(), "scores are traced");
        } else {
            expect_paged_by_device(ctx.get());
        }
        const bool first = get_stats(ctx.get()).n_tokens == 0;
        for (const uint32_t n : { first ? N_PROMPT : 20u, 1u }) {
            EXPECT_TRUE(feed(ctx.get(), n) == feed(host.get(), n));
        }
        EXPECT_EQ(n_event > 0, traced);
        EXPECT_EQ(get_stats(ctx.get()).n_page_in, get_stats(host.get()).n_page_in);
    }
}
