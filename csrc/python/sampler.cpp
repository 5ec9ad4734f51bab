#include "sampler.h"

#include <stdexcept>

sampler::sampler(const model & mdl, float temperature, int32_t top_k, float top_p, float min_p,
        float repeat_penalty, float frequency_penalty, float presence_penalty, int32_t penalty_last_n, uint32_t seed)
    : chain(llama_sampler_chain_init(llama_sampler_chain_default_params()), llama_sampler_free) {
    const auto add = [&](llama_sampler * smpl) { llama_sampler_chain_add(chain.get(), smpl); };

    if (repeat_penalty != 1.0f || frequency_penalty != 0.0f || presence_penalty != 0.0f) {
        add(llama_sampler_init_penalties(
            llama_vocab_n_tokens(mdl.vocab()), penalty_last_n, repeat_penalty, frequency_penalty, presence_penalty));
    }

    if (temperature == 0.0f) {
        add(llama_sampler_init_greedy());
        return;
    }

    add(llama_sampler_init_top_k(top_k));
    add(llama_sampler_init_top_p(top_p, 1));
    add(llama_sampler_init_min_p(min_p, 1));
    add(llama_sampler_init_temp (temperature));
    add(llama_sampler_init_dist (seed));
}

void sampler::accept(const std::vector<llama_token> & tokens) {
    for (const llama_token token : tokens) {
        llama_sampler_accept(chain.get(), token);
    }
}

llama_token sampler::sample(context & ctx) {
    py::gil_scoped_release no_gil;

    // llama.cpp ends the process when there are none
    if (!llama_get_logits_ith(ctx.get(), -1)) {
        throw std::runtime_error("there are no logits: evaluate tokens first");
    }
    return llama_sampler_sample(chain.get(), ctx.get(), -1);
}
