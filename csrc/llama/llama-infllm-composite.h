#pragma once

#include "llama-kv-cache-infllm.h"

#include "llama-kv-cache.h"
#include "llama-memory-recurrent.h"

#include <memory>
#include <vector>

//
// llama_infllm_composite
//

// The memory of a model that is not all full attention, as llama_memory_hybrid and llama_kv_cache_iswa are: its layers with
// full attention have the InfLLM memory, those with a sliding window upstream's KV cache of the window, recurrent ones
// upstream's recurrent memory. All of them see the same ubatches, at the same positions.

class llama_infllm_composite : public llama_memory_i {
public:
    struct parts {
        std::unique_ptr<llama_kv_cache_infllm>  full;
        std::unique_ptr<llama_kv_cache>         swa;  // nullptr: no layer has a window
        std::unique_ptr<llama_memory_recurrent> recr; // nullptr: no layer is recurrent
    };

    llama_infllm_composite(const llama_hparams & hparams, parts parts);

    //
    // llama_memory_i
    //

    llama_memory_context_ptr init_batch(llama_batch_allocr & balloc, uint32_t n_ubatch, bool embd_all) override;
    llama_memory_context_ptr init_full() override;
    llama_memory_context_ptr init_update(llama_context * lctx, bool optimize) override;

    bool get_can_shift() const override;

    void clear(bool data) override;

    // False, and nothing is changed, also where the rest could not be continued: a recurrent state cannot go back, and a window
    // must hold the tokens before. Only where the last ubatch is removed, which may have failed, is the recurrent state of no use
    // any more, and goes: the sequence is empty then, unless a checkpoint is read.
    bool seq_rm  (llama_seq_id seq_id,                              llama_pos p0, llama_pos p1) override;
    void seq_cp  (llama_seq_id seq_id_src, llama_seq_id seq_id_dst, llama_pos p0, llama_pos p1) override;
    void seq_keep(llama_seq_id seq_id)                                                          override;
    void seq_add (llama_seq_id seq_id,                              llama_pos p0, llama_pos p1, llama_pos shift) override;
    void seq_div (llama_seq_id seq_id,                              llama_pos p0, llama_pos p1, int d) override;

    llama_pos seq_pos_min(llama_seq_id seq_id) const override;
    llama_pos seq_pos_max(llama_seq_id seq_id) const override;

    std::map<ggml_backend_buffer_type_t, size_t> memory_breakdown() const override;

    // with LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY what cannot go back by itself: window and recurrent state
    void state_write(llama_io_write_i & io, llama_seq_id seq_id = -1, llama_state_seq_flags flags = 0) const override;
    void state_read (llama_io_read_i  & io, llama_seq_id seq_id = -1, llama_state_seq_flags flags = 0) override;

    //
    // llama_infllm_composite specific API
    //

    llama_kv_cache_infllm  * get_full() const { return mem.full.get(); }
    llama_kv_cache         * get_swa () const { return mem.swa.get(); }
    llama_memory_recurrent * get_recr() const { return mem.recr.get(); }

private:
    const llama_hparams & hparams;

    const parts mem;

    std::vector<llama_memory_i *> all; // the parts that there are

    // whether the window has all that a token at position p attends to
    bool swa_has(llama_seq_id seq_id, llama_pos p) const;
};

class llama_infllm_composite_context : public llama_memory_context_i {
public:
    // used for errors
    explicit llama_infllm_composite_context(llama_memory_status status);

    // used to create a full-cache context
    explicit llama_infllm_composite_context(llama_infllm_composite * mem);

    // used to create an update context
    llama_infllm_composite_context(llama_infllm_composite * mem, llama_context * lctx, bool optimize);

    // used to create a batch processing context from a batch
    llama_infllm_composite_context(
            llama_infllm_composite * mem,
            llama_kv_cache::slot_info_vec_t sinfos_swa,
            std::vector<llama_ubatch> ubatches);

    //
    // llama_memory_context_i
    //

    bool next()  override;
    bool apply() override;

    llama_memory_status  get_status() const override;
    const llama_ubatch & get_ubatch() const override;

    //
    // llama_infllm_composite_context specific API
    //

    const llama_kv_cache_infllm_context  * get_full() const;
    const llama_kv_cache_context         * get_swa () const;
    const llama_memory_recurrent_context * get_recr() const;

private:
    size_t i_cur = 0; // the index of the current ubatch

    std::vector<llama_ubatch> ubatches;

    // nullptr where the memory has no such part
    llama_memory_context_ptr ctx_full;
    llama_memory_context_ptr ctx_swa;
    llama_memory_context_ptr ctx_recr;

    llama_memory_status status;

    void combine_status();
};

// the InfLLM memory, or its context, be it a part or by itself; nullptr: there is none
llama_kv_cache_infllm               * llama_infllm_find(llama_memory_i * memory);
const llama_kv_cache_infllm_context * llama_infllm_find(const llama_memory_context_i * mctx);
