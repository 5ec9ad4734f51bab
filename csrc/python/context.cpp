#include "context.h"

#include "device.h"
#include "log.h"

#include <algorithm>
#include <stdexcept>

// a signal is seen this late, and the GIL is taken this often
static const auto t_check_interval = std::chrono::milliseconds(50);

[[noreturn]] static void raise(PyObject * type, const std::string & message) {
    PyErr_SetString(type, message.c_str());
    throw py::error_already_set();
}

context::context(std::shared_ptr<model> mdl, const context_options & options) : mdl(std::move(mdl)) {
    const auto & infllm = options.infllm;

    llama_context_params params = options.to_params();

    params.abort_callback      = on_abort_check;
    params.abort_callback_data = this;

    log_clear();
    compute([&] {
        ptr.reset(infllm ? llama_infllm_init_from_model      (this->mdl->get(), params, *infllm)
                         : llama_infllm_init_from_model_plain(this->mdl->get(), params));
    });
    if (!ptr) {
        const std::string why = infllm ? llama_infllm_last_error() : "";
        throw std::runtime_error(why.empty() ? log_text() : why);
    }
    this->mdl->apply_adapter(ptr.get());
}

template <typename F>
void context::compute(F f) {
    py::gil_scoped_release no_gil;

    // servers are counted for the whole process: if two models run at a time and a server of one stops to answer, the other
    // may be given up too
    const uint32_t n_lost = mdl->uses_rpc() ? rpc_n_lost() : 0;

    if (!is_lost) {
        f();
        is_lost = mdl->uses_rpc() && rpc_n_lost() != n_lost;
    }
    if (is_lost) {
        throw device_lost("an RPC server stopped to answer, and what it held is lost: close this Llama and make a new one");
    }
}

bool context::on_abort_check(void * data) {
    auto * self = (context *) data;

    if (self->interrupted || self->is_raised) {
        return true;
    }
    if (!self->is_main_thread) {
        return false;
    }

    const auto t_now = std::chrono::steady_clock::now();
    if (t_now - self->t_check < t_check_interval) {
        return false;
    }
    self->t_check = t_now;

    // ggml calls this from the thread that called llama_decode(); the exception stays set in its Python thread state
    const PyGILState_STATE gil = PyGILState_Ensure();
    self->is_raised = PyErr_CheckSignals() != 0;
    PyGILState_Release(gil);

    return self->is_raised;
}

void context::decode(const std::vector<llama_token> & tokens, outputs out) {
    if (tokens.empty() || tokens.size() > llama_n_batch(ptr.get())) {
        throw std::invalid_argument(std::to_string(tokens.size()) + " tokens to decode: between 1 and n_batch = "
            + std::to_string(llama_n_batch(ptr.get())) + " can be decoded at once");
    }
    for (const llama_token token : tokens) {
        mdl->check_token(token);
    }

    std::vector<llama_token> data = tokens;
    std::vector<int8_t> flags(data.size(), out == OUTPUTS_ALL);
    flags.back() = out != OUTPUTS_NONE;

    llama_batch batch = llama_batch_get_one(data.data(), data.size());
    batch.logits = flags.data();
    run(batch);
}

void context::run(const llama_batch & batch) {
    {
        const auto threading = py::module_::import("threading");
        is_main_thread = threading.attr("current_thread")().is(threading.attr("main_thread")());
        t_check        = std::chrono::steady_clock::now();
    }

    is_raised = false;

    // llama_decode() itself sees to models that have no memory
    const bool is_encoder = llama_model_has_encoder(mdl->get()) && !llama_model_has_decoder(mdl->get());

    int32_t rc = 2;
    if (!interrupted) {
        log_clear();
        compute([&] {
            rc = is_encoder ? llama_encode(ptr.get(), batch) : llama_decode(ptr.get(), batch);
            llama_synchronize(ptr.get());
        });
    }

    if (is_raised) {
        throw py::error_already_set(); // KeyboardInterrupt, or whatever a signal handler raised
    }
    if (rc == 0) {
        return;
    }
    interrupt_check();

    const std::string why = llama_infllm_active(ptr.get()) ? llama_infllm_last_error() : "";
    if (!why.empty()) {
        raise(PyExc_MemoryError, why);
    }
    if (rc == 1) {
        raise(PyExc_MemoryError, "the KV cache has no room for " + std::to_string(batch.n_tokens) + " more tokens: use a larger n_ctx");
    }
    throw std::runtime_error("llama_decode failed with " + std::to_string(rc) + ": " + log_text());
}

void context::interrupt_check() {
    if (interrupted.exchange(false)) {
        raise(PyExc_InterruptedError, "interrupted: what was computed before is stored, and the same call goes on from there");
    }
}

py::array_t<float> context::logits() const {
    const float * src = llama_get_logits_ith(ptr.get(), -1);
    if (!src) {
        throw std::runtime_error("there are no logits: evaluate tokens first");
    }
    return py::array_t<float>(llama_vocab_n_tokens(mdl->vocab()), src);
}

void context::set_logits(const py::array_t<float, py::array::c_style | py::array::forcecast> & logits) {
    float *    dst = llama_get_logits_ith(ptr.get(), -1);
    const auto n   = llama_vocab_n_tokens(mdl->vocab());
    if (!dst || logits.size() != n) {
        throw std::invalid_argument(std::to_string(logits.size()) + " logits: there must be " + std::to_string(n));
    }
    std::copy_n(logits.data(), n, dst);
}

py::array_t<float> context::logits_rows(size_t n_rows) const {
    const size_t n_vocab = llama_vocab_n_tokens(mdl->vocab());

    const float * src = llama_get_logits(ptr.get());
    if (!src) {
        throw std::runtime_error("there are no logits: evaluate tokens first");
    }
    return py::array_t<float>({ n_rows, n_vocab }, src);
}

std::vector<uint32_t> context::ubatch_ends(uint32_t p0, uint32_t p1, bool ends) const {
    std::vector<uint32_t> res;
    while (p0 < p1) {
        p0 = llama_infllm_ubatch_end(ptr.get(), p0, p1, ends);
        res.push_back(p0);
    }
    return res;
}

void context::check_tokens(uint32_t n_tokens) const {
    if (!llama_infllm_check_tokens(ptr.get(), 0, n_tokens)) {
        raise(PyExc_MemoryError, std::to_string(n_tokens) + " tokens cannot be held: " + llama_infllm_last_error());
    }
}

uint32_t context::n_past() const {
    return llama_memory_seq_pos_max(llama_get_memory(ptr.get()), 0) + 1;
}

bool context::seq_rm(int32_t p0) {
    bool res = false;
    compute([&] {
        auto * mem = llama_get_memory(ptr.get());
        // without the method a tail is removed also where the window before it is gone: who asks has to look
        const int32_t n_swa = llama_infllm_active(ptr.get()) ? 0 : llama_model_n_swa(mdl->get());
        const bool    has   = n_swa == 0 || p0 <= 0 || llama_memory_seq_pos_min(mem, 0) <= std::max(0, p0 - n_swa + 1);
        res = has && llama_memory_seq_rm(mem, 0, p0, -1);
    });
    return res;
}

void context::clear() {
    compute([&] { llama_memory_clear(llama_get_memory(ptr.get()), false); });
}

bool context::needs_checkpoints() const {
    const auto * m = mdl->get();
    return llama_model_is_hybrid(m) || llama_model_is_recurrent(m) || llama_model_n_swa(m) > 0;
}

py::bytes context::checkpoint() {
    std::string data;
    compute([&] {
        const auto flags = LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY;
        data.resize(llama_state_seq_get_size_ext(ptr.get(), 0, flags));
        data.resize(llama_state_seq_get_data_ext(ptr.get(), reinterpret_cast<uint8_t *>(&data[0]), data.size(), 0, flags));
    });
    return data;
}

bool context::restore(const py::bytes & state, int32_t p0) {
    const std::string data = state;
    bool res = false;
    compute([&] {
        auto * mem = llama_get_memory(ptr.get());
        res = !data.empty() && llama_state_seq_set_data_ext(ptr.get(), reinterpret_cast<const uint8_t *>(data.data()), data.size(), 0,
                LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY) > 0 && llama_memory_seq_rm(mem, 0, p0, -1);
        if (!res) {
            llama_memory_seq_rm(mem, 0, -1, -1);
        }
    });
    return res;
}

py::bytes context::get_state() {
    std::string data;
    compute([&] {
        data.resize(llama_state_seq_get_size(ptr.get(), 0));
        data.resize(llama_state_seq_get_data(ptr.get(), reinterpret_cast<uint8_t *>(&data[0]), data.size(), 0));
    });
    return data;
}

std::string context::set_state(const py::bytes & state) {
    const auto data = state.cast<std::string_view>();
    bool ok = false;
    log_clear();
    compute([&] { ok = llama_state_seq_set_data(ptr.get(), reinterpret_cast<const uint8_t *>(data.data()), data.size(), 0) > 0; });
    if (ok) {
        return "";
    }
    const std::string why = llama_infllm_active(ptr.get()) ? llama_infllm_last_error() : "";
    return !why.empty() ? why : "the state is damaged, or does not fit this context: " + log_text();
}

void context::save_session(const std::string & path, const std::vector<llama_token> & tokens, const py::bytes & data) {
    const std::string bytes = data;
    bool ok = false;
    compute([&] {
        ok = llama_infllm_session_save(ptr.get(), 0, path.c_str(), tokens.data(), tokens.size(),
                reinterpret_cast<const uint8_t *>(bytes.data()), bytes.size());
    });
    if (!ok) {
        raise(PyExc_OSError, llama_infllm_last_error());
    }
}

void context::load_session(const session & from) {
    bool ok = false;
    compute([&] { ok = llama_infllm_session_load(from.get(), ptr.get(), 0); });
    if (!ok) {
        throw std::invalid_argument(llama_infllm_last_error());
    }
}

std::optional<llama_infllm_params> context::infllm_params() const {
    llama_infllm_params res;
    if (!llama_infllm_get_params(ptr.get(), &res)) {
        return std::nullopt;
    }
    return res;
}

std::optional<llama_infllm_stats> context::stats(int32_t il) const {
    llama_infllm_stats res;
    if (!llama_infllm_get_stats(ptr.get(), il, &res)) {
        return std::nullopt;
    }
    return res;
}

std::string context::paging_reason(int32_t il) const {
    char buf[512] = "";
    llama_infllm_paging_reason(ptr.get(), il, buf, sizeof(buf));
    return buf;
}

uint32_t context::check_slots() {
    uint32_t res = 0;
    compute([&] { res = llama_infllm_check_slots(ptr.get()); });
    return res;
}

void context::copy_state_from(const context & src) {
    if (llama_infllm_active(ptr.get())) {
        bool ok = false;
        compute([&] { ok = llama_infllm_fork(src.ptr.get(), 0, ptr.get(), 0); });
        if (!ok) {
            throw std::runtime_error(llama_infllm_last_error());
        }
        return;
    }
    size_t n_read = 0;
    compute([&] {
        std::vector<uint8_t> data(llama_state_seq_get_size(src.ptr.get(), 0));
        llama_state_seq_get_data(src.ptr.get(), data.data(), data.size(), 0);
        n_read = llama_state_seq_set_data(ptr.get(), data.data(), data.size(), 0);
    });
    if (n_read == 0) {
        throw std::runtime_error("the state does not fit this context");
    }
}

void context::on_scores(int32_t il, uint32_t n_blocks, float * scores, void * data) {
    auto & r = ((context *) data)->replay;

    // layers are asked in their order
    if (il == 0) {
        r.step++;
    }
    const int32_t * blocks = r.blocks.data() + ((r.step - 1)%r.n_step*r.n_layer + il%r.n_layer)*r.topk;

    std::fill_n(scores, n_blocks, 0.0f);
    for (size_t i = 0; i < r.topk; ++i) {
        if (blocks[i] >= 0 && (uint32_t) blocks[i] < n_blocks) {
            scores[blocks[i]] = r.topk - i;
        }
    }
}

void context::set_replay(const py::array_t<int32_t, py::array::c_style | py::array::forcecast> & selections) {
    if (selections.ndim() != 3) {
        throw std::invalid_argument("selections must have 3 dimensions: steps, layers, blocks");
    }
    replay = { { selections.data(), selections.data() + selections.size() },
        (size_t) selections.shape(0), (size_t) selections.shape(1), (size_t) selections.shape(2), 0 };
    llama_infllm_set_scores(ptr.get(), replay.blocks.empty() ? nullptr : on_scores, this);
}

void context::on_trace(const llama_infllm_trace_event * event, void * data) {
    auto & trace = ((context *) data)->trace;

    // layers are computed one after the other, so that there is one caller at a time
    trace.push_back({
        event->il, event->pos, event->n_tokens, event->n_page_in,
        { event->selected, event->selected + event->n_selected },
        { event->scores,   event->scores   + event->n_blocks   },
    });
}

void context::set_trace(bool enabled) {
    trace.clear();
    llama_infllm_set_trace(ptr.get(), enabled ? on_trace : nullptr, this);
}

std::vector<trace_event> context::take_trace() {
    std::vector<trace_event> res;
    res.swap(trace);
    return res;
}
