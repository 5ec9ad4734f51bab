#include "chat-prompt.h"

#include <algorithm>
#include <cctype>
#include <map>
#include <stdexcept>

// a special token in the rendered text: bytes begin to end, with the blanks that it takes with it
struct special_match {
    size_t      begin;
    size_t      end;
    llama_token token;
};

static std::string text_of(const llama_vocab * vocab, llama_token token) {
    const char * text = llama_vocab_get_text(vocab, token);
    return text ? text : "";
}

static bool is_any(const llama_vocab * vocab, llama_token token, int attrs) {
    return llama_vocab_get_attr(vocab, token) & attrs;
}

// Tokens that structure a chat have a text: runs of blanks, which some vocabularies have as user-defined tokens, and
// write U+2581 for, are text like any other.
static bool is_blank(const std::string & text) {
    return text.find_first_not_of(" \t\n\v\f\r\xe2\x96\x81") == std::string::npos;
}

// Special tokens where the template's own text, the bytes of `text` with is_own, has them; in order.
static std::vector<special_match> find_special(
        const llama_vocab * vocab, const std::string & text, std::vector<bool> is_own, const std::string & own_text) {
    std::vector<std::pair<std::string, llama_token>> tokens;
    for (llama_token token = 0; token < llama_vocab_n_tokens(vocab); ++token) {
        if (is_any(vocab, token, LLAMA_TOKEN_ATTR_CONTROL | LLAMA_TOKEN_ATTR_UNKNOWN | LLAMA_TOKEN_ATTR_USER_DEFINED)) {
            std::string name = text_of(vocab, token);
            if (!is_blank(name) && own_text.find(name) != std::string::npos) {
                tokens.emplace_back(std::move(name), token);
            }
        }
    }
    // as llama.cpp looks for them: the longest first, in what is left by those before
    std::stable_sort(tokens.begin(), tokens.end(), [](const auto & a, const auto & b) { return a.first.size() > b.first.size(); });

    std::vector<special_match> res;
    for (const auto & [name, token] : tokens) {
        size_t begin = 0;
        while ((begin = text.find(name, begin)) != std::string::npos) {
            const auto first = is_own.begin() + begin;
            const auto last  = first + name.size();
            if (std::all_of(first, last, [](bool own) { return own; })) {
                std::fill(first, last, false);
                res.push_back({ begin, begin + name.size(), token });
                begin += name.size();
            } else {
                begin++;
            }
        }
    }
    std::sort(res.begin(), res.end(), [](const auto & a, const auto & b) { return a.begin < b.begin; });

    for (size_t i = 0; i < res.size(); ++i) {
        auto & cur = res[i];
        const size_t begin_min = i == 0              ? 0           : res[i - 1].end;
        const size_t end_max   = i == res.size() - 1 ? text.size() : res[i + 1].begin;
        if (is_any(vocab, cur.token, LLAMA_TOKEN_ATTR_LSTRIP)) {
            while (cur.begin > begin_min && isspace((unsigned char) text[cur.begin - 1])) {
                cur.begin--;
            }
        }
        if (is_any(vocab, cur.token, LLAMA_TOKEN_ATTR_RSTRIP)) {
            while (cur.end < end_max && isspace((unsigned char) text[cur.end])) {
                cur.end++;
            }
        }
    }
    return res;
}

// The text by ordinary tokens, the longest that fit, each from where the one before ends.
static std::vector<llama_token> spell(const llama_vocab * vocab, const std::string & text) {
    std::map<std::string, llama_token> pieces; // all that are in the text
    char buf[256];
    for (llama_token token = 0; token < llama_vocab_n_tokens(vocab); ++token) {
        const bool is_normal = is_any(vocab, token, LLAMA_TOKEN_ATTR_NORMAL);
        if (!is_normal && !is_any(vocab, token, LLAMA_TOKEN_ATTR_BYTE)) {
            continue;
        }
        const int32_t n = llama_token_to_piece(vocab, token, buf, sizeof(buf), 0, false);
        const std::string piece(buf, n > 0 ? n : 0);
        if (piece.empty() || text.find(piece) == std::string::npos) {
            continue;
        }
        if (is_normal) {
            pieces[piece] = token;
        } else {
            pieces.emplace(piece, token);
        }
    }

    std::vector<llama_token> res;
    for (size_t begin = 0; begin < text.size();) {
        size_t n = text.size() - begin;
        while (n > 0 && !pieces.count(text.substr(begin, n))) {
            n--;
        }
        if (n == 0) {
            throw std::invalid_argument("a message contains '" + text + "', which the vocabulary can only write as a special token: "
                "remove it, or allow special tokens in messages with parse_special = True");
        }
        res.push_back(pieces.at(text.substr(begin, n)));
        begin += n;
    }
    return res;
}

// The tokens of a text that messages and a template wrote, special ones in the template's part alone.
static std::vector<llama_token> tokenize_parts(const model & model, const std::string & source, const std::vector<chat_part> & parts) {
    const llama_vocab * vocab = model.vocab();

    std::string       text;
    std::string       own_text;
    std::vector<bool> is_own;
    for (const auto & part : parts) {
        text += part.text;
        is_own.resize(text.size(), !part.is_input);
        // no token spans two parts of the template with a message between them
        own_text += part.is_input ? std::string(1, '\0') : part.text;
    }

    // The user-defined tokens that a template uses structure a chat too: llama.cpp has some of gpt-oss as such.
    std::map<llama_token, bool> is_special_cache;
    const auto is_special = [&](llama_token token) {
        const auto [it, is_new] = is_special_cache.try_emplace(token, false);
        if (is_new) {
            const std::string name = text_of(vocab, token);
            it->second = is_any(vocab, token, LLAMA_TOKEN_ATTR_CONTROL)
                || (is_any(vocab, token, LLAMA_TOKEN_ATTR_USER_DEFINED) && !is_blank(name)
                    && (own_text.find(name) != std::string::npos || source.find(name) != std::string::npos));
        }
        return it->second;
    };

    std::vector<llama_token> res;
    const auto add_text = [&](size_t begin, size_t end) {
        if (begin == end) {
            return;
        }
        for (const llama_token token : model.tokenize(text.substr(begin, end - begin), false, false)) {
            if (is_special(token)) {
                const auto spelt = spell(vocab, text_of(vocab, token));
                res.insert(res.end(), spelt.begin(), spelt.end());
            } else {
                res.push_back(token);
            }
        }
    };

    // what is between two special tokens is tokenised as a whole, whoever wrote it
    size_t begin = 0;
    for (const auto & match : find_special(vocab, text, std::move(is_own), own_text)) {
        add_text(begin, match.begin);
        res.push_back(match.token);
        begin = match.end;
    }
    add_text(begin, text.size());
    return res;
}

std::vector<llama_token> chat_prompt::tokenize(const model & model, bool parse_special) const {
    std::vector<llama_token> res = parse_special ? model.tokenize(format.prompt, false, true) : tokenize_parts(model, source, parts);

    const llama_token bos = llama_vocab_bos(model.vocab());
    if (llama_vocab_get_add_bos(model.vocab()) && bos != LLAMA_TOKEN_NULL && (res.empty() || res.front() != bos)) {
        res.insert(res.begin(), bos);
    }
    return res;
}

std::vector<llama_token> chat_prompt::preserved_tokens(const model & model) const {
    std::vector<llama_token> res;
    for (const std::string & name : format.preserved_tokens) {
        if (const auto tokens = model.tokenize(name, false, true); tokens.size() == 1) {
            res.push_back(tokens[0]);
        }
    }
    return res;
}
