// Session files, loaded into a context: one is refused by a sentence, and then context and file are as they were; or it is taken, the
// context goes on, and is saved to it again.

#include "session-input.h"
#include "tiny-context.h"

#include <memory>

using fuzz::bytes;

static const fuzz::temp_file & file() {
    static const fuzz::temp_file res;
    return res;
}

static bool save_session(llama_context * ctx) {
    const auto tokens = fuzz::text(fuzz::n_past(ctx));
    return llama_infllm_session_save(ctx, 0, file().name().c_str(), tokens.data(), tokens.size(), reinterpret_cast<const uint8_t *>("data"), 4);
}

// an input is a byte that says which context, and the file
std::vector<bytes> fuzz::seeds() {
    std::vector<bytes> res;
    for (uint8_t kind = 0; kind < N_KIND; ++kind) {
        for (const uint32_t n : { 20, 100 }) {
            const auto ctx = make_context(kind);
            feed(ctx.get(), n);
            FUZZ_CHECK(save_session(ctx.get()));
            auto input = file().read();
            input.insert(input.begin(), kind);
            res.push_back(input);
        }
    }
    return res;
}

void fuzz::repair(bytes & input) {
    if (input.empty()) {
        return;
    }
    bytes of_file(input.begin() + 1, input.end());
    for (const size_t header : { size_t(0), size_t(infllm::session_file::PAGE) }) {
        if (of_file.size() < header + infllm::session_file::PAGE) {
            continue;
        }
        with_rest(of_file, header, [&](uint64_t offset, uint64_t size) {
            const uint64_t n_before = number_at(of_file, header + AT_BLOCKS)*16 + number_at(of_file, header + AT_TOKENS)*4;
            const uint64_t n_state  = number_at(of_file, header + AT_STATE);
            if (n_before <= size && n_state <= size - n_before) {
                repair_state(of_file, offset + n_before, offset + n_before + n_state);
            }
        });
    }
    repair_session(of_file);
    std::copy(of_file.begin(), of_file.end(), input.begin() + 1);
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    if (size == 0) {
        return 0;
    }
    const auto & to  = fuzz::get_context(data[0]%fuzz::N_KIND);
    auto       * ctx = to.ctx.get();
    file().write(data + 1, size - 1);

    using session_ptr = std::unique_ptr<llama_infllm_session, void (*)(llama_infllm_session *)>;
    session_ptr session(llama_infllm_session_open(file().name().c_str()), llama_infllm_session_free);
    const bool is_loaded = session && llama_infllm_session_load(session.get(), ctx, 0);
    FUZZ_CHECK(file().read() == bytes(data + 1, data + size));
    if (!is_loaded) {
        FUZZ_CHECK(*llama_infllm_last_error() && fuzz::save(ctx) == to.state);
        return 0;
    }
    llama_infllm_session_info info;
    llama_infllm_session_get_info(session.get(), &info);
    FUZZ_CHECK(info.n_tokens == fuzz::n_past(ctx));
    llama_infllm_session_verify(session.get());
    session.reset();

    fuzz::use(ctx);
    FUZZ_CHECK(save_session(ctx));
    const bytes now = fuzz::save(ctx);
    FUZZ_CHECK(llama_state_seq_set_data(ctx, to.state.data(), to.state.size(), 0) == to.state.size());
    session.reset(llama_infllm_session_open(file().name().c_str()));
    FUZZ_CHECK(session && llama_infllm_session_load(session.get(), ctx, 0) && fuzz::save(ctx) == now);
    FUZZ_CHECK(llama_state_seq_set_data(ctx, to.state.data(), to.state.size(), 0) == to.state.size());
    FUZZ_CHECK(llama_infllm_check_slots(ctx) == 0);
    return 0;
}
