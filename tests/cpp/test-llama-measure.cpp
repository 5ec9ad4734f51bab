// A context of a model that is opened to be measured only (no_alloc), as llama.cpp's fitting of parameters does: it tells the
// sizes that the real one has, and takes no memory.

#include "tiny-model.h"

#include "llama-ext.h"
#include "llama-infllm.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <map>
#include <string>

namespace {

constexpr size_t MiB = 1024*1024;

struct measure_case {
    const char *          arch;
    llama_infllm_position position;
    llama_infllm_paging   paging;
    uint32_t              n_seq_max;
};

std::ostream & operator<<(std::ostream & os, const measure_case & c) {
    return os << c.arch << (c.position == LLAMA_INFLLM_POSITION_TRUE ? "True" : "Infllm") <<
        (c.paging == LLAMA_INFLLM_PAGING_HOST ? "Host" : "Device") << c.n_seq_max;
}

// bytes of memory and of graphs, by buffer type
std::map<std::string, std::pair<size_t, size_t>> sizes(const llama_context * ctx) {
    std::map<std::string, std::pair<size_t, size_t>> res;
    for (const auto & [buft, data] : llama_get_memory_breakdown(ctx)) {
        res[ggml_backend_buft_name(buft)] = { data.context, data.compute };
    }
    return res;
}

// memory of this process
size_t resident_bytes() {
    size_t n_page = 0;
    std::ifstream("/proc/self/statm") >> n_page >> n_page;
    return n_page*size_t(sysconf(_SC_PAGESIZE));
}

} // namespace

class LlamaMeasure : public testing::TestWithParam<measure_case> {
protected:
    void SetUp() override {
        llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);

        path = testing::TempDir() + "infllm-measure-" + std::to_string(getpid()) + ".gguf";
        llama_model_save_to_file(tiny_model(GetParam().arch, 64).get(), path.c_str());
    }

    void TearDown() override { std::remove(path.c_str()); }

    llama_model_ptr load(bool no_alloc) const {
        auto mprm = llama_model_default_params();
        mprm.n_gpu_layers = 0;
        mprm.no_alloc     = no_alloc;
        mprm.load_mode    = LLAMA_LOAD_MODE_NONE;
        return llama_model_ptr(llama_model_load_from_file(path.c_str(), mprm));
    }

    static llama_context_ptr init(llama_model * model, uint32_t n_local, uint32_t block_size) {
        auto prm = llama_infllm_default_params();
        prm.n_init            = 8;
        prm.n_local           = n_local;
        prm.block_size        = block_size;
        prm.topk              = 2;
        prm.max_cached_blocks = 4;
        prm.position          = GetParam().position;
        prm.paging            = GetParam().paging;

        auto cprm = llama_context_default_params();
        cprm.n_ctx     = 4*n_local*GetParam().n_seq_max;
        cprm.n_ubatch  = 16;
        cprm.n_seq_max = GetParam().n_seq_max;
        return llama_context_ptr(llama_infllm_init_from_model(model, cprm, prm));
    }

    std::string path;
};

class LlamaMeasureLarge : public LlamaMeasure {}; // true positions: the buffer is longer than the training length

INSTANTIATE_TEST_SUITE_P(Contexts, LlamaMeasure, testing::Values(
    measure_case { "llama", LLAMA_INFLLM_POSITION_TRUE,   LLAMA_INFLLM_PAGING_HOST,   1 },
    measure_case { "llama", LLAMA_INFLLM_POSITION_INFLLM, LLAMA_INFLLM_PAGING_DEVICE, 1 },
    measure_case { "qwen3", LLAMA_INFLLM_POSITION_TRUE,   LLAMA_INFLLM_PAGING_DEVICE, 2 },
    measure_case { "qwen3", LLAMA_INFLLM_POSITION_INFLLM, LLAMA_INFLLM_PAGING_HOST,   2 }),
    testing::PrintToStringParamName());

INSTANTIATE_TEST_SUITE_P(Contexts, LlamaMeasureLarge, testing::Values(
    measure_case { "llama", LLAMA_INFLLM_POSITION_TRUE, LLAMA_INFLLM_PAGING_HOST,   1 },
    measure_case { "qwen3", LLAMA_INFLLM_POSITION_TRUE, LLAMA_INFLLM_PAGING_DEVICE, 2 }),
    testing::PrintToStringParamName());

TEST_P(LlamaMeasure, TellsTheSizesOfTheRealContext) {
    const auto real     = load(false);
    const auto measured = load(true);
    ASSERT_TRUE(real && measured);

    const auto ctx_real     = init(real.get(), 64, 8);
    const auto ctx_measured = init(measured.get(), 64, 8);
    ASSERT_TRUE(ctx_real && ctx_measured) << llama_infllm_last_error();
    EXPECT_EQ(sizes(ctx_measured.get()), sizes(ctx_real.get()));
    EXPECT_TRUE(llama_infllm_active(ctx_measured.get()));
}

TEST_P(LlamaMeasureLarge, TakesNoMemory) {
    const auto measured = load(true);
    ASSERT_TRUE(measured);

    const size_t before = resident_bytes();
    const auto   ctx    = init(measured.get(), 1 << 21, 1024);
    ASSERT_TRUE(ctx) << llama_infllm_last_error();

    size_t n_bytes = 0;
    for (const auto & [_, size] : sizes(ctx.get())) {
        n_bytes += size.first;
    }
    EXPECT_GT(n_bytes, 512*MiB);
    EXPECT_LT(resident_bytes(), before + 128*MiB);
}
