#include "adapter.h"

#include "log.h"

#include "ggml-cpp.h"
#include "gguf.h"

#include <memory>
#include <stdexcept>

[[noreturn]] static void refuse(const std::string & path, const std::string & why) {
    throw std::invalid_argument("lora_path = " + path + " cannot be used: " + why);
}

// What libllama takes for granted of an adapter's file: it ends the program where that is not so.
static void check(const std::string & path) {
    ggml_context * ctx_meta = nullptr;

    gguf_context_ptr file { gguf_init_from_file(path.c_str(), { /*.no_alloc =*/ true, /*.ctx =*/ &ctx_meta }) };
    ggml_context_ptr ctx { ctx_meta };
    if (!file) {
        refuse(path, "it is no GGUF file, or is damaged");
    }

    const struct {
        const char * key;
        gguf_type    type;
    } types[] = {
        { "general.type",         GGUF_TYPE_STRING  },
        { "general.architecture", GGUF_TYPE_STRING  },
        { "adapter.type",         GGUF_TYPE_STRING  },
        { "adapter.lora.alpha",   GGUF_TYPE_FLOAT32 },
    };
    for (const auto & t : types) {
        const int64_t id = gguf_find_key(file.get(), t.key);
        if (id >= 0 && gguf_get_kv_type(file.get(), id) != t.type) {
            refuse(path, std::string(t.key) + " is not of the type " + gguf_type_name(t.type));
        }
    }

    for (auto * t = ggml_get_first_tensor(ctx.get()); t; t = ggml_get_next_tensor(ctx.get(), t)) {
        const std::string name = t->name;

        const bool is_number  = t->type == GGML_TYPE_F32 || t->type == GGML_TYPE_F16 || t->type == GGML_TYPE_BF16 || ggml_is_quantized(t->type);
        const bool is_stacked = name.find("_exps.") != std::string::npos; // a matrix for each expert
        if (!is_number || t->ne[3] != 1 || (t->ne[2] != 1 && !is_stacked)) {
            refuse(path, "its tensor " + name + " is not a matrix of numbers");
        }
    }
}

llama_adapter_lora * adapter_load(llama_model * model, const std::string & path) {
    check(path);

    log_clear();
    auto * res = llama_adapter_lora_init(model, path.c_str());
    if (!res) {
        std::string       why    = log_text();
        const std::string prefix = "adapter: ";
        why.erase(why.find_last_not_of('\n') + 1);
        why.erase(0, why.rfind('\n') + 1);
        why.erase(0, why.find(prefix) == std::string::npos ? 0 : why.find(prefix) + prefix.size());
        refuse(path, "it does not fit the model (" + why + ")");
    }
    if (llama_adapter_get_alora_n_invocation_tokens(res) > 0) {
        llama_adapter_lora_free(res);
        refuse(path, "it is an activated LoRA (aLoRA), which is switched on within a text; only such that are on from its begin work here");
    }
    return res;
}
