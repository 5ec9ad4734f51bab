#include "chat-prompt.h"

#include "jinja/lexer.h"
#include "jinja/parser.h"
#include "json-schema-to-grammar.h"
#include "json.h"

#include <algorithm>
#include <cctype>
#include <stdexcept>
#include <utility>

static constexpr size_t N_SOURCE_MAX = 64*1024; // bytes; what is parsed is freed recursively
static constexpr int    N_NESTED_MAX = 100;

// What went wrong is said last, after excerpts of the source.
static std::string reason(const std::string & what) {
    std::string res = what;
    for (const std::string prefix : { "\nError: ", "Jinja Exception: " }) {
        if (const size_t pos = res.rfind(prefix); pos != std::string::npos) {
            res.erase(0, pos + prefix.size());
        }
    }
    return res;
}

// Calls f(); std::invalid_argument when it throws because of the template.
template <typename F>
static auto with_template(F f) {
    try {
        return f();
    } catch (const std::bad_alloc &) {
        throw;
    } catch (const std::exception & err) {
        throw std::invalid_argument("the model's chat template failed: " + reason(err.what()));
    }
}

static void check_source(const std::string & source) {
    if (source.size() > N_SOURCE_MAX) {
        throw std::invalid_argument("the chat template has " + std::to_string(source.size()) + " bytes: at most "
            + std::to_string(N_SOURCE_MAX) + " are supported");
    }
    with_template([&] {
        const auto tokens = jinja::lexer().tokenize(source);

        // the one recursion of the parser that csrc/patches does not limit
        int n_unary = 0;
        for (const auto & token : tokens.tokens) {
            n_unary = token.t == jinja::token::unary_operator ? n_unary + 1 : 0;
            if (n_unary > N_NESTED_MAX) {
                throw std::runtime_error("nested too deeply");
            }
        }
        jinja::parse_from_tokens(tokens); // common_chat_templates_init() does not say what is wrong
    });
}

chat_templates::chat_templates(const model * mdl, const std::string & source, const std::string & bos_token, const std::string & eos_token) {
    if (!mdl && source.empty()) {
        throw std::invalid_argument("there is neither a model nor a chat template");
    }
    if (source.empty()) {
        for (const char * name : { (const char *) nullptr, "tool_use" }) {
            const char * text = llama_model_chat_template(mdl->get(), name);
            check_source(text ? text : "");
        }
    } else {
        check_source(source);
    }

    py::gil_scoped_release no_gil;
    ptr = with_template([&] {
        return common_chat_templates_init(mdl ? mdl->get() : nullptr, source, bos_token, eos_token);
    });
}

bool chat_templates::has_tools() const {
    const auto caps = common_chat_templates_get_caps(ptr.get());
    return caps.at("supports_tools") && caps.at("supports_tool_calls");
}

static common_chat_templates_inputs read_request(const common_chat_templates * templates, const common_json & request) {
    common_chat_templates_inputs res;
    res.messages              = common_chat_msgs_parse_oaicompat(request.at("messages"));
    res.add_generation_prompt = request.at("add_generation_prompt").get<bool>();
    res.reasoning_format      = common_reasoning_format_from_name(request.at("reasoning_format").get<std::string>());
    if (request.contains("json_schema")) {
        res.json_schema = request.at("json_schema").dump();
    }
    if (request.contains("tools")) {
        res.tools               = common_chat_tools_parse_oaicompat(request.at("tools"));
        res.tool_choice         = common_chat_tool_choice_parse_oaicompat(request.at("tool_choice").get<std::string>());
        res.parallel_tool_calls = request.contains("parallel_tool_calls") ? request.at("parallel_tool_calls").get<bool>()
            : common_chat_templates_get_caps(templates).at("supports_parallel_tool_calls");
    }
    for (const auto & [name, value] : request.at("chat_template_kwargs").items()) {
        res.chat_template_kwargs[name] = value.dump();
        if (name == "enable_thinking" && value.is_boolean()) {
            res.enable_thinking = value.get<bool>();
        }
    }
    return res;
}

// Templates build control tokens of roles, such as "<|" + role + "|>": the name of a role is the template's own.
static bool is_role(const std::string & text, const std::vector<common_chat_msg> & messages) {
    const auto is_word_char = [](unsigned char c) { return isalnum(c) || c == '_' || c == '-'; };
    return std::all_of(text.begin(), text.end(), is_word_char)
        && std::any_of(messages.begin(), messages.end(), [&](const auto & message) {
               return std::equal(text.begin(), text.end(), message.role.begin(), message.role.end(),
                   [](unsigned char a, unsigned char b) { return tolower(a) == tolower(b); });
           });
}

// Which bytes of a rendered text are the template's own.
static std::vector<bool> own_bytes(const jinja::string & rendered, const std::vector<common_chat_msg> & messages) {
    std::vector<bool> res;
    for (const auto & part : rendered.parts) {
        res.resize(res.size() + part.val.size(), !part.is_input || is_role(part.val, messages));
    }
    return res;
}

// The prompt is one of the texts that were rendered, without BOS, or with a special token in place of another.
static std::vector<chat_part> find_parts(
        const std::string & prompt, const std::vector<jinja::string> & rendered, const std::vector<common_chat_msg> & messages) {
    size_t            n_same = 0;
    std::vector<bool> is_own(prompt.size(), false);
    for (auto it = rendered.rbegin(); it != rendered.rend() && n_same < prompt.size(); ++it) {
        const std::string text = it->str();
        const size_t n_prefix = std::mismatch(text.begin(), text.end(), prompt.begin(), prompt.end()).first - text.begin();
        const size_t n_max    = std::min(text.size(), prompt.size()) - n_prefix;
        const size_t n_suffix = std::mismatch(text.rbegin(), text.rbegin() + n_max, prompt.rbegin()).first - text.rbegin();
        if (n_prefix + n_suffix <= n_same) {
            continue;
        }
        n_same = n_prefix + n_suffix;

        const auto own   = own_bytes(*it, messages);
        const auto begin = own.begin() + n_prefix;
        const auto end   = own.end()   - n_suffix;
        const bool is_own_between = begin != end && std::all_of(begin, end, [](bool b) { return b; });
        is_own.assign(own.begin(), begin);
        is_own.resize(prompt.size() - n_suffix, is_own_between);
        is_own.insert(is_own.end(), end, own.end());
    }

    std::vector<chat_part> res;
    for (size_t i = 0; i < prompt.size(); ++i) {
        if (res.empty() || res.back().is_input == is_own[i]) {
            res.push_back({ "", !is_own[i] });
        }
        res.back().text += prompt[i];
    }
    return res;
}

// collects what templates render on this thread
struct render_log {
    std::vector<jinja::string> all;

    render_log() {
        common_chat_set_on_render([this](const jinja::string & text) { all.push_back(text); });
    }
    ~render_log() { common_chat_set_on_render(nullptr); }
};

// What a call begins with: the grammar of `common` wants a call, but lets any text come before. Empty if unknown.
static std::string call_start(const common_chat_templates * templates, common_chat_templates_inputs inputs) {
    inputs.tool_choice = COMMON_CHAT_TOOL_CHOICE_AUTO;
    for (const auto & trigger : common_chat_templates_apply(templates, inputs).grammar_triggers) {
        if (trigger.type == COMMON_GRAMMAR_TRIGGER_TYPE_WORD) {
            return trigger.value;
        }
    }
    return "";
}

chat_prompt chat_templates::apply(const std::string & request) const {
    py::gil_scoped_release no_gil;

    common_chat_templates_inputs inputs;
    try {
        inputs = read_request(ptr.get(), common_json::parse(request));
    } catch (const std::bad_alloc &) {
        throw;
    } catch (const std::exception & err) {
        throw std::invalid_argument(err.what());
    }

    render_log rendered;
    chat_prompt res;
    try {
        res.format = common_chat_templates_apply(ptr.get(), inputs);
    } catch (const std::bad_alloc &) {
        throw;
    } catch (const std::exception & err) {
        // not every template that makes prompts can be analysed
        const std::string why = err.what();
        inputs.force_pure_content = true;
        rendered.all.clear();
        res.format = with_template([&] { return common_chat_templates_apply(ptr.get(), inputs); });
        if (!inputs.tools.empty()) {
            throw std::invalid_argument("tools are given, and llama.cpp has no grammar for calls of them in this chat template: " + reason(why));
        }
        res.format.parser = "";
        res.format.generation_prompt = "";
        if (!inputs.json_schema.empty()) {
            res.format.grammar = json_schema_to_grammar(common_json::parse(inputs.json_schema), true);
        }
    }
    res.source = common_chat_templates_source(ptr.get(), inputs.tools.empty() ? "" : "tool_use");
    if (res.source.empty()) {
        res.source = common_chat_templates_source(ptr.get());
    }
    res.parts = find_parts(res.format.prompt, rendered.all, inputs.messages);

    if (inputs.tool_choice == COMMON_CHAT_TOOL_CHOICE_REQUIRED && inputs.add_generation_prompt && !res.format.supports_thinking) {
        const std::string start = call_start(ptr.get(), inputs);
        res.format.prompt            += start;
        res.format.generation_prompt += start;
        res.parts.push_back({ start, false });
    }
    return res;
}

py::str chat_prompt::text() const {
    return to_str(format.prompt); // a template may cut a character in two
}
