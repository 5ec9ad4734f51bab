#pragma once

#include "model.h"

#include <pybind11/numpy.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

// a selection of one layer, copied out of llama_infllm_trace_event
struct trace_event {
    int32_t  il;
    int32_t  pos;
    uint32_t n_tokens;
    uint32_t n_page_in;

    std::vector<int32_t> selected; // block indices, best first
    std::vector<float>   scores;   // [n_blocks]
};

// an open session file
class session {
public:
    explicit session(const std::string & path);

    llama_infllm_session * get() const { return ptr.get(); }

    llama_infllm_session_info info() const;
    std::vector<llama_token>  tokens() const;
    py::bytes                 data() const;

    void verify() const; // reads all blocks; throws if one is damaged

private:
    std::unique_ptr<llama_infllm_session, void (*)(llama_infllm_session *)> ptr { nullptr, llama_infllm_session_free };
};

// one llama_context with one sequence; not thread safe, except for stats() and interrupt()
class context {
public:
    context(std::shared_ptr<model> mdl, const context_options & options);

    ~context() {
        if (n_forks != process_n_forks()) { // see ~model()
            ptr.release();
        }
    }

    context(const context &) = delete;

    llama_context * get() const { return ptr.get(); }

    bool has_memory() const { return llama_get_memory(ptr.get()) != nullptr; } // false: what it computes is never added to

    enum outputs { OUTPUTS_NONE, OUTPUTS_LAST, OUTPUTS_ALL };

    // append tokens [n], n <= n_batch, to the sequence
    // throws device_lost when an RPC server stopped to answer; whatever else is thrown, n_past() tells what the memory holds afterwards
    void decode(const std::vector<llama_token> & tokens, outputs out);

    // stop decode() in another thread, or the next one: it throws InterruptedError. A device that cannot be stopped finishes the
    // batch, and what it computed is kept: then the next decode() throws, or interrupt_check()
    void interrupt()       { interrupted = true;  }
    void interrupt_clear() { interrupted = false; }
    void interrupt_check();

    // logits of the last token [n_vocab], or of the last n_rows tokens [n_rows, n_vocab]
    py::array_t<float> logits() const;
    py::array_t<float> logits_rows(size_t n_rows) const;

    // in place of those of the last token, for the sampler
    void set_logits(const py::array_t<float, py::array::c_style | py::array::forcecast> & logits);

    // Embeddings of texts: [n_embd] each, or [n_tokens, n_embd] with pooling_type = none. All of them are one batch: at most n_ubatch
    // tokens, as pooling takes those of one ubatch together, and n_seq_max texts. Nothing is stored afterwards
    std::vector<py::array_t<float>> embed(const std::vector<std::vector<llama_token>> & texts);

    uint32_t n_past() const; // tokens in the memory

    // where the ubatches end of a text from p0 to p1, see llama_infllm_ubatch_end()
    std::vector<uint32_t> ubatch_ends(uint32_t p0, uint32_t p1, bool ends) const;

    void check_tokens(uint32_t n_tokens) const; // throws MemoryError when so many cannot be held

    // seq_rm() and clear() throw device_lost as decode() does: nothing works from then on
    bool seq_rm(int32_t p0); // remove positions p0 and later; false: not possible, nothing changed
    void clear();

    // whether the model has parts that cannot go back by themselves: recurrent states, sliding windows
    bool needs_checkpoints() const;

    // the state of these parts
    py::bytes checkpoint();

    // go back to p0 tokens, at which the checkpoint was made; false: it does not fit, nothing is left
    bool restore(const py::bytes & state, int32_t p0);

    // all of the sequence as bytes
    py::bytes get_state();

    // "", or why they do not fit: then nothing has changed with the InfLLM memory, and all is forgotten without it
    std::string set_state(const py::bytes & state);

    // to and from a file; throw what failed, with nothing changed
    void save_session(const std::string & path, const std::vector<llama_token> & tokens, const py::bytes & data);
    void load_session(const session & from);

    std::optional<llama_infllm_params> infllm_params() const;
    std::optional<llama_infllm_stats>  stats(int32_t il) const;

    void reset_stats() { llama_infllm_reset_stats(ptr.get()); }

    std::string paging_reason(int32_t il) const; // why the host pages what is on a device

    uint32_t check_slots(); // slots that do not hold what the store holds

    // take over all tokens, K and V of a context of the same kind; with the InfLLM memory both share what is stored
    void copy_state_from(const context & src);

    // replay selections: block indices [n_step][n_layer][topk], best first, one step for each ubatch from now on, again from
    // the start when there are no more; empty: select again
    void set_replay(const py::array_t<int32_t, py::array::c_style | py::array::forcecast> & selections);

    void set_trace(bool enabled);
    std::vector<trace_event> take_trace();

private:
    // calls f, which computes, without the GIL
    template <typename F> void compute(F f);

    void run(const llama_batch & batch); // throws as decode() does

    static bool on_abort_check(void * data);
    static void on_trace(const llama_infllm_trace_event * event, void * data);
    static void on_scores(int32_t il, uint32_t n_blocks, float * scores, void * data);

    const uint32_t n_forks = process_n_forks();

    std::shared_ptr<model> mdl; // outlives ptr

    std::unique_ptr<llama_context, void (*)(llama_context *)> ptr { nullptr, llama_free };

    std::atomic<bool> interrupted { false }; // by interrupt(), and not reported yet

    bool is_raised = false; // a signal handler has raised an exception during this decode()

    bool is_lost = false; // a device does not answer any more

    bool is_main_thread = false; // only there does Python handle signals
    std::chrono::steady_clock::time_point t_check; // of the last look at the signals

    std::vector<trace_event> trace;

    struct {
        std::vector<int32_t> blocks; // [n_step][n_layer][topk]
        size_t n_step  = 0;
        size_t n_layer = 0;
        size_t topk    = 0;
        size_t step    = 0;
    } replay;
};
