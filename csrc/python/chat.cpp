#include "chat.h"

#include "jinja/lexer.h"
#include "jinja/parser.h"
#include "jinja/runtime.h"

#include <algorithm>
#include <cctype>
#include <stdexcept>
#include <utility>

static constexpr size_t N_SOURCE_MAX = 64*1024; // bytes; what is parsed is freed recursively
static constexpr int    N_NESTED_MAX = 100;

static std::string to_utf8(const py::handle & str) {
    const auto bytes = py::reinterpret_steal<py::object>(PyUnicode_AsEncodedString(str.ptr(), "utf-8", "replace"));
    if (!bytes) {
        throw py::error_already_set();
    }
    return bytes.cast<std::string>();
}

static bool is_word(const std::string & text) {
    return std::all_of(text.begin(), text.end(), [](unsigned char c) { return isalnum(c) || c == '_' || c == '-'; });
}

static jinja::value to_value(const py::handle & obj, bool is_input, int n_nested = 0) {
    if (n_nested > N_NESTED_MAX) {
        throw std::invalid_argument("messages are nested more than " + std::to_string(N_NESTED_MAX) + " deep: make them flatter");
    }

    if (obj.is_none()) {
        return jinja::mk_val<jinja::value_none>();
    }
    if (py::isinstance<py::str>(obj)) {
        return jinja::mk_val<jinja::value_string>(jinja::string(to_utf8(obj), is_input));
    }
    if (py::isinstance<py::bool_>(obj)) {
        return jinja::mk_val<jinja::value_bool>(obj.cast<bool>());
    }
    if (py::isinstance<py::int_>(obj)) {
        int is_large = 0;
        const int64_t value = PyLong_AsLongLongAndOverflow(obj.ptr(), &is_large);
        if (is_large) {
            throw std::invalid_argument("messages have the integer " + to_utf8(py::str(obj)) + ": templates know 64 bits");
        }
        return jinja::mk_val<jinja::value_int>(value);
    }
    if (py::isinstance<py::float_>(obj)) {
        return jinja::mk_val<jinja::value_float>(obj.cast<double>());
    }
    if (py::isinstance<py::dict>(obj)) {
        auto res = jinja::mk_val<jinja::value_object>();
        for (const auto & [key, val] : py::reinterpret_borrow<py::dict>(obj)) {
            const std::string name = to_utf8(py::str(key));
            const bool is_role = name == "role" && py::isinstance<py::str>(val) && is_word(to_utf8(val));
            res->insert(name, to_value(val, is_input && !is_role, n_nested + 1));
        }
        return res;
    }
    if (py::isinstance<py::list>(obj) || py::isinstance<py::tuple>(obj)) {
        auto res = jinja::mk_val<jinja::value_array>();
        for (const auto & item : py::reinterpret_borrow<py::sequence>(obj)) {
            res->push_back(to_value(item, is_input, n_nested + 1));
        }
        return res;
    }
    throw std::invalid_argument("messages have a value of type " + std::string(Py_TYPE(obj.ptr())->tp_name)
        + ": templates know str, int, float, bool, None, dict and list");
}

static std::vector<chat_part> render(const std::string & source, jinja::context & ctx) {
    const auto tokens = jinja::lexer().tokenize(source);

    // the one recursion of the parser that csrc/patches does not limit
    int n_unary = 0;
    for (const auto & token : tokens.tokens) {
        n_unary = token.t == jinja::token::unary_operator ? n_unary + 1 : 0;
        if (n_unary > N_NESTED_MAX) {
            throw std::runtime_error("nested too deeply");
        }
    }

    const auto program  = jinja::parse_from_tokens(tokens);
    const auto rendered = jinja::runtime::gather_string_parts(jinja::runtime(ctx).execute(program));

    std::vector<chat_part> res;
    for (auto & part : rendered->val_str.parts) {
        if (part.val.empty()) {
            continue;
        }
        if (!res.empty() && res.back().is_input == part.is_input) {
            res.back().text += part.val;
        } else {
            res.push_back({ std::move(part.val), part.is_input });
        }
    }
    return res;
}

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

chat_prompt::chat_prompt(const std::string & source, const py::dict & inputs, const py::dict & own) : m_source(source) {
    if (source.size() > N_SOURCE_MAX) {
        throw std::invalid_argument("the chat template has " + std::to_string(source.size()) + " bytes: at most "
            + std::to_string(N_SOURCE_MAX) + " are supported");
    }

    jinja::context ctx(source);
    for (const auto & [variables, is_input] : { std::pair(inputs, true), std::pair(own, false) }) {
        for (const auto & [name, value] : variables) {
            ctx.set_val(to_utf8(name), to_value(value, is_input));
        }
    }

    py::gil_scoped_release no_gil;
    try {
        m_parts = render(source, ctx);
    } catch (const std::bad_alloc &) {
        throw;
    } catch (const std::exception & err) {
        throw std::invalid_argument("the model's chat template failed: " + reason(err.what()));
    }
}

std::string chat_prompt::joined() const {
    std::string res;
    for (const auto & part : m_parts) {
        res += part.text;
    }
    return res;
}

py::str chat_prompt::text() const {
    const std::string res = joined();
    // a template may cut a character in two
    return py::reinterpret_steal<py::str>(PyUnicode_DecodeUTF8(res.data(), res.size(), "replace"));
}
