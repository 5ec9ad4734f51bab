#pragma once

#include "../infllm/pager-api.h"
#include "../infllm/rotation.h"
#include "../infllm/slot-table.h"

#include "ggml-backend.h"
#include "ggml-cpp.h"

#include <cstdint>
#include <functional>
#include <map>
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

    // Make the tensors of a layer in ctx; shape has all but its pointers. false: it cannot be paged by its device.
    //   rope       index of its RoPE, -1: none
    //   n_sub_max  sub-chunks of a ubatch
    bool add_layer(const infllm::pager_api & api, ggml_context * ctx, ggml_backend_buffer_type_t buft, uint32_t idx,
            const infllm::pager_layer & shape, ggml_tensor * k, ggml_tensor * v, ggml_tensor * repr, ggml_tensor * mean,
            int32_t rope, uint32_t n_sub_max);

    // Once the tensors are allocated.
    //   block, undo  of RoPE i: rotations to the first position of every block, and back from an offset in a block
    using rotations = std::function<const std::vector<infllm::rotation> & (int32_t i)>;
    bool start(uint64_t block_bytes, const rotations & block, const rotations & undo);

    bool empty() const { return layers.empty(); }

    // how layer idx is paged; nullptr: by the host
    const infllm::pager_api * api(uint32_t idx) const { return find(idx) ? shared : nullptr; }
    infllm::page_op         * op (uint32_t idx, bool again);

    // memory for the store, which devices must be able to read; what cannot be pinned is given all the same, and then
    // is_pinned() is false: the host has to take over
    void * alloc(size_t size);
    void   free (void * ptr);
    bool   is_pinned() const { return pageable.empty(); }

    void set_block(uint32_t seq, uint32_t block, const uint8_t * data, uint32_t frame);

    void store (const infllm::store_job  & job);
    void rotate(const infllm::rotate_job & job);
    void wait();

    // what changes from ubatch to ubatch, from the device and to it; the graph must not be running
    void pull(uint32_t idx, uint32_t seq, infllm::slot_table & slots, std::vector<float> & q_sum) const;
    void push(uint32_t idx, uint32_t seq, infllm::slot_table & slots, const std::vector<float> & q_sum);
    void copy_seq(uint32_t src, uint32_t dst, uint32_t n_block);

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
        ggml_tensor * repr;
        ggml_tensor * mean;
        ggml_tensor * state;  // I8  [pager_state::size, n_seq]
        ggml_tensor * scores; // F32 [n_block_max]
        ggml_tensor * sums;   // F32 [n_block_max, n_sub_max]
        ggml_tensor * chosen; // I32 [topk]
        ggml_tensor * rope_block = nullptr; // F32 [n_rot, n_block_max + 1]
        ggml_tensor * rope_undo  = nullptr; // F32 [n_rot, block_size]
    };

    const layer * find(uint32_t idx) const;
    layer       * find(uint32_t idx);

    const uint32_t n_seq;
    const uint64_t pinned_max;

    const infllm::pager_api * shared = nullptr; // of all layers

    std::vector<layer>           layers;
    std::vector<infllm::pager *> pagers; // one for each buffer type

    infllm::block_ref * blocks = nullptr; // [n_seq][n_block_max]

    uint64_t                   pinned_bytes = 0;
    std::unordered_set<void *> pageable;
    std::map<void *, size_t>   pinned;
};
