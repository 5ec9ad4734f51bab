// What programs that save the state of a context get: a failure that they notice.

#include "tiny-model.h"

#include "llama-infllm.h"

#include <gtest/gtest.h>

#include <vector>

// as llama-server does, which looks at the size that was read alone
TEST(LlamaState, OfAPromptIsNotTakenForRestored) {
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);

    auto prm = llama_infllm_default_params();
    prm.n_local    = 32;
    prm.block_size = 8;

    auto cprm = llama_context_default_params();
    cprm.n_ctx     = 512;
    cprm.n_ubatch  = 16;
    cprm.n_threads = 1;

    const auto              model = tiny_model("llama", 64);
    const llama_context_ptr ctx(llama_infllm_init_from_model(model.get(), cprm, prm));
    ASSERT_TRUE(ctx) << llama_infllm_last_error();

    std::vector<llama_token> tokens = { 1, 2, 3 };
    ASSERT_EQ(llama_decode(ctx.get(), llama_batch_get_one(tokens.data(), int32_t(tokens.size()))), 0);

    std::vector<uint8_t> state(llama_state_seq_get_size(ctx.get(), 0));
    EXPECT_EQ(llama_state_seq_get_data(ctx.get(), state.data(), state.size(), 0), 0u);
    EXPECT_NE(llama_state_seq_set_data(ctx.get(), state.data(), state.size(), 0), state.size());

    // other programs compare the sizes of what is saved beside the whole: both are 0
    const auto partial = LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY;
    const auto size    = llama_state_seq_get_size_ext(ctx.get(), 0, partial);
    EXPECT_EQ(llama_state_seq_get_data_ext(ctx.get(), state.data(), size, 0, partial), size);

    state.resize(llama_state_get_size(ctx.get()));
    EXPECT_EQ(llama_state_get_data(ctx.get(), state.data(), state.size()), 0u);

    // and nothing has changed
    EXPECT_EQ(llama_memory_seq_pos_max(llama_get_memory(ctx.get()), 0), 2);
}
