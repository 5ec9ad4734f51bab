#pragma once

#include "chat-prompt.h"
#include "context.h"

#include <map>

struct common_sampler;

// as in llama.cpp's common_params_sampling
struct sampler_options {
    uint32_t seed;
    float    temperature; // 0: the most likely token
    int32_t  top_k;
    float    top_p;
    float    min_p;
    float    typical_p;
    float    repeat_penalty;
    float    frequency_penalty;
    float    presence_penalty;
    int32_t  penalty_last_n;
    int32_t  mirostat_mode;
    float    mirostat_tau;
    float    mirostat_eta;

    std::map<llama_token, float> logit_bias;
    std::string                  grammar; // GBNF; "": none
};

// llama.cpp's own sampler, of its library `common`
class sampler {
public:
    // chat: what an answer in a chat is constrained by, apart from options.grammar; may be null
    sampler(const model & mdl, const sampler_options & options, const chat_prompt * chat);

    sampler(const sampler &) = delete;

    // tokens of the prompt, for the penalties
    void accept(const std::vector<llama_token> & tokens);

    // from the logits of the last token of the last decode()
    llama_token sample(context & ctx);

private:
    std::unique_ptr<common_sampler, void (*)(common_sampler *)> ptr;
};

// GBNF of the texts that a JSON schema allows
std::string grammar_of_schema(const std::string & schema);
