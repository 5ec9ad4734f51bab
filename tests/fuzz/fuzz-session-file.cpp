// Session files: one is refused by a sentence, or all that it says is in the file; then it can be saved again, and nothing that it
// has is lost.

#include "session-input.h"

#include <stdexcept>

using infllm::session_file;
using fuzz::bytes;

static constexpr uint64_t BLOCK = 300; // bytes

static const fuzz::temp_file & file() {
    static const fuzz::temp_file res;
    return res;
}

std::vector<bytes> fuzz::seeds() {
    std::vector<bytes> res;
    for (const uint32_t n : { 0, 1, 5 }) {
        const auto  out   = session_file::create(file().name(), BLOCK);
        const bytes block(BLOCK, uint8_t(n));
        const bytes state(40, 's');
        out->begin();
        session_file::rest rest { { 1, 2, 3 }, {}, { state.data(), state.size() }, { state.data(), 10 } };
        for (uint32_t i = 0; i < n; ++i) {
            rest.blocks.push_back(out->add(block.data()));
        }
        out->commit(rest);
        res.push_back(file().read());
        out->begin();
        rest.blocks.push_back(out->add(block.data()));
        out->commit(rest);
        res.push_back(file().read());
    }
    return res;
}

void fuzz::repair(bytes & input) {
    repair_session(input);
}

static bytes copy(const session_file & from, const session_file::entry & e) {
    return { from.block(e), from.block(e) + from.get_block_bytes() };
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    file().write(data, size);

    std::vector<int32_t> tokens;
    std::vector<bytes>   blocks;
    try {
        const auto opened = session_file::open(file().name());
        const auto rest   = opened->get_rest();
        FUZZ_CHECK(rest.tokens.size()*sizeof(int32_t) + rest.blocks.size()*sizeof(session_file::entry) + rest.state.size + rest.data.size <= size);
        const bytes state(rest.state.data, rest.state.data + rest.state.size);
        const bytes user (rest.data .data, rest.data .data + rest.data .size);
        for (const auto & e : rest.blocks) {
            blocks.push_back(copy(*opened, e));
            if (blocks.size()*blocks.back().size() > (1 << 20)) { // blocks may be in the same place
                return 0;
            }
        }
        try {
            opened->verify();
        } catch (const std::runtime_error &) {
            // its blocks alone are damaged
        }
        if (rest.blocks.empty()) {
            return 0; // nobody saves to it again, see llama_kv_cache_infllm::get_own_file()
        }
        if (!opened->begin()) {
            FUZZ_CHECK(opened->get_generation() == UINT64_MAX);
            return 0;
        }
        session_file::rest next { rest.tokens, rest.blocks, { state.data(), state.size() }, { user.data(), user.size() } };
        next.blocks.push_back(opened->add(blocks[0].data()));
        blocks.push_back(blocks[0]);
        opened->commit(next);
        tokens = rest.tokens;
    } catch (const std::runtime_error & err) {
        FUZZ_CHECK(std::strstr(err.what(), file().name().c_str()));
        return 0;
    }

    const auto again = session_file::open(file().name());
    const auto rest  = again->get_rest();
    FUZZ_CHECK(rest.tokens == tokens && rest.blocks.size() == blocks.size());
    for (size_t i = 0; i < blocks.size(); ++i) {
        FUZZ_CHECK(copy(*again, rest.blocks[i]) == blocks[i]);
    }
    return 0;
}
