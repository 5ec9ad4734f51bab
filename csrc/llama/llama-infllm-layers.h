#pragma once

#include "llama-infllm-probe.h"
#include "llama-infllm-selector.h"
#include "llama-infllm.h"

#include "../infllm/pager-layer.h"

#include "llama-memory.h"

#include "ggml-cpp.h"

#include <functional>
#include <map>
#include <unordered_map>
#include <vector>

struct llama_model;

class llama_infllm_page_control;

// what decides how keys are rotated, of a context; see llama_cparams
struct llama_infllm_rope_params {
    float    freq_base;
    float    freq_scale;
    float    ext_factor;
    float    attn_factor;
    float    beta_fast;
    float    beta_slow;
    uint32_t orig_ctx;
    bool     is_long; // the factors of LongRoPE for long contexts
};

struct llama_infllm_memory_params {
    llama_infllm_params infllm; // resolved: no automatic values

    llama_infllm_rope_params rope;

    ggml_type type_k;
    ggml_type type_v;
    bool      rot_v;   // values lie rotated, see llama_infllm_rotates_v()
    bool      offload; // resident buffer on the layer's device, else on the CPU
    uint32_t  n_ubatch;
    uint32_t  n_ctx_seq;
    uint32_t  n_seq_max;
};

struct llama_infllm_layer {
    uint32_t idx; // index in the list
    int32_t  il;  // index in the model

    uint32_t n_embd_head_v;

    bool search; // others select what the layer before has selected

    infllm::pager_layer shape; // no pointers

    ggml_tensor * k; // [n_embd_k_gqa, n_cells_alloc, n_seq_max]
    ggml_tensor * v; // [n_embd_v_gqa, n_cells_alloc, n_seq_max]; nullptr: values are the first part of the keys (MLA)
    // in layers that search
    ggml_tensor * mean; // F32 [n_embd_repr, 1, n_seq_max] mean of the first representative keys, if these are centred
    ggml_tensor * repr; // F16 [n_embd_repr, n_repr*n_block_cap, n_seq_max] representative keys, RoPE undone; another one when it grows

    int32_t rope; // index in ropes, -1: the layer has no RoPE
};

// The layers that the memory holds: their resident buffers, representative keys and RoPE. What they have is the same for all
// sequences.
class llama_infllm_layers {
public:
    // keys: of the layers; filter: the layers to be held, nullptr for all; reuse: see llama_memory_i
    llama_infllm_layers(
            const llama_model & model,
            const llama_infllm_memory_params & params,
            const std::map<int32_t, llama_infllm_key> & keys,
            const llama_memory_i::layer_filter_cb & filter,
            const llama_memory_i::layer_reuse_cb & reuse,
            llama_infllm_page_control & paging);

    const llama_infllm_memory_params prm;

    const infllm::cell_layout cells;

    const bool     remap;       // position = "infllm"
    const uint32_t n_block_max; // of a sequence, padded; 0 if nothing can be offloaded
    const uint32_t n_chunk;     // blocks of positions not yet stored, at most

    const std::unique_ptr<llama_infllm_selector> selector;

    // whether sequences can outgrow the resident buffer at all; if not, no page op is needed
    bool can_page() const { return n_block_max > 0; }

    // whether what comes back from the store has been rounded
    bool is_coded() const { return prm.infllm.type_store != LLAMA_INFLLM_TYPE_STORE_AUTO; }

    const std::vector<llama_infllm_layer> & all() const { return list; }

    bool                       has(int32_t il) const { return map_layer_ids.count(il) > 0; }
    const llama_infllm_layer & get(int32_t il) const { return list[map_layer_ids.at(il)]; }

    uint32_t n_cells_alloc() const { return list[0].k->ne[1]; }
    uint64_t model_sum()     const; // of the weights: other weights, another sum; they are read once
    size_t   block_bytes()   const { return n_bytes; } // of a block of all layers, in the store

    // nullptr if the layer has no RoPE
    const llama_infllm_rope * get_rope(const llama_infllm_layer & l) const { return l.rope < 0 ? nullptr : &ropes[l.rope].rope; }
    bool                      has_rope() const { return !ropes.empty(); }

    // whether keys are weighted after RoPE (see llama_infllm_key): they cannot be moved
    bool has_weighted() const { return is_weighted; }

    // whether t is K or V of some layer, or a view of it, in place
    bool is_resident(const ggml_tensor * t) const;

    // blocks of a sequence that there is room for: representative keys and tables take memory as the context grows
    uint32_t get_n_block_cap() const { return n_block_cap; }

    // make room for n_block blocks of every sequence; false: not enough memory, nothing is changed
    bool grow(uint32_t n_block);

    // Before a sequence is used for the first time. Its part of the tensors has not been touched until then: on the CPU it takes
    // no memory.
    void use_seq(llama_seq_id id);

    void zero();
    void copy_seq(llama_seq_id src, llama_seq_id dst);

    std::map<ggml_backend_buffer_type_t, size_t> memory_breakdown() const;

private:
    // RoPE of some layers, as rotations: by a number of blocks, and back from an offset in the first block
    struct rope_table {
        llama_infllm_rope             rope;
        infllm::block_rotations       block;
        std::vector<infllm::rotation> undo; // [block_size]
    };

    using contexts_buffers = std::vector<std::pair<ggml_context_ptr, ggml_backend_buffer_ptr>>;

    const llama_model & model;

    mutable uint64_t weights_sum = 0; // 0: not known yet

    llama_infllm_page_control & paging;

    std::vector<llama_infllm_layer>      list;
    std::unordered_map<int32_t, int32_t> map_layer_ids; // model layer -> index in list

    std::vector<rope_table> ropes;

    bool     is_weighted = false;
    size_t   n_bytes     = 0;
    uint32_t n_block_cap = 0;

    std::vector<bool> used; // [n_seq_max]

    contexts_buffers ctxs_bufs;
    contexts_buffers ctxs_bufs_blocks; // what grows with the number of blocks

    std::vector<uint8_t> bytes; // work space

    void zero(ggml_tensor * t, llama_seq_id id);

    int32_t add_rope(const llama_infllm_key & key);

    infllm::pager_layer make_shape(const llama_infllm_layer & l, uint32_t n_head, uint32_t n_head_kv, uint32_t n_embd_head_k) const;
};
