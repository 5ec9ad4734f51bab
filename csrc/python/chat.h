#pragma once

#include "model.h"

// Text of a rendered chat: what the template says itself, or what came from the messages.
struct chat_part {
    std::string text;
    bool        is_input;
};

// What a chat template makes of a chat.
class chat_prompt {
public:
    // source: Jinja template
    // inputs: variables whose text is that of users, in whatever way the template hands it on. Names of roles are the
    //         template's own: some build control tokens of them, such as "<|" + role + "|>".
    // own:    variables that are the template's own, such as the text of BOS
    // Throws std::invalid_argument when the template fails, or for a value of a type that templates do not know.
    chat_prompt(const std::string & source, const py::dict & inputs, const py::dict & own);

    const std::vector<chat_part> & parts() const { return m_parts; }

    py::str text() const;

    // The tokens that llama.cpp makes of the text when it reads special tokens in it, except that, unless
    // parse_special, only the template's own text makes special tokens: a message that contains "<|im_end|>" says
    // these ten characters. BOS is added if the vocabulary wants one and the template has none.
    // Throws std::invalid_argument when a message can only be written with a special token.
    std::vector<llama_token> tokenize(const model & model, bool parse_special) const;

private:
    std::string joined() const;

    std::string            m_source;
    std::vector<chat_part> m_parts; // neighbours differ in is_input
};
