// infllm_cpp._core: the C API for python/infllm_cpp, and nothing else; typed in python/infllm_cpp/_core.pyi

#include "chat-prompt.h"
#include "context.h"
#include "device.h"
#include "log.h"
#include "model.h"
#include "process.h"
#include "sampler.h"

#include <type_traits>
#include <utility>

static py::object as_array(const std::vector<float> & v) {
    return py::array_t<float>(v.size(), v.data());
}

static py::object as_array(const std::vector<int32_t> & v) {
    return py::array_t<int32_t>(v.size(), v.data());
}

// an enum of the parameters, as the integer that it is
template <auto member>
static int get_enum(const llama_infllm_params & params) {
    return int(params.*member);
}

template <auto member>
static void set_enum(llama_infllm_params & params, int value) {
    params.*member = std::decay_t<decltype(params.*member)>(value);
}

PYBIND11_MODULE(_core, m) {
    log_install();
    llama_backend_init();
    process_init();

    m.attr("__version__")  = INFLLM_VERSION;
    m.attr("DEFAULT_SEED") = LLAMA_DEFAULT_SEED;

    m.def("llama_version",        &llama_version);
    m.def("system_info",          &llama_print_system_info);
    m.def("set_verbose",          &log_set_verbose, py::arg("verbose"));
    m.def("process_check",        &process_check);
    m.def("n_forks",              &process_n_forks);

    py::register_exception<device_lost>(m, "DeviceLostError", PyExc_RuntimeError);

    py::class_<device_info>(m, "DeviceInfo", py::module_local())
        .def_readonly("name",         &device_info::name)
        .def_readonly("description",  &device_info::description)
        .def_readonly("memory_free",  &device_info::memory_free)
        .def_readonly("memory_total", &device_info::memory_total);

    m.def("local_devices", &local_devices);
    m.def("rpc_devices",   &rpc_devices, py::arg("endpoint"), py::call_guard<py::gil_scoped_release>());

    py::class_<llama_infllm_params>(m, "InfLLMParams", py::module_local())
        .def(py::init(&llama_infllm_default_params))
        .def_readwrite("n_init",            &llama_infllm_params::n_init)
        .def_readwrite("n_local",           &llama_infllm_params::n_local)
        .def_readwrite("block_size",        &llama_infllm_params::block_size)
        .def_readwrite("topk",              &llama_infllm_params::topk)
        .def_readwrite("max_cached_blocks", &llama_infllm_params::max_cached_blocks)
        .def_readwrite("repr_topk",         &llama_infllm_params::repr_topk)
        .def_readwrite("n_score",           &llama_infllm_params::n_score)
        .def_readwrite("n_repr",            &llama_infllm_params::n_repr)
        .def_readwrite("store_max_bytes",   &llama_infllm_params::store_max_bytes)
        .def_readwrite("pinned_max_bytes",  &llama_infllm_params::pinned_max_bytes)
        .def_property("store_path",
            [](const llama_infllm_params & s) { return std::string(s.store_path); },
            [](llama_infllm_params & s, const std::string & path) {
                if (path.size() >= sizeof(s.store_path)) {
                    throw std::invalid_argument("store_path = \"" + path + "\" has " + std::to_string(path.size()) + " bytes: " +
                        std::to_string(sizeof(s.store_path) - 1) + " at most");
                }
                std::fill(std::begin(s.store_path), std::end(s.store_path), 0);
                std::copy(path.begin(), path.end(), s.store_path);
            })
        .def_property("position", get_enum<&llama_infllm_params::position>, set_enum<&llama_infllm_params::position>)
        .def_property("paging",   get_enum<&llama_infllm_params::paging>,   set_enum<&llama_infllm_params::paging>)
        .def_property("attend",   get_enum<&llama_infllm_params::attend>,   set_enum<&llama_infllm_params::attend>)
        .def_property("scores",   get_enum<&llama_infllm_params::scores>,   set_enum<&llama_infllm_params::scores>)
        .def_property("search",   get_enum<&llama_infllm_params::search>,   set_enum<&llama_infllm_params::search>)
        .def_readwrite("budget",            &llama_infllm_params::budget)
        .def_readwrite("reserve",           &llama_infllm_params::reserve)
        .def_property("profile",  get_enum<&llama_infllm_params::profile>,  set_enum<&llama_infllm_params::profile>)
        .def_property("type_store", get_enum<&llama_infllm_params::type_store>, set_enum<&llama_infllm_params::type_store>);

    py::class_<llama_infllm_plan>(m, "InfLLMPlan", py::module_local())
        .def_readonly("n_cells",        &llama_infllm_plan::n_cells)
        .def_readonly("n_cells_train",  &llama_infllm_plan::n_cells_train)
        .def_readonly("n_cells_speed",  &llama_infllm_plan::n_cells_speed)
        .def_readonly("n_cells_memory", &llama_infllm_plan::n_cells_memory)
        .def_readonly("bytes_cell",     &llama_infllm_plan::bytes_cell)
        .def_readonly("bytes_weights",  &llama_infllm_plan::bytes_weights)
        .def_property_readonly("limit", [](const llama_infllm_plan & s) { return int(s.limit); });

    m.def("infllm_n_cells", &llama_infllm_n_cells, py::arg("params"), py::arg("n_ubatch"));

    py::class_<llama_infllm_stats>(m, "InfLLMStats", py::module_local())
        .def_readonly("n_layer",           &llama_infllm_stats::n_layer)
        .def_readonly("n_seq",             &llama_infllm_stats::n_seq)
        .def_readonly("n_tokens",          &llama_infllm_stats::n_tokens)
        .def_readonly("n_tokens_resident", &llama_infllm_stats::n_tokens_resident)
        .def_readonly("n_blocks",          &llama_infllm_stats::n_blocks)
        .def_readonly("n_slots",           &llama_infllm_stats::n_slots)
        .def_readonly("bytes_resident",    &llama_infllm_stats::bytes_resident)
        .def_readonly("bytes_repr",        &llama_infllm_stats::bytes_repr)
        .def_readonly("bytes_store",       &llama_infllm_stats::bytes_store)
        .def_readonly("bytes_store_kv",    &llama_infllm_stats::bytes_store_kv)
        .def_readonly("bytes_paged_in",    &llama_infllm_stats::bytes_paged_in)
        .def_readonly("n_select",          &llama_infllm_stats::n_select)
        .def_readonly("n_selected",        &llama_infllm_stats::n_selected)
        .def_readonly("n_hit",             &llama_infllm_stats::n_hit)
        .def_readonly("n_page_in",         &llama_infllm_stats::n_page_in)
        .def_readonly("n_layer_pager",     &llama_infllm_stats::n_layer_pager)
        .def_readonly("n_layer_device",    &llama_infllm_stats::n_layer_device)
        .def_readonly("bytes_store_file",  &llama_infllm_stats::bytes_store_file)
        .def_readonly("n_page_in_file",    &llama_infllm_stats::n_page_in_file)
        .def_readonly("us_page_in",        &llama_infllm_stats::us_page_in)
        .def_readonly("us_page_in_file",   &llama_infllm_stats::us_page_in_file);

    py::class_<trace_event>(m, "TraceEvent", py::module_local())
        .def_readonly("il",        &trace_event::il)
        .def_readonly("pos",       &trace_event::pos)
        .def_readonly("n_tokens",  &trace_event::n_tokens)
        .def_readonly("n_page_in", &trace_event::n_page_in)
        .def_property_readonly("selected", [](const trace_event & e) { return as_array(e.selected); })
        .def_property_readonly("scores",   [](const trace_event & e) { return as_array(e.scores); });

    py::class_<model_options>(m, "ModelOptions", py::module_local())
        .def(py::init([] { return model_options {}; }))
        .def_readwrite("n_gpu_layers", &model_options::n_gpu_layers)
        .def_readwrite("devices",      &model_options::devices)
        .def_readwrite("tensor_split", &model_options::tensor_split)
        .def_readwrite("split_mode",   &model_options::split_mode)
        .def_readwrite("main_gpu",     &model_options::main_gpu)
        .def_readwrite("use_mmap",     &model_options::use_mmap)
        .def_readwrite("use_mlock",    &model_options::use_mlock)
        .def_readwrite("repack",       &model_options::repack)
        .def_readwrite("no_alloc",     &model_options::no_alloc)
        .def_readwrite("kv_overrides", &model_options::kv_overrides)
        .def_readwrite("lora_path",    &model_options::lora_path)
        .def_readwrite("lora_scale",   &model_options::lora_scale);

    py::class_<context_options>(m, "ContextOptions", py::module_local())
        .def(py::init([] { return context_options {}; }))
        .def("__copy__", [](const context_options & s) { return s; })
        .def_readwrite("n_ctx",             &context_options::n_ctx)
        .def_readwrite("n_batch",           &context_options::n_batch)
        .def_readwrite("n_ubatch",          &context_options::n_ubatch)
        .def_readwrite("n_threads",         &context_options::n_threads)
        .def_readwrite("n_threads_batch",   &context_options::n_threads_batch)
        .def_readwrite("type_k",            &context_options::type_k)
        .def_readwrite("type_v",            &context_options::type_v)
        .def_readwrite("offload_kqv",       &context_options::offload_kqv)
        .def_readwrite("flash_attn",        &context_options::flash_attn)
        .def_readwrite("rope_scaling_type", &context_options::rope_scaling_type)
        .def_readwrite("rope_freq_base",    &context_options::rope_freq_base)
        .def_readwrite("rope_freq_scale",   &context_options::rope_freq_scale)
        .def_readwrite("yarn_ext_factor",   &context_options::yarn_ext_factor)
        .def_readwrite("yarn_attn_factor",  &context_options::yarn_attn_factor)
        .def_readwrite("yarn_beta_fast",    &context_options::yarn_beta_fast)
        .def_readwrite("yarn_beta_slow",    &context_options::yarn_beta_slow)
        .def_readwrite("yarn_orig_ctx",     &context_options::yarn_orig_ctx)
        .def_readwrite("embedding",         &context_options::embedding)
        .def_readwrite("pooling_type",      &context_options::pooling_type)
        .def_readwrite("attention_type",    &context_options::attention_type)
        .def_readwrite("n_seq_max",         &context_options::n_seq_max)
        .def_readwrite("infllm",            &context_options::infllm);

    py::class_<model, std::shared_ptr<model>>(m, "Model", py::module_local())
        .def(py::init<const std::string &, const model_options &>(), py::arg("path"), py::arg("options"))
        .def("desc",           &model::desc)
        .def("meta",           &model::meta)
        .def("chat_template",  &model::chat_template,  py::arg("name") = py::none())
        .def("tokenize",       &model::tokenize,       py::arg("text"),   py::arg("add_special"), py::arg("parse_special"))
        .def("detokenize",     &model::detokenize,     py::arg("tokens"), py::arg("remove_special"), py::arg("unparse_special"))
        .def("token_to_piece", &model::token_to_piece, py::arg("token"),  py::arg("special"))
        .def("token_text",     &model::token_text,     py::arg("token"))
        .def("infllm_resolve", &model::infllm_resolve, py::arg("options"))
        .def("infllm_plan",    &model::infllm_plan,    py::arg("options"))
        .def("n_ctx_train",    &model::n_ctx_train,    py::arg("options") = context_options())
        .def("n_embd",      [](const model & s) { return llama_model_n_embd     (s.get()); })
        .def("n_layer",     [](const model & s) { return llama_model_n_layer    (s.get()); })
        .def("n_head",      [](const model & s) { return llama_model_n_head     (s.get()); })
        .def("kv_layers",   [](const model & s) {
            uint64_t n_k;
            uint64_t n_v;
            const uint32_t n_layer = llama_infllm_n_layer(s.get(), nullptr, &n_k, &n_v);
            return std::make_tuple(n_layer, n_k, n_v);
        })
        .def("kv_devices",  [](const model & s) {
            std::vector<std::tuple<std::string, uint32_t, uint64_t, uint64_t>> res;
            for (ggml_backend_dev_t dev : all_devices()) {
                uint64_t n_k;
                uint64_t n_v;
                if (const uint32_t n_layer = llama_infllm_n_layer(s.get(), dev, &n_k, &n_v)) {
                    res.emplace_back(ggml_backend_dev_name(dev), n_layer, n_k, n_v);
                }
            }
            return res;
        })
        .def("infllm_repr_bytes", [](const model & s, const llama_infllm_params & params, uint32_t n_block) {
            return llama_infllm_repr_bytes(s.get(), &params, n_block);
        }, py::arg("params"), py::arg("n_block"))
        .def("n_head_kv",   [](const model & s) { return llama_model_n_head_kv  (s.get()); })
        .def("n_params",    [](const model & s) { return llama_model_n_params   (s.get()); })
        .def("size",        [](const model & s) { return llama_model_size       (s.get()); })
        .def("n_vocab",     [](const model & s) { return llama_vocab_n_tokens   (s.vocab()); })
        .def("token_bos",   [](const model & s) { return llama_vocab_bos        (s.vocab()); })
        .def("token_eos",   [](const model & s) { return llama_vocab_eos        (s.vocab()); })
        .def("token_nl",    [](const model & s) { return llama_vocab_nl         (s.vocab()); })
        .def("tokens_fim",  [](const model & s) {
            return std::vector<llama_token> { llama_vocab_fim_pre(s.vocab()), llama_vocab_fim_suf(s.vocab()), llama_vocab_fim_mid(s.vocab()) };
        })
        .def("add_bos",     [](const model & s) { return llama_vocab_get_add_bos(s.vocab()); })
        .def("is_eog",      [](const model & s, llama_token token) { return llama_vocab_is_eog(s.vocab(), token); }, py::arg("token"))
        .def("n_pos_max",   [](const model & s) { return llama_infllm_n_pos_max(s.get()); })
        .def("has_rope",    [](const model & s) {
            // libllama names a type for BERT, too, whose positions have embeddings
            return llama_model_rope_type(s.get()) != LLAMA_ROPE_TYPE_NONE && llama_infllm_n_pos_max(s.get()) == UINT32_MAX;
        })
        .def("is_recurrent", [](const model & s) { return llama_model_is_recurrent(s.get()) || llama_model_is_hybrid(s.get()); })
        .def("has_decoder", [](const model & s) { return llama_model_has_decoder(s.get()); })
        .def("has_encoder", [](const model & s) { return llama_model_has_encoder(s.get()); });

    py::class_<chat_prompt>(m, "ChatPrompt", py::module_local())
        .def("text",             &chat_prompt::text)
        .def("tokenize",         &chat_prompt::tokenize, py::arg("model"), py::arg("parse_special") = false)
        .def("preserved_tokens", &chat_prompt::preserved_tokens, py::arg("model"))
        .def_property_readonly("additional_stops", [](const chat_prompt & s) { return s.format.additional_stops; });

    py::class_<chat_templates>(m, "ChatTemplates", py::module_local())
        .def(py::init<const model *, const std::string &, const std::string &, const std::string &>(),
            py::arg("model").none(true), py::arg("source") = "", py::arg("bos_token") = "", py::arg("eos_token") = "")
        .def("is_explicit", &chat_templates::is_explicit)
        .def("has_tools",   &chat_templates::has_tools)
        .def("apply",       &chat_templates::apply, py::arg("request"));

    py::class_<chat_answer>(m, "ChatAnswer", py::module_local())
        .def(py::init<const chat_prompt &>(), py::arg("prompt"))
        .def("push", &chat_answer::push, py::arg("text"), py::arg("is_final"));

    py::class_<llama_infllm_session_info>(m, "SessionInfo", py::module_local())
        .def_readonly("n_tokens",    &llama_infllm_session_info::n_tokens)
        .def_readonly("n_blocks",    &llama_infllm_session_info::n_blocks)
        .def_readonly("n_saved",     &llama_infllm_session_info::n_saved)
        .def_readonly("bytes",       &llama_infllm_session_info::bytes)
        .def_readonly("bytes_state", &llama_infllm_session_info::bytes_state)
        .def_readonly("bytes_data",  &llama_infllm_session_info::bytes_data);

    py::class_<session>(m, "Session", py::module_local())
        .def(py::init<const std::string &>(), py::arg("path"))
        .def("info",   &session::info)
        .def("tokens", &session::tokens)
        .def("data",   &session::data)
        .def("verify", &session::verify);

    py::class_<context> ctx(m, "Context", py::module_local());

    py::enum_<context::outputs>(ctx, "Outputs", py::module_local())
        .value("NONE", context::OUTPUTS_NONE)
        .value("LAST", context::OUTPUTS_LAST)
        .value("ALL",  context::OUTPUTS_ALL);

    ctx
        .def(py::init<std::shared_ptr<model>, const context_options &>(), py::arg("model"), py::arg("options"))
        .def("n_ctx",           [](const context & s) { return llama_n_ctx   (s.get()); })
        .def("n_batch",         [](const context & s) { return llama_n_batch (s.get()); })
        .def("n_ubatch",        [](const context & s) { return llama_n_ubatch(s.get()); })
        .def("n_seq_max",       [](const context & s) { return llama_n_seq_max(s.get()); })
        .def("pooling_type",    [](const context & s) { return int(llama_pooling_type(s.get())); })
        .def("has_memory",      &context::has_memory)
        .def("embed",           &context::embed, py::arg("texts"))
        .def("decode",          &context::decode, py::arg("tokens"), py::arg("outputs"))
        .def("interrupt",       &context::interrupt)
        .def("interrupt_clear", &context::interrupt_clear)
        .def("interrupt_check", &context::interrupt_check)
        .def("logits",          &context::logits)
        .def("set_logits",      &context::set_logits, py::arg("logits"))
        .def("logits_rows",     &context::logits_rows, py::arg("n_rows"))
        .def("n_past",          &context::n_past)
        .def("n_end",           [](const context & s) { return llama_infllm_n_end(s.get()); })
        .def("ubatch_ends",     &context::ubatch_ends, py::arg("p0"), py::arg("p1"), py::arg("ends"))
        .def("batch_end",       [](const context & s, uint32_t p0, uint32_t p1, bool ends) {
            return llama_infllm_batch_end(s.get(), p0, p1, ends);
        }, py::arg("p0"), py::arg("p1"), py::arg("ends"))
        .def("check_tokens",    &context::check_tokens, py::arg("n_tokens"))
        .def("seq_rm",          &context::seq_rm, py::arg("p0"))
        .def("clear",           &context::clear)
        .def("infllm_params",   &context::infllm_params)
        .def("stats",           &context::stats, py::arg("il") = -1)
        .def("reset_stats",     &context::reset_stats)
        .def("paging_reason",   &context::paging_reason, py::arg("il") = -1)
        .def("check_slots",     &context::check_slots)
        .def("set_replay",      &context::set_replay, py::arg("selections"))
        .def("needs_checkpoints", &context::needs_checkpoints)
        .def("checkpoint", &context::checkpoint)
        .def("restore",    &context::restore, py::arg("state"), py::arg("p0"))
        .def("get_state",  &context::get_state)
        .def("set_state",  &context::set_state, py::arg("state"))
        .def("save_session", &context::save_session, py::arg("path"), py::arg("tokens"), py::arg("data"))
        .def("load_session", &context::load_session, py::arg("session"))
        .def("copy_state_from", &context::copy_state_from, py::arg("source"))
        .def("set_trace",       &context::set_trace, py::arg("enabled"))
        .def("take_trace",      &context::take_trace);

    m.def("grammar_of_schema", &grammar_of_schema, py::arg("schema"));

    py::class_<sampler_options>(m, "SamplerOptions", py::module_local())
        .def(py::init([] { return sampler_options {}; }))
        .def_readwrite("seed",              &sampler_options::seed)
        .def_readwrite("temperature",       &sampler_options::temperature)
        .def_readwrite("top_k",             &sampler_options::top_k)
        .def_readwrite("top_p",             &sampler_options::top_p)
        .def_readwrite("min_p",             &sampler_options::min_p)
        .def_readwrite("typical_p",         &sampler_options::typical_p)
        .def_readwrite("repeat_penalty",    &sampler_options::repeat_penalty)
        .def_readwrite("frequency_penalty", &sampler_options::frequency_penalty)
        .def_readwrite("presence_penalty",  &sampler_options::presence_penalty)
        .def_readwrite("penalty_last_n",    &sampler_options::penalty_last_n)
        .def_readwrite("mirostat_mode",     &sampler_options::mirostat_mode)
        .def_readwrite("mirostat_tau",      &sampler_options::mirostat_tau)
        .def_readwrite("mirostat_eta",      &sampler_options::mirostat_eta)
        .def_readwrite("logit_bias",        &sampler_options::logit_bias)
        .def_readwrite("grammar",           &sampler_options::grammar);

    py::class_<sampler>(m, "Sampler", py::module_local())
        .def(py::init<const model &, const sampler_options &, const chat_prompt *>(),
            py::arg("model"), py::arg("options"), py::arg("chat").none(true))
        .def("accept", &sampler::accept, py::arg("tokens"))
        .def("sample", &sampler::sample, py::arg("context"));
}
