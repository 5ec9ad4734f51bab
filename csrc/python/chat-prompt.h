#pragma once

#include "model.h"

#include <chat.h>

// Text of a rendered chat: what the template says itself, or what came from the messages.
struct chat_part {
    std::string text;
    bool        is_input;
};

// What llama.cpp's `common` makes of a chat: the prompt, and how an answer is constrained and read.
struct chat_prompt {
    common_chat_params     format;
    std::string            source; // of the template
    std::vector<chat_part> parts;  // of the prompt; neighbours differ in is_input

    py::str text() const;

    // The tokens that llama.cpp makes of the text when it reads special tokens in it, except that, unless
    // parse_special, only the template's own text makes special tokens: a message that contains "<|im_end|>" says
    // these ten characters. BOS is added if the vocabulary wants one and the template has none.
    // Throws std::invalid_argument when a message can only be written with a special token.
    std::vector<llama_token> tokenize(const model & model, bool parse_special) const;

    // special tokens that are part of an answer's text, such as those around a tool call
    std::vector<llama_token> preserved_tokens(const model & model) const;
};

// The chat templates of a model.
class chat_templates {
public:
    // source: Jinja template instead of the model's; needed when there is no model
    // bos_token, eos_token: text of these tokens when there is no model
    // Throws std::invalid_argument for a source that is no template.
    chat_templates(const model * mdl, const std::string & source, const std::string & bos_token, const std::string & eos_token);

    // false: ChatML stands in for a template that the model lacks
    bool is_explicit() const { return common_chat_templates_was_explicit(ptr.get()); }

    // whether the template describes tools, and calls of them
    bool has_tools() const;

    // request: a JSON object with OpenAI's messages; add_generation_prompt; reasoning_format, as llama.cpp names it;
    // chat_template_kwargs; if any, OpenAI's tools and parallel_tool_calls, tool_choice, a string, and json_schema of the answer
    // Throws std::invalid_argument when the template fails.
    chat_prompt apply(const std::string & request) const;

private:
    common_chat_templates_ptr ptr;
};

// Reads an answer while it comes.
class chat_answer {
public:
    explicit chat_answer(const chat_prompt & prompt);

    // What text that was added brings, as deltas of OpenAI's: content, reasoning_content, tool_calls.
    // is_final: the answer is complete. One that is not in the format of the template is content.
    py::list push(const std::string & text, bool is_final);

private:
    common_chat_msg parse(bool is_final) const;

    common_chat_parser_params params;
    std::string               all;
    common_chat_msg           msg; // so far
};
