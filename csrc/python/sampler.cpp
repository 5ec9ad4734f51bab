#include "sampler.h"

#include "json-schema-to-grammar.h"
#include "json.h"
#include "sampling.h"

#include <stdexcept>

// what the format of a chat asks for, as llama-server hands it on
static void set_chat(common_params_sampling & params, const model & mdl, const chat_prompt & chat) {
    const auto & format = chat.format;
    const auto tokenize = [&](const std::string & text) { return mdl.tokenize(text, false, true); };

    params.grammar           = { COMMON_GRAMMAR_TYPE_TOOL_CALLS, format.grammar };
    params.grammar_lazy      = format.grammar_lazy;
    params.generation_prompt = format.generation_prompt;
    for (const llama_token token : chat.preserved_tokens(mdl)) {
        params.preserved_tokens.insert(token);
    }
    for (common_grammar_trigger trigger : format.grammar_triggers) {
        if (trigger.type == COMMON_GRAMMAR_TRIGGER_TYPE_WORD) {
            const auto tokens = tokenize(trigger.value);
            if (tokens.size() == 1 && params.preserved_tokens.count(tokens[0])) {
                trigger.type  = COMMON_GRAMMAR_TRIGGER_TYPE_TOKEN;
                trigger.token = tokens[0];
            }
        }
        params.grammar_triggers.push_back(trigger);
    }
    // no call begins within a thought
    if (!format.thinking_start_tag.empty() && !format.thinking_end_tags.empty()) {
        params.reasoning_budget_start = tokenize(format.thinking_start_tag);
        for (const auto & tag : format.thinking_end_tags) {
            params.reasoning_budget_end.push_back(tokenize(tag));
        }
        params.reasoning_budget_forced = params.reasoning_budget_end.front();
    }
}

static common_sampler * make_sampler(const model & mdl, const sampler_options & options, const chat_prompt * chat) {
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
    if (chat && !chat->format.grammar.empty()) {
        set_chat(params, mdl, *chat);
    } else if (!options.grammar.empty()) {
        params.grammar = { COMMON_GRAMMAR_TYPE_USER, options.grammar };
    }
    return common_sampler_init(mdl.get(), params);
}

sampler::sampler(const model & mdl, const sampler_options & options, const chat_prompt * chat) :
    ptr(make_sampler(mdl, options, chat), common_sampler_free) {
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
