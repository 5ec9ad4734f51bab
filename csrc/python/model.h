#pragma once

#include "process.h"

#include "llama-infllm.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace py = pybind11;

// "f16", "q8_0" or "q4_0"; throws std::invalid_argument
ggml_type type_from_name(const std::string & name);

// a GGUF model: vocabulary, metadata and, unless no_alloc, weights
class model {
public:
    // devices: names, in the order of the layers; nothing: all of this machine
    // tensor_split: share of the layers for each of them; empty: by their free memory
    model(const std::string & path, int32_t n_gpu_layers, const std::optional<std::vector<std::string>> & devices,
            const std::vector<float> & tensor_split, bool use_mmap, bool use_mlock, bool repack, bool no_alloc);

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

    llama_infllm_params infllm_resolve(
            uint32_t n_ctx, uint32_t n_batch, uint32_t n_ubatch,
            const std::string & type_k, const std::string & type_v, llama_infllm_params params) const;

    llama_infllm_plan infllm_plan(
            uint32_t n_ctx, uint32_t n_batch, uint32_t n_ubatch,
            const std::string & type_k, const std::string & type_v, const llama_infllm_params & params) const;

private:
    const uint32_t n_forks = process_n_forks();

    bool is_remote = false;

    std::unique_ptr<llama_model, void (*)(llama_model *)> ptr { nullptr, llama_model_free };
};
