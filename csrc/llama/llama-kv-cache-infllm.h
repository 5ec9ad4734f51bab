#pragma once

#include "llama-infllm-layers.h"
#include "llama-infllm-page-control.h"
#include "llama-infllm-sequence.h"

#include "../infllm/block-store.h"

#include "llama-batch.h"
#include "llama-memory.h"

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

struct llama_model;

class llama_kv_cache_infllm_context;

//
// llama_kv_cache_infllm
//

// A KV cache in two places. The resident buffer [ init | slots | ring ] is on the layer's device and is all that
// attention sees; blocks that leave the local window go to the store in host memory, and come back into a slot when the
// page op of their layer selects them (see llama-infllm-graph.h). While a sequence fits its resident buffer, nothing is
// stored or paged, and the cells are those of a plain KV cache. Every sequence has a resident buffer of its own.

class llama_kv_cache_infllm : public llama_memory_i {
public:
    using params = llama_infllm_memory_params;

    // keys: of the layers; filter: the layers to be held, nullptr for all; reuse: see llama_memory_i
    llama_kv_cache_infllm(
            const llama_model & model,
            const params & params,
            const std::map<int32_t, llama_infllm_key> & keys,
            const layer_filter_cb & filter,
            const layer_reuse_cb & reuse);

    ~llama_kv_cache_infllm() override;

    //
    // llama_memory_i
    //

    llama_memory_context_ptr init_batch(llama_batch_allocr & balloc, uint32_t n_ubatch, bool embd_all) override;
    llama_memory_context_ptr init_full() override;
    llama_memory_context_ptr init_update(llama_context * lctx, bool optimize) override;

    bool get_can_shift() const override;

    void clear(bool data) override;

    bool seq_rm  (llama_seq_id seq_id,                              llama_pos p0, llama_pos p1) override;
    void seq_cp  (llama_seq_id seq_id_src, llama_seq_id seq_id_dst, llama_pos p0, llama_pos p1) override;
    void seq_keep(llama_seq_id seq_id)                                                          override;
    void seq_add (llama_seq_id seq_id,                              llama_pos p0, llama_pos p1, llama_pos shift) override;
    void seq_div (llama_seq_id seq_id,                              llama_pos p0, llama_pos p1, int d) override;

    llama_pos seq_pos_min(llama_seq_id seq_id) const override;
    llama_pos seq_pos_max(llama_seq_id seq_id) const override;

    std::map<ggml_backend_buffer_type_t, size_t> memory_breakdown() const override;

    void state_write(llama_io_write_i & io, llama_seq_id seq_id = -1, llama_state_seq_flags flags = 0) const override;
    void state_read (llama_io_read_i  & io, llama_seq_id seq_id = -1, llama_state_seq_flags flags = 0) override;

    //
    // llama_kv_cache_infllm specific API
    //

    const llama_infllm_layers   & get_layers()   const { return layers; }
    const llama_infllm_selector & get_selector() const { return *layers.selector; }
    llama_infllm_page_control & get_paging()   const { return *paging; }

    const llama_infllm_params & get_params() const { return layers.prm.infllm; }

    // Split a batch into ubatches, and see that all of it can be taken; if not, none, see llama_infllm_last_error(), and nothing
    // is changed. A ubatch has tokens of one sequence, or one token of each of several that follow on each other (streams).
    std::vector<llama_ubatch> prepare(llama_batch_allocr & balloc, uint32_t n_ubatch);

    uint32_t get_n_seq() const { return seqs.size(); }

    const llama_model & get_model() const { return model; }

    // whether positions [p0, p1) of a sequence can be removed: a tail, or nothing
    bool can_rm(llama_seq_id seq_id, llama_pos p0, llama_pos p1) const;

    // whether the ubatch that was computed last begins at p0
    bool is_last_ubatch(llama_seq_id seq_id, llama_pos p0) const;

    // whether a ubatch can have several streams
    bool can_stream() const { return !get_selector().sums_attention() && !has_scores(); }

    // add those of a layer, or of all, to what res has
    bool add_stats(int32_t il, llama_infllm_stats & res) const;
    void reset_stats() { paging->reset_stats(); }

    // why the host pages a layer, or any of them (il < 0), that is on a device; "": it does not, or was asked to
    std::string get_paging_reason(int32_t il) const;

    // why a sequence cannot hold so many tokens in all, by what there is now; empty: it can
    std::string check_tokens(llama_seq_id seq_id, uint32_t n_tokens) const;

    void set_trace(llama_infllm_trace_callback callback, void * user_data) { paging->set_trace(callback, user_data); }

    void set_scores(llama_infllm_score_callback callback, void * user_data);

    // whether scores are given from outside
    bool has_scores() const { return score != nullptr; }

    uint32_t check_slots();

    // a file that has blocks of a sequence, and which nothing else refers to: no other sequence, no fork; nullptr if there is none
    std::shared_ptr<void> get_own_file(llama_seq_id seq_id) const;

    // f says where stored blocks are on disk
    void set_homes(const std::function<void(infllm::block_store & store)> & f) { f(*store); }

private:
    friend class llama_kv_cache_infllm_context;

    const llama_model & model;

    // in the order in which they need each other
    const std::unique_ptr<llama_infllm_page_control> paging;

    llama_infllm_layers layers;

    const std::unique_ptr<infllm::block_store> store;

    std::vector<llama_infllm_sequence> seqs;

    struct stream {
        llama_seq_id seq_id;
        uint32_t     p0; // true position of its first token
    };
    std::vector<stream> last; // ubatch

    // guards what add_stats() reads
    mutable std::mutex    mutex;
    std::vector<uint32_t> seq_tokens;
    std::vector<uint32_t> seq_blocks;
    size_t                store_blocks = 0;
    size_t                store_mapped = 0; // of which in files

    llama_infllm_score_callback score           = nullptr;
    void *                      score_user_data = nullptr;

    void begin_ubatch(const std::vector<stream> & streams, uint32_t n_tokens); // of each

    // Take memory for n_blocks_new more blocks in the store, and for n_block of a sequence; throws, with nothing changed, if there
    // is none.
    void reserve(uint64_t n_blocks_new, uint32_t n_block);

    bool fits_memory(uint64_t n_new) const; // or n_new more blocks have to go to files

    // why n_new more blocks cannot be stored; empty: they can
    std::string check_store(uint64_t n_new) const;

    // something has gone: who pages and what add_stats() says follow
    void update();
    void update_gauges();
};

class llama_kv_cache_infllm_context : public llama_memory_context_i {
public:
    // used for errors
    explicit llama_kv_cache_infllm_context(llama_memory_status status);

    // used to create a full-cache context
    explicit llama_kv_cache_infllm_context(llama_kv_cache_infllm * mem);

    // used to create a batch processing context from a batch
    llama_kv_cache_infllm_context(llama_kv_cache_infllm * mem, std::vector<llama_ubatch> ubatches);

    ~llama_kv_cache_infllm_context() override;

    //
    // llama_memory_context_i
    //

    bool next()  override;
    bool apply() override;

    llama_memory_status  get_status() const override;
    const llama_ubatch & get_ubatch() const override;

    //
    // llama_kv_cache_infllm_context specific API
    //

    const llama_kv_cache_infllm * get_mem()    const { return mem; }
    const llama_infllm_layers   & get_layers() const { return mem->get_layers(); }

    llama_seq_id get_seq_id() const { return streams.empty() ? 0 : streams[0].seq_id; } // of the first stream
    uint32_t     get_n_kv()   const { return n_kv; }    // cells that attention reads
    uint32_t     get_n_block()const { return n_block; } // padded blocks to score, 0 where none are searched

    // streams that the graph of a ubatch has
    uint32_t get_n_stream(const llama_ubatch & ubatch) const;

    uint32_t get_n_chunk(uint32_t n_tokens) const; // blocks of positions that a ubatch of n_tokens can touch

    //
    // input API, for the current ubatch: n tokens of each of n_stream streams
    //

    void set_input_idxs   (ggml_tensor * dst) const; // I64 [n*n_stream] cells to write
    void set_input_kq_mask(ggml_tensor * dst, bool causal) const; // F16/F32 [n_kv, n, 1, n_stream]
    void set_input_w_sum  (ggml_tensor * dst) const; // F32 [n, n_chunk] weights: sum over the block of positions
    void set_input_w_mean (ggml_tensor * dst) const; // F32 [n, n_sub, n_stream] weights: mean over the sub-chunk (n_key instead of n)
    void set_input_window (ggml_tensor * dst) const; // F32 [n_kv, n]     weights: 1 for tokens in the query's local window
    void set_input_q_shift(ggml_tensor * dst) const; // I32 [n*n_stream] rotation that brings each query to one distance
    void set_input_key_idxs (ggml_tensor * dst) const; // I32 [n_key*n_stream] cells of the tokens whose keys are searched for
    void set_input_key_shift(ggml_tensor * dst) const; // I32 [n_key*n_stream] rotation that undoes the RoPE of each
    void set_input_scores (ggml_tensor * dst, int32_t il) const; // F32 [n_repr*n_block_pad, 1] given from outside
    void set_input_info   (ggml_tensor * dst) const; // I32 [PAGER_INFO_SIZE, n_stream] what devices that page must know of the ubatch

private:
    const llama_memory_status status;

    llama_kv_cache_infllm * mem = nullptr;

    size_t i_cur = 0; // the index of the current ubatch

    std::vector<llama_ubatch> ubatches;

    // of the current ubatch
    std::vector<llama_kv_cache_infllm::stream> streams;

    uint32_t n_tokens = 0; // of each
    uint32_t n_kv     = 0; // of the longest
    uint32_t n_block  = 0;

    // blocks that it searches
    uint32_t n_search(const llama_infllm_sequence & seq) const;

    // cells of the resident buffers of all sequences, of which a stream's begin here
    int64_t cell0(const llama_kv_cache_infllm::stream & s) const { return int64_t(s.seq_id)*mem->layers.n_cells_alloc(); }
};
