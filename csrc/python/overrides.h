#pragma once

#include "llama.h"

#include <map>
#include <string>
#include <variant>
#include <vector>

using override_value = std::variant<bool, int64_t, double, std::string>;

// Values in place of those of a GGUF's metadata, as llama_model_params has them. Throws std::invalid_argument where the file has a
// value of another type for a key: libllama would leave it as it is.
std::vector<llama_model_kv_override> overrides_make(const std::string & path, const std::map<std::string, override_value> & overrides);
