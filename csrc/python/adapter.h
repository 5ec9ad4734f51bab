#pragma once

#include "llama.h"

#include <string>

// A LoRA adapter of a model, which owns it. Throws std::invalid_argument, a sentence that says why it does not fit.
llama_adapter_lora * adapter_load(llama_model * model, const std::string & path);
