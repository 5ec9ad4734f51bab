#pragma once

#include "llama-infllm-pagers.h"
#include "llama-infllm-rope.h"
#include "llama-infllm.h"

#include "../infllm/block-store.h"
#include "../infllm/cell-layout.h"
#include "../infllm/slot-table.h"

#include "llama-batch.h"
#include "llama-memory.h"

#include "ggml-cpp.h"

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

struct llama_cparams;
struct llama_model;

class llama_kv_cache_infllm_context;

//
// llama_kv_cache_infllm
//

// A KV cache in two places. The resident buffer [ init | slots | ring ] is on the layer's device and is all that
// attention sees; blocks that leave the local window go to the store in host memory, and come back into a slot when the
// page op of their layer selects them (see llama-infllm-graph.h). While a sequence fits its resident buffer, nothing is
// stored or paged, and the cells are those of a plain KV cache. Every sequence has a resident buffer of its own.
//
// A sequence holds the positions 0 .. n_tokens-1, without gaps. All blocks [0, n_offload) are in the store, everything
// after them is in the ring; n_offload > 0 is called paging below, and then every slot holds one of the stored blocks.

class llama_kv_cache_infllm : public llama_memory_i {
public:
    struct params {
        llama_infllm_params infllm; // resolved: no automatic values

        ggml_type type_k;
        ggml_type type_v;
        bool      rot_v;   // values lie rotated, see llama_infllm_rotates_v()
        bool      offload; // resident buffer on the layer's device, else on the CPU
        uint32_t  n_ubatch;
        uint32_t  n_ctx_seq;
        uint32_t  n_seq_max;
    };

    // filter: the layers to be held, nullptr for all; reuse: see llama_memory_i
    llama_kv_cache_infllm(
            const llama_model & model,
            const llama_cparams & cparams,
            const params & params,
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
    [[noreturn]] void state_read (llama_io_read_i  & io, llama_seq_id seq_id = -1, llama_state_seq_flags flags = 0) override;

    //
    // llama_kv_cache_infllm specific API
    //

    const llama_infllm_params & get_params() const { return prm.infllm; }

    // Split a batch into ubatches of one sequence, and see that all of it can be taken; if not, none, see
    // llama_infllm_last_error(), and nothing is changed.
    std::vector<llama_ubatch> prepare(llama_batch_allocr & balloc, uint32_t n_ubatch);

    uint32_t get_n_seq() const { return seqs.size(); }

    // whether positions [p0, p1) of a sequence can be removed: a tail, or nothing
    bool can_rm(llama_seq_id seq_id, llama_pos p0, llama_pos p1) const;

    // whether the ubatch that was computed last begins at p0
    bool is_last_ubatch(llama_seq_id seq_id, llama_pos p0) const { return cur.seq_id == seq_id && llama_pos(cur.p0) == p0; }

    bool get_stats(int32_t il, llama_infllm_stats & stats) const;
    void reset_stats();

    // why the host pages a layer, or any of them (il < 0), that is on a device; "": it does not, or was asked to
    std::string get_paging_reason(int32_t il) const;

    // why a sequence cannot hold so many tokens in all, by what there is now; empty: it can
    std::string check_tokens(llama_seq_id seq_id, uint32_t n_tokens) const;

    void set_trace(llama_infllm_trace_callback callback, void * user_data);

    void set_scores(llama_infllm_score_callback callback, void * user_data);

    uint32_t check_slots();

    //
    // graph_build API
    //

    struct layer {
        llama_kv_cache_infllm * mem;

        uint32_t idx; // index in layers
        int32_t  il;  // index in the model

        uint32_t n_head;
        uint32_t n_head_kv;
        uint32_t n_embd_head_k;
        uint32_t n_embd_head_v;
        uint32_t n_head_repr; // heads of the representative keys: n_head_kv, n_head with published scores

        bool search; // others select what the layer before has selected

        ggml_tensor * k;    // [n_embd_k_gqa, n_cells_alloc, n_seq_max]
        ggml_tensor * v;    // [n_embd_v_gqa, n_cells_alloc, n_seq_max]
        // in layers that search
        ggml_tensor * mean; // F32 [n_embd_k_gqa, 1, n_seq_max] mean of the first representative keys, with search = keys
        ggml_tensor * repr; // F16 [n_embd_head_k*n_head_repr, n_repr*n_block_cap, n_seq_max] representative keys, RoPE undone,
                            //   centred with search = keys; another one when it grows

        int32_t rope; // index in ropes, -1: the layer has no RoPE

        // bytes of a block of this layer in the store: K rows, V rows, sums F32 [n_sum]
        size_t offset;
        size_t size_k;
        size_t size_v;

        // What the representative keys of a block are chosen by, of each block of positions: the sum of its queries
        // [n_head_kv][n_embd_head_k]; with published scores the attention that its tokens got [n_head][block_size]; 0: all
        // keys are averaged
        uint32_t n_sum;

        size_t size() const { return size_k + size_v + n_sum*sizeof(float); }
    };

    const layer & get_layer(int32_t il) const { return layers[map_layer_ids.at(il)]; }

    // nullptr if the layer has no RoPE
    const llama_infllm_rope * get_rope(const layer & l) const;

    // whether sequences can outgrow the resident buffer at all; if not, no page op is needed
    bool can_page() const { return n_block_max > 0; }

    bool rotates_v() const { return prm.rot_v; }

    // blocks that there is room for, of a sequence: representative keys and tables take memory as the context grows
    uint32_t get_n_block_cap() const { return n_block_cap; }

    // whether t is K or V of some layer, or a view of it, in place
    bool is_resident(const ggml_tensor * t) const;

    // the scheduler of the graphs, so that host access to device buffers can wait for it
    void set_sched(ggml_backend_sched_t sched_cur) { sched = sched_cur; }

    // the page op of layers whose device pages by itself, else nullptr
    const infllm::pager_api * get_pager_api(const layer & l) const { return has_pagers() ? pagers->api(l.idx) : nullptr; }
    infllm::page_op         * get_page_op  (const layer & l, bool again) const {
        return has_pagers() ? pagers->op(l.idx, again) : nullptr;
    }

    // whether devices page now
    bool has_pagers() const { return pagers && why_host.empty(); }

    // whether the attention that each token gets is to be summed up
    bool published() const { return prm.infllm.scores == LLAMA_INFLLM_SCORES_PUBLISHED; }

    // whether the queries of each block of positions are summed up, to choose the tokens of representative keys
    bool sums_queries() const { return !published() && prm.infllm.n_repr*prm.infllm.repr_topk < prm.infllm.block_size; }

    // whether blocks are scored by the keys of the current tokens
    bool by_keys() const { return prm.infllm.search == LLAMA_INFLLM_SEARCH_KEYS; }

    // tokens at the end of a text that are a ubatch of their own, see text-split.h; by queries a sub-chunk is the end already
    uint32_t n_end() const { return by_keys() ? 2*prm.infllm.n_score : 0; }

    // Lengths of the sub-chunks that a ubatch is scored by, tokens. One that may be a question is searched for by keys of two
    // representative keys' length as well, where these are shorter: strings that are looked up drown in n_score tokens.
    std::vector<uint32_t> sub_lengths(uint32_t n_tokens) const;

    uint32_t get_n_sub(uint32_t n_tokens) const; // sub-chunks of a ubatch

    // whether scores are given from outside
    bool has_scores() const { return score != nullptr; }

    // whether layers agree on the relevance of blocks
    bool agree() const { return by_keys() && !has_scores(); }

    // the page op of other layers: take up the queries of the current ubatch, select, page in
    //   q_sum  F32 [n_embd_head_k, n_head, n_chunk] or nullptr: sums of the queries, per block of positions
    //   scores F32 [n_repr*n_block_pad, n_sub]      or nullptr: the layer follows one that has selected, see relevance.h
    void page(const layer & l, const ggml_tensor * q_sum, const ggml_tensor * scores);

    // with published scores: add what the queries of the current ubatch attended within their local window
    //   attn   F32 [1, n_kv, n_head]
    void add_attention(const layer & l, const ggml_tensor * attn);

private:
    friend class llama_kv_cache_infllm_context;

    struct sequence {
        uint32_t n_tokens = 0;
        uint32_t shift    = 0;     // with position = infllm: init tokens and slots are so many blocks behind their own positions
        bool     stale    = false; // slots must be loaded before they are read

        std::vector<int32_t>              blocks; // [n_offload] ids in the store
        std::vector<infllm::slot_table>   slots;  // [n_layer]
        std::vector<std::vector<float>>   means;  // [n_layer][n_embd_k_gqa] what layer::mean holds, where a layer has it
        std::vector<std::vector<uint8_t>> init_k; // [n_layer] keys of the init tokens at their own positions, once paging

        // [n_layer][n_chunk][n_sum]: sums of each block of positions not yet stored
        std::vector<std::vector<float>> sums;

        uint32_t n_offload() const { return blocks.size(); }
        bool     paging()    const { return !blocks.empty(); }
    };

    // what apply() tells the page ops of the ubatch
    struct ubatch_info {
        llama_seq_id seq_id   = -1;
        uint32_t     p0       = 0;
        uint32_t     n_tokens = 0;

        infllm::pager_place place = infllm::PLACE_UPDATE;
    };

    // RoPE of some layers, as rotations: by a number of blocks, and back from an offset in the first block
    struct rope_table {
        llama_infllm_rope             rope;
        infllm::block_rotations       block;
        std::vector<infllm::rotation> undo; // [block_size]
    };

    struct counters {
        uint64_t n_select       = 0;
        uint64_t n_selected     = 0;
        uint64_t n_page_in      = 0; // of the selected blocks
        uint64_t bytes_paged_in = 0;
    };

    const llama_model & model;

    const params prm;

    const infllm::cell_layout cells;

    const bool     remap;       // position = "infllm"
    const uint32_t n_block_max; // of a sequence, padded; 0 if nothing can be offloaded. n_block_cap grows up to it
    const uint32_t n_chunk;     // blocks of positions with sums not yet stored, at most

    using contexts_buffers = std::vector<std::pair<ggml_context_ptr, ggml_backend_buffer_ptr>>;

    contexts_buffers ctxs_bufs;
    contexts_buffers ctxs_bufs_blocks; // what grows with the number of blocks

    uint32_t n_block_cap = 0;

    std::vector<layer>                   layers;
    std::unordered_map<int32_t, int32_t> map_layer_ids; // model layer -> index in layers

    std::vector<rope_table> ropes;
    std::vector<sequence>   seqs;

    std::unique_ptr<llama_infllm_pagers> pagers; // nullptr if there are none

    // who pages a layer
    struct layer_paging {
        bool        has_pager; // its device has one
        std::string why_host;  // but never pages this layer; "": it does, or was not asked to
    };
    std::vector<layer_paging> paging; // [n_layer]

    std::string why_host;        // the host pages for all layers now; "": it does not
    bool        can_end = false; // what kept the devices from paging may have come to an end

    std::unique_ptr<infllm::block_store> store;

    ggml_backend_sched_t sched = nullptr;

    ubatch_info cur;

    // Slots before cur: what is computed again after a failure must find them as they were. Only a single token, since for more
    // the slots are filled anew.
    std::vector<infllm::slot_table> slots_before; // [n_layer]; empty: nothing to restore

    // guards what get_stats() reads
    mutable std::mutex    mutex;
    std::vector<counters> stats; // [n_layer]
    std::vector<uint32_t> seq_tokens;
    std::vector<uint32_t> seq_blocks;
    size_t                store_blocks = 0;

    llama_infllm_trace_callback trace           = nullptr;
    void *                      trace_user_data = nullptr;
    llama_infllm_score_callback score           = nullptr;
    void *                      score_user_data = nullptr;

    // work space of the page op
    std::vector<float>                       sums;         // [n_sub][n_block] of a ubatch, see block_relevance()
    std::vector<float>                       scores_block;
    std::vector<int32_t>                     selected;     // by the last layer that the host pages; empty: none yet
    std::vector<infllm::page_in>             page_ins;
    std::vector<float>                       rows;
    std::vector<uint16_t>                    repr_rows;
    std::vector<uint8_t>                     bytes;

    //
    // state of a sequence
    //

    void begin_ubatch(const ubatch_info & info);
    void offload   (llama_seq_id seq_id, uint32_t n_offload);
    void set_mean  (llama_seq_id seq_id);
    void set_shift (llama_seq_id seq_id, uint32_t shift); // slots are stale afterwards, if it is another one
    void load_slots(llama_seq_id seq_id);
    void truncate  (llama_seq_id seq_id, uint32_t n_tokens);
    void reset     (llama_seq_id seq_id);

    // why n_new more blocks cannot be stored; empty: they can
    std::string check_store(uint64_t n_new) const;

    // make room for n_block blocks of every sequence; false: not enough memory, nothing is changed
    bool grow(uint32_t n_block);

    // Where layers agree on what is relevant, few of them are enough to find it: the others have no representative keys, and
    // select what the layer before has selected.
    bool searches(uint32_t idx) const { return !by_keys() || idx%3 == 0; }

    // the best blocks, from products of representative keys
    void select(const sequence & seq, const ggml_tensor & scores);
    void page_in(const layer & l, sequence & seq); // what is selected

    void update_gauges();

    // returns why the layer cannot be paged by its device, "" if it can
    std::string add_pager_layer(ggml_context * ctx, ggml_backend_dev_t dev, const infllm::pager_api * api, const layer & l, bool search);

    // state of the layers whose devices page, to the host's tables and back
    void pull_state(llama_seq_id seq_id);
    void push_state(llama_seq_id seq_id);

    // counters of a layer, with those that its device keeps
    counters get_counters(const layer & l) const;

    // Who pages from now on: the devices, unless something keeps them from it, and again when that has ended. Both sides go on
    // from the same state.
    void update_paging();
    void page_by_host(const std::string & why);
    bool page_by_devices(); // false: there is not enough memory to share

    //
    // data movement, one layer
    //

    // K and V rows of a stored block, rotated to the positions of block dst; valid until the next call
    struct block_rows {
        const uint8_t * k;
        const uint8_t * v;
    };
    block_rows get_rows(const layer & l, llama_seq_id seq_id, uint32_t block, uint32_t dst);

    void store_block(const layer & l, llama_seq_id seq_id, uint32_t block, bool centre);
    void load_slot  (const layer & l, llama_seq_id seq_id, uint32_t slot, uint32_t block);

    // the block whose positions a block has in a slot
    uint32_t slot_block(llama_seq_id seq_id, uint32_t slot, uint32_t block) const;

    void load_block (const layer & l, llama_seq_id seq_id, uint32_t block, uint32_t cell, uint32_t dst);

    void rotate_rows(const layer & l, uint8_t * data, uint32_t n, const infllm::rotation & rot);

    float * get_sums(const layer & l, sequence & seq, uint32_t block);

    void synchronize();
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

    llama_kv_cache_infllm * get_mem() const { return mem; }

    llama_seq_id get_seq_id() const { return seq_id; }
    uint32_t     get_n_kv()   const { return n_kv; }    // cells that attention reads
    uint32_t     get_n_block()const { return n_block; } // padded blocks to score, 0 while nothing is paged

    uint32_t get_n_chunk(uint32_t n_tokens) const; // blocks of positions that a ubatch of n_tokens can touch
    uint32_t get_n_sub  (uint32_t n_tokens) const; // sub-chunks that it is scored by
    uint32_t get_n_key  (uint32_t n_tokens) const; // tokens of whole sub-chunks, with some before the ubatch

    //
    // input API, for the current ubatch of n tokens
    //

    void set_input_idxs   (ggml_tensor * dst) const; // I64 [n] cells to write
    void set_input_kq_mask(ggml_tensor * dst, bool causal) const; // F16/F32 [n_kv, n]
    void set_input_w_sum  (ggml_tensor * dst) const; // F32 [n, n_chunk] weights: sum over the block of positions
    void set_input_w_mean (ggml_tensor * dst) const; // F32 [n, n_sub]   weights: mean over the sub-chunk (n_key instead of n)
    void set_input_window (ggml_tensor * dst) const; // F32 [n_kv, n]     weights: 1 for tokens in the query's local window
    void set_input_q_shift(ggml_tensor * dst) const; // I32 [n] rotation that brings each query to one distance
    void set_input_key_idxs (ggml_tensor * dst) const; // I32 [n_key] cells of the tokens whose keys are searched for
    void set_input_key_shift(ggml_tensor * dst) const; // I32 [n_key] rotation that undoes the RoPE of each
    void set_input_scores (ggml_tensor * dst, int32_t il) const; // F32 [n_repr*n_block_pad, 1] given from outside
    void set_input_info   (ggml_tensor * dst) const; // I32 [PAGER_INFO_SIZE] what devices that page must know of the ubatch

private:
    const llama_memory_status status;

    llama_kv_cache_infllm * mem = nullptr;

    size_t i_cur = 0; // the index of the current ubatch

    std::vector<llama_ubatch> ubatches;

    // of the current ubatch
    llama_seq_id seq_id  = 0;
    uint32_t     p0      = 0; // true position of its first token
    uint32_t     n_kv    = 0;
    uint32_t     n_block = 0;
};
