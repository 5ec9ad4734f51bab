#pragma once

#include "../infllm/pager-api.h"
#include "../infllm/rotation.h"
#include "../infllm/slot-table.h"

#include "ggml-backend.h"
#include "ggml-cpp.h"

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <unordered_set>
#include <vector>

// Layers whose devices page by themselves (design.md: device-paged), as llama_kv_cache_infllm deals with them. Tensors of
// the device's side of such a layer are made with its K and V, and what host and device share comes from the devices' API.
class llama_infllm_pagers {
public:
    // the API of a device, if it has one: CUDA does; the CPU when force is set, which is for tests
    static const infllm::pager_api * find_api(ggml_backend_buffer_type_t buft, bool force);

    llama_infllm_pagers(uint32_t n_seq, uint64_t pinned_max_bytes);
    ~llama_infllm_pagers();

    llama_infllm_pagers(const llama_infllm_pagers &)             = delete;
    llama_infllm_pagers & operator=(const llama_infllm_pagers &) = delete;

    // Make the tensors of a layer in ctx; shape has all but its pointers. Returns why it cannot be paged by its device, "" if
    // it can.
    //   rope       index of its RoPE, -1: none
    //   n_sub_max  sub-chunks of a ubatch
    std::string add_layer(const infllm::pager_api & api, ggml_context * ctx, ggml_backend_buffer_type_t buft, uint32_t idx,
            const infllm::pager_layer & shape, ggml_tensor * k, ggml_tensor * v, bool search, ggml_tensor * mean,
            int32_t rope, uint32_t n_sub_max);

    // once the tensors are allocated; set_blocks() must follow
    using rotations = std::function<const std::vector<infllm::rotation> & (int32_t i)>; // of RoPE i
    void start(uint64_t block_bytes, const rotations & low, const rotations & high, const rotations & undo);

    // What grows with the number of blocks: make the tensors of a layer for n_block of them in ctx, then, when these are
    // allocated, use them from now on. false: there is not enough memory to share, nothing is changed.
    //   repr       of layer idx, nullptr if it has none
    //   n_stored   [n_seq] blocks in the store
    void make_blocks(ggml_context * ctx, uint32_t idx, uint32_t n_block);
    bool set_blocks (uint32_t n_block, const std::function<ggml_tensor * (uint32_t idx)> & repr, const std::vector<uint32_t> & n_stored);

    bool     empty()       const { return layers.empty(); }
    uint32_t get_n_block() const { return n_block; }

    // how layer idx is paged; nullptr: by the host
    const infllm::pager_api * api(uint32_t idx) const { return find(idx) ? shared : nullptr; }
    infllm::page_op         * op (uint32_t idx, bool again);

    // memory for the store, which devices must be able to read; what cannot be pinned is given all the same, and then
    // why_pageable() says why: the host has to take over
    void *      alloc(size_t size);
    void        free (void * ptr);
    std::string why_pageable() const;

    // ptr, if it is pinned; else pinned memory with the same bytes in its place, nullptr if there still is none
    void * pin(void * ptr, size_t size);

    void set_block(uint32_t seq, uint32_t block, const uint8_t * data);

    void store(const infllm::store_job & job);
    void wait();

    // what changes from ubatch to ubatch, from the device and to it; the graph must not be running
    void pull(uint32_t idx, uint32_t seq, infllm::slot_table & slots, std::vector<float> & q_sum) const;
    void push(uint32_t idx, uint32_t seq, infllm::slot_table & slots, const std::vector<float> & q_sum);
    void copy_seq(uint32_t src, uint32_t dst, uint32_t n_stored);

    infllm::pager_stats get_stats(uint32_t idx) const;
    void                reset_stats();

private:
    struct layer {
        uint32_t idx;
        int32_t  rope;

        ggml_backend_buffer_type_t buft;

        infllm::pager_layer pl;
        infllm::page_op     op;
        infllm::page_op     op_again;

        ggml_tensor * k;
        ggml_tensor * v;
        ggml_tensor * mean;
        ggml_tensor * state;  // I8  [pager_state::size, n_seq]
        ggml_tensor * chosen; // I32 [topk]
        ggml_tensor * scores; // F32 [n_block_max], as made last
        ggml_tensor * sums;   // F32 [n_block_max, n_sub_max], as made last
        ggml_tensor * rope_low  = nullptr; // F32 [n_rot, block_rotations::n_low]
        ggml_tensor * rope_high = nullptr; // F32 [n_rot, block_rotations::n_high]
        ggml_tensor * rope_undo = nullptr; // F32 [n_rot, block_size]

        uint32_t first; // index in layers of the first one on its device
        uint32_t n_sub_max;
    };

    void destroy(std::vector<infllm::pager *> & group);

    void * alloc_pinned(size_t size); // nullptr if there is none

    const layer * find(uint32_t idx) const;
    layer       * find(uint32_t idx);

    const uint32_t n_seq;
    const uint64_t pinned_max;

    const infllm::pager_api * shared = nullptr; // of all layers

    std::vector<layer>           layers;
    std::vector<infllm::pager *> pagers; // one for each buffer type

    uint64_t         block_bytes = 0;
    uint32_t         n_block     = 0;
    const uint8_t ** blocks      = nullptr; // [n_seq][n_block]

    uint64_t                   pinned_bytes = 0;
    bool                       is_limited   = false; // memory that was not pinned would have passed pinned_max
    std::unordered_set<void *> pageable;
    std::map<void *, size_t>   pinned;
};
