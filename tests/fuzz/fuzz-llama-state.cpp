// States (llama_state_seq_set_data, llama_state_set_data): one is refused, and then the context is as it was, byte for byte; or it is
// taken, and the context goes on, whatever numbers it holds.

#include "tiny-context.h"

using fuzz::bytes;

// An input is a byte that says which context and which of the two functions, and what a state has of the memory. What upstream puts
// before it, the name of the architecture or a magic number and a sequence's, is upstream's to check.
static bool is_whole(uint8_t kind) {
    return kind/fuzz::N_KIND%2 != 0;
}

static size_t size_before(bool whole) {
    return whole ? sizeof(uint32_t) + std::strlen("llama") : 2*sizeof(uint32_t);
}

static bytes save_all(llama_context * ctx) {
    bytes res(llama_state_get_size(ctx));
    FUZZ_CHECK(llama_state_get_data(ctx, res.data(), res.size()) == res.size());
    return res;
}

std::vector<bytes> fuzz::seeds() {
    std::vector<bytes> res;
    for (uint8_t kind = 0; kind < N_KIND; ++kind) {
        for (const uint32_t n : { 20, 180 }) {
            const auto ctx = make_context(kind);
            feed(ctx.get(), n);
            for (const bool whole : { false, true }) {
                const auto state = whole ? save_all(ctx.get()) : save(ctx.get());
                auto & input = res.emplace_back(bytes { uint8_t(kind + (whole ? N_KIND : 0)) });
                input.insert(input.end(), state.begin() + long(size_before(whole)), state.end());
            }
        }
    }
    return res;
}

void fuzz::repair(bytes & input) {
    if (input.empty()) {
        return;
    }
    // What is of another size, or of other parameters, which are most of the numbers, is refused soon: be of those of the seed that
    // is most alike.
    static const auto good = seeds();
    const auto differs = [&](const bytes & seed) {
        return std::make_pair(seed[0] != input[0], std::max(seed.size(), input.size()) - std::min(seed.size(), input.size()));
    };
    const auto & like = *std::min_element(good.begin(), good.end(), [&](const bytes & a, const bytes & b) { return differs(a) < differs(b); });
    input.resize(like.size());
    std::copy_n(like.begin(), fingerprint_size(like, 1), input.begin());
    repair_state(input, 1, input.size());
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    if (size == 0) {
        return 0;
    }
    const auto & to    = fuzz::get_context(data[0]%fuzz::N_KIND);
    const bool   whole = is_whole(data[0]);
    auto       * ctx   = to.ctx.get();

    const bytes any = whole ? save_all(ctx) : to.state;
    bytes state(any.begin(), any.begin() + long(size_before(whole)));
    state.insert(state.end(), data + 1, data + size);
    if ((whole ? llama_state_set_data(ctx, state.data(), state.size()) : llama_state_seq_set_data(ctx, state.data(), state.size(), 0)) == 0) {
        FUZZ_CHECK(fuzz::save(ctx) == to.state);
        return 0;
    }
    const bytes now = fuzz::save(ctx);
    fuzz::use(ctx);
    FUZZ_CHECK(llama_state_seq_set_data(ctx, now.data(), now.size(), 0) == now.size() && fuzz::save(ctx) == now);
    FUZZ_CHECK(llama_state_seq_set_data(ctx, to.state.data(), to.state.size(), 0) == to.state.size());
    FUZZ_CHECK(llama_infllm_check_slots(ctx) == 0);
    return 0;
}
