// Parameters: all that is known of them without a model is in one table.

#include "llama-infllm-params.h"

#include "llama-infllm-impl.h"

#include "llama-impl.h"

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <vector>

enum param_limit {
    TOKENS,     // a number of tokens
    BLOCKS,     // blocks of so many tokens
    OF_A_BLOCK, // not more than block_size
    BLOCK_SIZE,
    BYTES,
    CHOICE,
    TEXT, // as long as there is room for
};

// A number of 32 or 64 bits, or an enum, read as the number that a caller may have put there. All that is 0 by default is automatic,
// or has no limit.
struct param {
    const char *             name;
    size_t                   offset;
    size_t                   size;
    uint64_t                 value; // the default
    param_limit              limit;
    std::vector<std::string> names = {}; // of the values of an enum, in its order

    uint64_t get(const llama_infllm_params & params) const {
        uint64_t res = 0;
        uint32_t res_32;
        if (size == sizeof(res)) {
            std::memcpy(&res, reinterpret_cast<const char *>(&params) + offset, sizeof(res));
        } else {
            std::memcpy(&res_32, reinterpret_cast<const char *>(&params) + offset, sizeof(res_32));
            res = res_32;
        }
        return res;
    }

    void set(llama_infllm_params & params, uint64_t res) const {
        const auto res_32 = uint32_t(res);
        if (size == sizeof(res)) {
            std::memcpy(reinterpret_cast<char *>(&params) + offset, &res, sizeof(res));
        } else {
            std::memcpy(reinterpret_cast<char *>(&params) + offset, &res_32, sizeof(res_32));
        }
    }
};

#define PARAM(name) #name, offsetof(llama_infllm_params, name), sizeof(llama_infllm_params::name)

static const std::vector<param> & get_table() {
    static const std::vector<param> table = {
        { PARAM(n_init),            64, TOKENS     },
        { PARAM(n_local),           0,  TOKENS     },
        { PARAM(block_size),        64, BLOCK_SIZE },
        { PARAM(topk),              0,  BLOCKS     },
        { PARAM(max_cached_blocks), 0,  BLOCKS     },
        { PARAM(repr_topk),         0,  OF_A_BLOCK },
        { PARAM(n_repr),            0,  OF_A_BLOCK },
        { PARAM(n_score),           0,  TOKENS     },
        { PARAM(position),          LLAMA_INFLLM_POSITION_AUTO,   CHOICE, { "auto", "true", "infllm" } },
        { PARAM(store_max_bytes),   0,  BYTES      },
        { PARAM(paging),            LLAMA_INFLLM_PAGING_AUTO,     CHOICE, { "auto", "host", "device" } },
        { PARAM(pinned_max_bytes),  0,  BYTES      },
        { PARAM(attend),            LLAMA_INFLLM_ATTEND_RESIDENT, CHOICE, { "resident", "topk" } },
        { PARAM(scores),            LLAMA_INFLLM_SCORES_LINEAR,   CHOICE, { "linear", "published" } },
        { PARAM(search),            LLAMA_INFLLM_SEARCH_AUTO,     CHOICE, { "auto", "keys", "queries", "quest", "preselect" } },
        { PARAM(store_path),        0,  TEXT       },
        { PARAM(type_store),        LLAMA_INFLLM_TYPE_STORE_AUTO, CHOICE, { "auto", "f16", "q8_0", "q4_0" } },
        { PARAM(budget),            0,  BYTES      },
        { PARAM(reserve),           0,  BYTES      },
        { PARAM(profile),           LLAMA_INFLLM_PROFILE_AUTO,    CHOICE, { "auto", "exact", "balanced", "fast" } },
    };
    return table;
}

static std::string join(const std::vector<std::string> & names) {
    std::string res;
    for (const auto & name : names) {
        res += (res.empty() ? "" : ", ") + name;
    }
    return res;
}

llama_infllm_params llama_infllm_default_params(void) {
    llama_infllm_params res {};
    for (const auto & p : get_table()) {
        if (p.limit != TEXT) {
            p.set(res, p.value);
        }
    }
    return res;
}

std::string llama_infllm_choice_name(const std::string & name, uint64_t value) {
    for (const auto & p : get_table()) {
        if (p.name == name && value < p.names.size()) {
            return p.names[value];
        }
    }
    return std::to_string(value);
}

std::string llama_infllm_check_ranges(const llama_infllm_params & params) {
    const uint64_t n_max   = 1u << 24; // tokens
    const uint64_t n_block = params.block_size;

    const auto check = [&](const param & p) -> std::string {
        if (p.limit == TEXT) {
            const auto * text = reinterpret_cast<const char *>(&params) + p.offset;
            return std::memchr(text, 0, p.size) ? "" : ::format("%s has no end", p.name);
        }
        const uint64_t value = p.get(params);
        const uint64_t min   = p.limit == BLOCK_SIZE ? 1 : 0;
        const uint64_t max   =
            p.limit == TOKENS     ? n_max                  :
            p.limit == BLOCKS     ? n_max/n_block          :
            p.limit == OF_A_BLOCK ? n_block                :
            p.limit == BLOCK_SIZE ? 4096                   :
            p.limit == CHOICE     ? uint64_t(p.names.size()) - 1 : UINT64_MAX;
        return value >= min && value <= max ? "" :
            ::format("%s = %llu is out of range: it must be %llu to %llu%s", p.name, (unsigned long long) value,
                    (unsigned long long) min, (unsigned long long) max, p.limit == OF_A_BLOCK ? " (block_size)" : "");
    };

    // what others depend on comes first
    for (const bool first : { true, false }) {
        for (const auto & p : get_table()) {
            if ((p.limit == BLOCK_SIZE) == first) {
                const std::string why = check(p);
                if (!why.empty()) {
                    return why;
                }
            }
        }
    }
    return "";
}

static bool parse_uint(const std::string & text, uint64_t max, uint64_t & res) {
    if (text.empty() || text.find_first_not_of("0123456789") != std::string::npos || text.size() > 19) {
        return false;
    }
    res = std::strtoull(text.c_str(), nullptr, 10);
    return res <= max;
}

// why a text is not a value of a parameter; "": it is, and res is it
static std::string parse_value(const param & p, const std::string & text, uint64_t & res) {
    if (p.limit == CHOICE) {
        const auto it = std::find(p.names.begin(), p.names.end(), text);
        res = uint64_t(it - p.names.begin());
        return it != p.names.end() ? "" : "is none of " + join(p.names);
    }
    if (p.limit == BYTES) {
        return parse_uint(text, UINT64_MAX, res) ? "" : "is not a whole number";
    }
    return parse_uint(text, UINT32_MAX, res) ? "" : "is not a whole number from 0 to 4294967295";
}

bool llama_infllm_params_parse(const char * text, llama_infllm_params * params, bool * enabled) {
    const std::string str = text ? text : "";

    *enabled = !str.empty() && str != "0";
    if (!*enabled || str == "1") {
        return true;
    }

    std::istringstream list(str);
    std::string        item;
    while (std::getline(list, item, ',')) {
        const auto        eq    = item.find('=');
        const std::string name  = item.substr(0, eq);
        const std::string value = eq == std::string::npos ? "" : item.substr(eq + 1);

        const auto & table = get_table();
        const auto   p     = std::find_if(table.begin(), table.end(), [&](const param & x) { return x.name == name; });
        if (p == table.end()) {
            std::vector<std::string> names;
            for (const auto & x : table) {
                names.push_back(x.name);
            }
            llama_infllm_set_error("\"" + item + "\" is not a parameter of the InfLLM memory: expected 1, or a list of name=value with " +
                    join(names));
            return false;
        }
        if (p->limit == TEXT) {
            auto * to = reinterpret_cast<char *>(params) + p->offset;
            if (value.empty() || value.size() >= p->size) {
                llama_infllm_set_error(name + " = \"" + value + "\" is not a text of 1 to " + std::to_string(p->size - 1) + " bytes");
                return false;
            }
            std::memset(to, 0, p->size);
            std::memcpy(to, value.data(), value.size());
            continue;
        }
        uint64_t number = 0;
        const std::string why = parse_value(*p, value, number);
        if (!why.empty()) {
            llama_infllm_set_error(name + " = \"" + value + "\" " + why);
            return false;
        }
        p->set(*params, number);
    }

    return true;
}
