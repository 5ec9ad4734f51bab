#pragma once

#include "llama-infllm-host-pager.h"

#include "ggml-backend.h"
#include "ggml-cpp.h"

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

// The pagers of one API, and the layers that they can page: the host's, or those of devices that page by themselves. They own the
// state of these layers (infllm::pager_state): slots, sums, counters. Every layer has a pager of the host; one that its device can
// page, too, goes over from one to the other with take().
class llama_infllm_pagers {
public:
    // the API of a device, if it has one: CUDA does; the CPU when force is set, which is for tests
    static const infllm::pager_api * find_api(ggml_backend_buffer_type_t buft, bool force);

    llama_infllm_pagers(const infllm::pager_api & api, uint32_t n_seq);
    ~llama_infllm_pagers();

    llama_infllm_pagers(const llama_infllm_pagers &)             = delete;
    llama_infllm_pagers & operator=(const llama_infllm_pagers &) = delete;

    struct layer_tensors {
        ggml_tensor * k;
        ggml_tensor * v;    // nullptr: values are part of the keys
        ggml_tensor * mean; // may be nullptr
        bool          search;
    };

    // Make the tensors of a layer in ctx, which will be allocated in a buffer of type buft; shape has all but its pointers. Layers
    // of one type of buffer have one pager. Returns why it cannot be paged, "" if it can.
    //   rope       index of its RoPE, -1: none
    //   n_sub_max  sub-chunks of a ubatch
    std::string add_layer(ggml_context * ctx, ggml_backend_buffer_type_t buft, uint32_t idx, const infllm::pager_layer & shape,
            const layer_tensors & tensors, int32_t rope, uint32_t n_sub_max);

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
    bool     has(uint32_t idx) const { return find(idx) != nullptr; }
    uint32_t get_n_block() const { return n_block; }

    ggml_backend_buffer_type_t get_buft(uint32_t idx) const { return find(idx)->buft; }

    const infllm::pager_layer & get_layer(uint32_t idx) const { return find(idx)->pl; }

    // which layers are paged here from now on; all of them, unless it is said
    void set_active(const std::function<bool(uint32_t idx)> & is_active);

    // of the host's pager; must outlive this
    void set_hooks(const infllm::host_pager_hooks * hooks);

    //
    // the page op
    //

    enum op_kind {
        OP_SEARCH,  // select by scores, and page followers with it, where the host does so
        OP_ALONE,   // select by scores that layers have of their own
        OP_AGAIN,   // select what the layer before has selected
        OP_SUM,     // take up the queries alone, of a follower
    };

    ggml_custom_op_t get_fun() const { return api.page; }

    infllm::page_op * get_op(uint32_t idx, op_kind kind);

    // whether a layer is paged with one before it
    bool is_follower(uint32_t idx) const;

    //
    // between ubatches
    //

    void set_block(uint32_t seq, uint32_t block, const uint8_t * data);

    // for every block that is known: where it lies now
    void move_blocks(const std::function<const uint8_t * (const uint8_t *)> & moved);

    // the same blocks as others, of which there are n_stored [n_seq]
    void take_blocks(const llama_infllm_pagers & from, const std::vector<uint32_t> & n_stored);

    void store(const infllm::store_job & job);
    void wait();

    // read or change the state of a layer and a sequence; the graph must not be running
    using state_fun = std::function<void(const infllm::pager_layer & l, const infllm::pager_state & state)>;
    void read(uint32_t idx, uint32_t seq, const state_fun & f) const;
    void edit(uint32_t idx, uint32_t seq, const state_fun & f);

    // take the state of a layer over from another pager, counters and all
    void take(uint32_t idx, const llama_infllm_pagers & from);

    // the state of all layers, without the counters, and n_stored blocks
    void copy_seq(uint32_t src, uint32_t dst, uint32_t n_stored);

    infllm::pager_stats get_stats(uint32_t idx) const;
    void                reset_stats();

private:
    struct layer {
        uint32_t idx;
        int32_t  rope;
        bool     search;
        bool     active = true;

        ggml_backend_buffer_type_t buft;

        infllm::pager_layer   pl;
        infllm::pager_tensors tensors;
        infllm::page_op       ops[4]; // by op_kind

        std::vector<const infllm::pager_layer *> followers;

        bool is_follower = false;

        ggml_tensor * state;  // I8  [pager_state::size, n_seq]
        ggml_tensor * chosen; // I32 [topk, n_seq]
        ggml_tensor * scores; // F32 [n_block_max, n_seq], as made last
        ggml_tensor * sums;   // F32 [n_block_max, n_sub_max], as made last
        ggml_tensor * rope_low  = nullptr; // F32 [n_rot, block_rotations::n_low]
        ggml_tensor * rope_high = nullptr; // F32 [n_rot, block_rotations::n_high]
        ggml_tensor * rope_undo = nullptr; // F32 [n_rot, block_size]

        uint32_t group; // index in layers of the first one on its device
        uint32_t n_sub_max;
    };

    // pagers for layers with these shapes, in the order of layers; empty: there is not enough memory
    std::vector<infllm::pager *> create(const std::vector<infllm::pager_layer> & pls) const;
    void destroy(std::vector<infllm::pager *> & pagers) const;
    void use(std::vector<infllm::pager *> pagers_of);
    void set_firsts(std::vector<infllm::pager_layer> & pls) const;

    const layer * find(uint32_t idx) const;
    layer       * find(uint32_t idx);

    const infllm::pager_api & api;
    const uint32_t            n_seq;
    const bool                is_host;

    std::vector<std::unique_ptr<layer>> layers;
    std::vector<infllm::pager *>        pagers; // [layers] some the same

    const infllm::host_pager_hooks * hooks = nullptr;

    uint64_t         block_bytes = 0;
    uint32_t         n_block     = 0;
    const uint8_t ** blocks      = nullptr; // [n_seq][n_block]
};
