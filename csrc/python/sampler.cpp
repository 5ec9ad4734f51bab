#include "sampler.h"

#include "json-schema-to-grammar.h"
#include "json.h"
#include "sampling.h"

#include <stdexcept>

static common_sampler * make_sampler(const model & mdl, const sampler_options & options) {
    common_params_sampling params;
    params.no_perf         = true;
    params.seed            = options.seed;
    params.temp            = options.temperature;
    params.top_k           = options.top_k;
    params.top_p           = options.top_p;
    params.min_p           = options.min_p;
    params.typ_p           = options.typical_p;
    params.penalty_repeat  = options.repeat_penalty;
    params.penalty_freq    = options.frequency_penalty;
    params.penalty_present = options.presence_penalty;
    params.penalty_last_n  = options.penalty_last_n;
    params.mirostat        = options.mirostat_mode;
    params.mirostat_tau    = options.mirostat_tau;
    params.mirostat_eta    = options.mirostat_eta;
    for (const auto & [token, bias] : options.logit_bias) {
        params.logit_bias.push_back({ token, bias });
    }
    if (!options.grammar.empty()) {
        params.grammar = { COMMON_GRAMMAR_TYPE_USER, options.grammar };
    }
    return common_sampler_init(mdl.get(), params);
}

sampler::sampler(const model & mdl, const sampler_options & options) : ptr(make_sampler(mdl, options), common_sampler_free) {
}

void sampler::accept(const std::vector<llama_token> & tokens) {
    for (const llama_token token : tokens) {
        common_sampler_accept(ptr.get(), token, false);
    }
}

llama_token sampler::sample(context & ctx) {
    py::gil_scoped_release no_gil;

    // llama.cpp ends the process when there are none
    if (!llama_get_logits_ith(ctx.get(), -1)) {
        throw std::runtime_error("there are no logits: evaluate tokens first");
    }
    const llama_token token = common_sampler_sample(ptr.get(), ctx.get(), -1);
    common_sampler_accept(ptr.get(), token, true);
    return token;
}

std::string grammar_of_schema(const std::string & schema) {
    return json_schema_to_grammar(common_json::parse(schema), true);
}
