// Parameters as text (LLAMA_INFLLM), and as whatever bytes a caller's struct has: they are refused by a sentence, or their parts fit
// together, and a context that is made of them computes.

#include "tiny-context.h"

using fuzz::bytes;

static const char * const TEXTS[] = {
    "1", "0", "", "n_local=32,block_size=8,n_init=8,topk=2,max_cached_blocks=4", "n_init=16,n_repr=2,repr_topk=3,n_score=8",
    "position=infllm,search=queries,paging=device", "store_max_bytes=1048576,pinned_max_bytes=65536,type_store=q4_0",
    "attend=topk,scores=published,n_local=16,block_size=16", "store_path=/nowhere,type_store=q8_0,paging=host",
    "budget=65536,profile=fast", "reserve=1000000,profile=exact,position=true",
};

// an input is two bytes that say what it is, and which context is asked for, and the parameters
std::vector<bytes> fuzz::seeds() {
    std::vector<bytes> res;
    for (const char * text : TEXTS) {
        for (uint8_t kind = 0; kind < 3; ++kind) {
            auto & input = res.emplace_back(bytes { 0, kind });
            input.insert(input.end(), text, text + std::strlen(text));
        }
        auto params  = llama_infllm_default_params();
        bool enabled = false;
        FUZZ_CHECK(llama_infllm_params_parse(text, &params, &enabled));
        auto & input = res.emplace_back(bytes { 1, 0 });
        const auto * p = reinterpret_cast<const uint8_t *>(&params);
        input.insert(input.end(), p, p + sizeof(params));
    }
    return res;
}

void fuzz::repair(bytes &) {
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    fuzz::reader in(data, size);
    const bool is_text = in.get<uint8_t>()%2 == 0;
    const auto kind    = in.get<uint8_t>();

    auto cprm = llama_context_default_params();
    cprm.n_ctx           = kind%3 == 0 ? 0 : kind%3 == 1 ? 256 : 2048;
    cprm.n_ubatch        = kind%5 == 0 ? 512 : 16;
    cprm.n_threads       = 1;
    cprm.n_threads_batch = 1;

    auto params  = llama_infllm_default_params();
    bool enabled = true;
    if (is_text) {
        std::string text;
        while (!in.at_end()) {
            text += in.get<char>();
        }
        if (!llama_infllm_params_parse(text.c_str(), &params, &enabled)) {
            FUZZ_CHECK(*llama_infllm_last_error());
            return 0;
        }
    } else {
        params = in.get<llama_infllm_params>();
    }

    auto resolved = params;
    if (!llama_infllm_params_resolve(fuzz::get_model(), &cprm, &resolved)) {
        FUZZ_CHECK(*llama_infllm_last_error());
        return 0;
    }
    const uint32_t n_cells = llama_infllm_n_cells(&resolved, std::min(cprm.n_ubatch, cprm.n_batch));
    FUZZ_CHECK(resolved.topk > 0 && resolved.topk <= resolved.max_cached_blocks && resolved.block_size <= resolved.n_local);
    FUZZ_CHECK(resolved.block_size%resolved.n_repr == 0 && resolved.repr_topk*resolved.n_repr <= resolved.block_size);
    FUZZ_CHECK(n_cells >= resolved.n_init + resolved.max_cached_blocks*resolved.block_size + resolved.n_local);
    auto again = resolved;
    FUZZ_CHECK(llama_infllm_params_resolve(fuzz::get_model(), &cprm, &again) && std::memcmp(&again, &resolved, sizeof(again)) == 0);

    if (!enabled || n_cells > 4096 || resolved.store_path[0] != 0) {
        return 0; // a file may be anywhere
    }
    const llama_context_ptr ctx(llama_infllm_init_from_model(fuzz::get_model(), cprm, params));
    if (!ctx) {
        FUZZ_CHECK(*llama_infllm_last_error());
        return 0;
    }
    fuzz::feed(ctx.get(), 30);
    fuzz::feed(ctx.get(), 180);
    fuzz::feed(ctx.get(), 1);
    FUZZ_CHECK(llama_infllm_check_slots(ctx.get()) == 0);
    return 0;
}
