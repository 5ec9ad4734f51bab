#pragma once

#include "context.h"

// llama.cpp's sampler chain: penalties, top_k, top_p, min_p, temperature, draw; greedy at temperature 0
class sampler {
public:
    sampler(const model & mdl, float temperature, int32_t top_k, float top_p, float min_p,
            float repeat_penalty, float frequency_penalty, float presence_penalty, int32_t penalty_last_n, uint32_t seed);

    sampler(const sampler &) = delete;

    // tokens of the prompt, for the penalties
    void accept(const std::vector<llama_token> & tokens);

    // from the logits of the last token of the last decode()
    llama_token sample(context & ctx);

private:
    std::unique_ptr<llama_sampler, void (*)(llama_sampler *)> chain;
};
