#include "model.h"

#include "adapter.h"
#include "device.h"
#include "log.h"

#include <algorithm>
#include <stdexcept>

py::str to_str(const std::string & text) {
    return py::reinterpret_steal<py::str>(PyUnicode_DecodeUTF8(text.data(), text.size(), "replace"));
}

ggml_type type_from_name(const std::string & name) {
    for (int type = 0; type < GGML_TYPE_COUNT; ++type) {
        const char * known = ggml_type_name(ggml_type(type)); // nullptr: a number that is not in use
        if (known && name == known) {
            return ggml_type(type);
        }
    }
    throw std::invalid_argument("'" + name + "' is no type of ggml");
}

llama_context_params context_options::to_params() const {
    llama_context_params params = llama_context_default_params();

    params.n_ctx             = n_ctx;
    params.n_batch           = n_batch;
    params.n_ubatch          = n_ubatch;
    params.n_seq_max         = n_seq_max;
    params.n_threads         = n_threads;
    params.n_threads_batch   = n_threads_batch;
    params.type_k            = type_from_name(type_k);
    params.type_v            = type_from_name(type_v);
    params.offload_kqv       = offload_kqv;
    params.swa_full          = false; // as llama.cpp's own programs, and as with the method
    params.flash_attn_type   = !flash_attn ? LLAMA_FLASH_ATTN_TYPE_AUTO
                             : *flash_attn ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
    params.rope_scaling_type = llama_rope_scaling_type(rope_scaling_type);
    params.rope_freq_base    = rope_freq_base;
    params.rope_freq_scale   = rope_freq_scale;
    params.yarn_ext_factor   = yarn_ext_factor;
    params.yarn_attn_factor  = yarn_attn_factor;
    params.yarn_beta_fast    = yarn_beta_fast;
    params.yarn_beta_slow    = yarn_beta_slow;
    params.yarn_orig_ctx     = yarn_orig_ctx;
    params.embeddings        = embedding;
    params.kv_unified        = embedding;
    params.pooling_type      = static_cast<enum llama_pooling_type>(pooling_type);
    params.attention_type    = llama_attention_type(attention_type);
    return params;
}

model::model(const std::string & path, const model_options & options) : adapter_scale(options.lora_scale) {
    process_set_used();

    llama_model_params params = llama_model_default_params();

    std::vector<ggml_backend_dev_t> devs; // ends with nullptr
    if (options.devices) {
        for (const auto & name : *options.devices) {
            devs.push_back(find_device(name));
            is_remote |= is_rpc_device(devs.back());
        }
        devs.push_back(nullptr);
        params.devices = devs.data();
    }

    std::vector<float> split(llama_max_devices(), 0.0f);
    if (!options.tensor_split.empty()) {
        if (options.tensor_split.size() > split.size()) {
            throw std::invalid_argument("tensor_split has " + std::to_string(options.tensor_split.size()) + " values, for at most "
                + std::to_string(split.size()) + " devices");
        }
        std::copy(options.tensor_split.begin(), options.tensor_split.end(), split.begin());
        params.tensor_split = split.data();
    }

    const auto overrides = overrides_make(path, options.kv_overrides);
    if (!overrides.empty()) {
        params.kv_overrides = overrides.data();
    }

    params.n_gpu_layers    = options.n_gpu_layers;
    params.split_mode      = llama_split_mode(options.split_mode);
    params.main_gpu        = options.main_gpu;
    params.no_alloc        = options.no_alloc;
    params.use_extra_bufts = options.repack;
    params.load_mode       = options.no_alloc                       ? LLAMA_LOAD_MODE_NONE
                           : options.use_mmap && options.use_mlock  ? LLAMA_LOAD_MODE_MMAP_MLOCK
                           : options.use_mmap                       ? LLAMA_LOAD_MODE_MMAP
                           : options.use_mlock                      ? LLAMA_LOAD_MODE_MLOCK
                                                                    : LLAMA_LOAD_MODE_NONE;

    py::gil_scoped_release no_gil;

    const uint32_t n_lost = rpc_n_lost();

    log_clear();
    ptr.reset(llama_model_load_from_file(path.c_str(), params));
    if (is_remote && rpc_n_lost() != n_lost) {
        throw device_lost("an RPC server stopped to answer while the model was loaded");
    }
    if (!ptr) {
        throw std::runtime_error(log_text());
    }
    // before the first context, whose graphs must have room for it
    if (!options.lora_path.empty()) {
        adapter = adapter_load(ptr.get(), options.lora_path);
    }
}

void model::apply_adapter(llama_context * ctx) const {
    if (adapter) {
        llama_adapter_lora * list[] = { adapter };
        float scale[]               = { adapter_scale };
        llama_set_adapters_lora(ctx, list, 1, scale);
    }
}

// llama.cpp's string getters: length on success, called again when the buffer was too small
template <typename F>
static std::string get_string(F get) {
    std::string buf(256, '\0');
    int32_t n = get(&buf[0], buf.size());
    if (n >= (int32_t) buf.size()) {
        buf.resize(n + 1);
        n = get(&buf[0], buf.size());
    }
    buf.resize(n < 0 ? 0 : n);
    return buf;
}

std::string model::desc() const {
    return get_string([&](char * buf, size_t size) { return llama_model_desc(ptr.get(), buf, size); });
}

py::dict model::meta() const {
    py::dict res; // a broken GGUF may hold bytes that are not UTF-8
    for (int32_t i = 0; i < llama_model_meta_count(ptr.get()); ++i) {
        const auto key = get_string([&](char * buf, size_t size) {
            return llama_model_meta_key_by_index(ptr.get(), i, buf, size);
        });
        const auto val = get_string([&](char * buf, size_t size) {
            return llama_model_meta_val_str_by_index(ptr.get(), i, buf, size);
        });
        res[to_str(key)] = to_str(val);
    }
    return res;
}

py::object model::chat_template(const py::object & name) const {
    const std::string name_str = name.is_none() ? "" : name.cast<std::string>();

    const char * text = llama_model_chat_template(ptr.get(), name.is_none() ? nullptr : name_str.c_str());
    return text ? py::object(py::str(text)) : py::none();
}

std::vector<llama_token> model::tokenize(const std::string & text, bool add_special, bool parse_special) const {
    if (text.size() > INT32_MAX) {
        throw std::invalid_argument("text has " + std::to_string(text.size()) + " bytes: at most 2147483647 can be tokenized at once");
    }

    py::gil_scoped_release no_gil;

    // a token stands for at least one byte, apart from BOS, EOS and an added space
    std::vector<llama_token> res(text.size() + 4);
    int32_t n = llama_tokenize(vocab(), text.data(), text.size(), res.data(), res.size(), add_special, parse_special);
    if (n < 0 && n != INT32_MIN) {
        res.resize(-n);
        n = llama_tokenize(vocab(), text.data(), text.size(), res.data(), res.size(), add_special, parse_special);
    }
    if (n < 0) {
        throw std::runtime_error("the text cannot be tokenized: too many tokens");
    }
    res.resize(n);
    return res;
}

void model::check_token(llama_token token) const {
    const int32_t n_vocab = llama_vocab_n_tokens(vocab());
    if (token < 0 || token >= n_vocab) {
        throw std::invalid_argument("token " + std::to_string(token) + " is out of range: the model has tokens 0 to " + std::to_string(n_vocab - 1));
    }
}

py::bytes model::detokenize(const std::vector<llama_token> & tokens, bool remove_special, bool unparse_special) const {
    for (const llama_token token : tokens) {
        check_token(token);
    }

    std::string res(tokens.size()*8 + 16, '\0');
    int32_t n = llama_detokenize(vocab(), tokens.data(), tokens.size(), &res[0], res.size(), remove_special, unparse_special);
    if (n < 0) {
        res.resize(-n);
        n = llama_detokenize(vocab(), tokens.data(), tokens.size(), &res[0], res.size(), remove_special, unparse_special);
    }
    return py::bytes(res.data(), n < 0 ? 0 : n);
}

py::bytes model::token_to_piece(llama_token token, bool special) const {
    check_token(token);

    std::string res(64, '\0');
    int32_t n = llama_token_to_piece(vocab(), token, &res[0], res.size(), 0, special);
    if (n < 0) {
        res.resize(-n);
        n = llama_token_to_piece(vocab(), token, &res[0], res.size(), 0, special);
    }
    return py::bytes(res.data(), n < 0 ? 0 : n);
}

std::string model::token_text(llama_token token) const {
    check_token(token);

    const char * text = llama_vocab_get_text(vocab(), token);
    return text ? text : "";
}

uint32_t model::n_ctx_train(const context_options & options) const {
    const auto cparams = options.to_params();
    return llama_infllm_n_ctx_train(ptr.get(), &cparams);
}

llama_infllm_params model::infllm_resolve(const context_options & options) const {
    const auto cparams = options.to_params();
    auto       params  = options.infllm.value_or(llama_infllm_default_params());

    if (!llama_infllm_params_resolve(ptr.get(), &cparams, &params)) {
        throw std::invalid_argument(llama_infllm_last_error());
    }
    return params;
}

llama_infllm_plan model::infllm_plan(const context_options & options) const {
    const auto cparams = options.to_params();
    const auto params  = options.infllm.value_or(llama_infllm_default_params());

    llama_infllm_plan res;
    if (!llama_infllm_get_plan(ptr.get(), &cparams, &params, &res)) {
        throw std::invalid_argument(llama_infllm_last_error());
    }
    return res;
}
