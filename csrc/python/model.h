#pragma once

#include "overrides.h"
#include "process.h"

#include "llama-infllm.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace py = pybind11;

// what is not UTF-8 becomes U+FFFD
py::str to_str(const std::string & text);

// "f16", "q8_0" or "q4_0"; throws std::invalid_argument
ggml_type type_from_name(const std::string & name);

// how a model is loaded
struct model_options {
    int32_t n_gpu_layers = 0;

    std::optional<std::vector<std::string>> devices; // names, in the order of the layers; nothing: all of this machine

    std::vector<float> tensor_split; // share of the layers for each of them; empty: by their free memory

    int     split_mode = LLAMA_SPLIT_MODE_LAYER;
    int32_t main_gpu   = 0;

    bool use_mmap  = true;
    bool use_mlock = false;
    bool repack    = true;
    bool no_alloc  = false; // metadata and vocabulary alone

    std::map<std::string, override_value> kv_overrides; // of the GGUF's metadata

    std::string lora_path; // "": no adapter
    float       lora_scale = 1.0f;
};

// how a context is made; see llama_context_params
struct context_options {
    uint32_t n_ctx           = 0;
    uint32_t n_batch         = 512;
    uint32_t n_ubatch        = 512;
    int32_t  n_threads       = 1;
    int32_t  n_threads_batch = 1;

    std::string type_k = "f16";
    std::string type_v = "f16";

    bool offload_kqv = true;

    std::optional<bool> flash_attn; // nothing: where the device has it

    int      rope_scaling_type = LLAMA_ROPE_SCALING_TYPE_UNSPECIFIED;
    float    rope_freq_base    =  0.0f;
    float    rope_freq_scale   =  0.0f;
    float    yarn_ext_factor   = -1.0f;
    float    yarn_attn_factor  = -1.0f;
    float    yarn_beta_fast    = -1.0f;
    float    yarn_beta_slow    = -1.0f;
    uint32_t yarn_orig_ctx     =  0;

    bool     embedding      = false;
    int      pooling_type   = LLAMA_POOLING_TYPE_UNSPECIFIED;
    int      attention_type = LLAMA_ATTENTION_TYPE_UNSPECIFIED;
    uint32_t n_seq_max      = 1; // texts that are embedded at once

    std::optional<llama_infllm_params> infllm; // nothing: plain llama.cpp

    llama_context_params to_params() const;
};

// a GGUF model: vocabulary, metadata and, unless no_alloc, weights; and an adapter for its contexts
class model {
public:
    model(const std::string & path, const model_options & options);

    // what an ancestor process made is left alone: its devices and servers would be told to free it
    ~model() {
        if (n_forks != process_n_forks()) {
            ptr.release();
        }
    }

    model(const model &) = delete;

    llama_model       * get()   const { return ptr.get(); }
    const llama_vocab * vocab() const { return llama_model_get_vocab(ptr.get()); }

    std::string desc() const;
    py::dict    meta() const; // str -> str, GGUF metadata without arrays

    // None if the GGUF has no template of that name
    py::object chat_template(const py::object & name) const;

    std::vector<llama_token> tokenize(const std::string & text, bool add_special, bool parse_special) const;

    py::bytes detokenize(const std::vector<llama_token> & tokens, bool remove_special, bool unparse_special) const;
    py::bytes token_to_piece(llama_token token, bool special) const;
    std::string token_text(llama_token token) const;

    bool uses_rpc() const { return is_remote; }

    void check_token(llama_token token) const; // throws std::invalid_argument when out of range

    // the automatic values of options.infllm
    llama_infllm_params infllm_resolve(const context_options & options) const;

    // of contexts that are made so: YaRN extends it
    uint32_t n_ctx_train(const context_options & options) const;

    // all contexts of this model have its adapter
    void apply_adapter(llama_context * ctx) const;

    // what is planned for them
    llama_infllm_plan infllm_plan(const context_options & options) const;

private:
    const uint32_t n_forks = process_n_forks();

    bool is_remote = false;

    std::unique_ptr<llama_model, void (*)(llama_model *)> ptr { nullptr, llama_model_free };

    llama_adapter_lora * adapter = nullptr; // the model's, which frees it
    float                adapter_scale = 1.0f;
};
