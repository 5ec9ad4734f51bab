#pragma once

#include "llama-infllm.h"

#include <string>

// why a parameter is out of its range, whatever the model; "": none is
std::string llama_infllm_check_ranges(const llama_infllm_params & params);

// what a value of a parameter with names is called
std::string llama_infllm_choice_name(const std::string & param, uint64_t value);
