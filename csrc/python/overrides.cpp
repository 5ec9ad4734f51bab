#include "overrides.h"

#include "ggml-cpp.h"
#include "gguf.h"

#include <cstring>
#include <stdexcept>
#include <type_traits>

static void check_size(const std::string & what, size_t size, size_t min, size_t max) {
    if (size < min || size > max) {
        throw std::invalid_argument("kv_overrides: " + what + " has " + std::to_string(size) + " bytes: use " + std::to_string(min) + " to "
            + std::to_string(max));
    }
}

static llama_model_kv_override make(const std::string & key, const override_value & value) {
    llama_model_kv_override res = {};
    check_size("the key \"" + key + "\"", key.size(), 1, sizeof(res.key) - 1);
    std::memcpy(res.key, key.data(), key.size());

    std::visit([&](const auto & x) {
        using T = std::decay_t<decltype(x)>;
        if constexpr (std::is_same_v<T, bool>) {
            res.tag      = LLAMA_KV_OVERRIDE_TYPE_BOOL;
            res.val_bool = x;
        } else if constexpr (std::is_same_v<T, int64_t>) {
            res.tag      = LLAMA_KV_OVERRIDE_TYPE_INT;
            res.val_i64  = x;
        } else if constexpr (std::is_same_v<T, double>) {
            res.tag      = LLAMA_KV_OVERRIDE_TYPE_FLOAT;
            res.val_f64  = x;
        } else {
            check_size("the value of \"" + key + "\"", x.size(), 0, sizeof(res.val_str) - 1);
            res.tag      = LLAMA_KV_OVERRIDE_TYPE_STR;
            std::memcpy(res.val_str, x.data(), x.size());
        }
    }, value);
    return res;
}

// what Python calls the type of a value in a file; "": an array
static std::string type_of(gguf_type type) {
    switch (type) {
        case GGUF_TYPE_BOOL:    return "bool";
        case GGUF_TYPE_STRING:  return "str";
        case GGUF_TYPE_FLOAT32:
        case GGUF_TYPE_FLOAT64: return "float";
        case GGUF_TYPE_ARRAY:   return "";
        default:                return "int";
    }
}

std::vector<llama_model_kv_override> overrides_make(const std::string & path, const std::map<std::string, override_value> & overrides) {
    std::vector<llama_model_kv_override> res;
    if (overrides.empty()) {
        return res;
    }

    gguf_context_ptr file { gguf_init_from_file(path.c_str(), { /*.no_alloc =*/ true, /*.ctx =*/ nullptr }) };
    for (const auto & [key, value] : overrides) {
        res.push_back(make(key, value));

        const int64_t id = file ? gguf_find_key(file.get(), key.c_str()) : -1; // a damaged file is refused when it is loaded
        if (id < 0) {
            continue;
        }
        const std::string there = type_of(gguf_get_kv_type(file.get(), id));
        const char *      given[] = { "bool", "int", "float", "str" };
        if (there.empty()) {
            throw std::invalid_argument("kv_overrides: \"" + key + "\" is an array in the file, which cannot be replaced");
        }
        if (there != given[value.index()]) {
            throw std::invalid_argument("kv_overrides: \"" + key + "\" is of the type " + there + " in the file, but the value is of the type "
                + given[value.index()]);
        }
    }
    res.push_back({}); // an empty key ends the list
    return res;
}
