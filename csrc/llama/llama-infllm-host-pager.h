#pragma once

#include "../infllm/pager-api.h"

#include <functional>
#include <mutex>
#include <vector>

// The pager of the host: it runs the functions of pager.h on the threads of the graph, for layers in its own memory and for those
// on devices that have no pager.

namespace infllm {

// of a layer in memory of a device: rows of K and V, representative keys and their mean go through them
struct pager_tensors {
    ggml_tensor * k;
    ggml_tensor * v;    // nullptr: values are part of the keys
    ggml_tensor * repr; // may be nullptr
    ggml_tensor * mean; // may be nullptr
};

// what the host's pager is to do beside; called by one thread, within the graph
struct host_pager_hooks {
    // a layer has selected l.chosen, by these scores
    std::function<void(const pager_layer & l, const pager_info & info, const float * scores, uint32_t n_page_in)> on_select;

    // whether a stored block is in a file
    std::function<bool(const uint8_t * block)> in_file;

    std::mutex * mutex; // guards pager_stats
};

const pager_api & host_pager_api();

// hooks must outlive the pager
void host_pager_set_hooks(pager * p, const host_pager_hooks * hooks);

// With published scores: add what the queries of the current ubatch attended within their local window. A ggml_custom_op_t:
//   src[0]   I32 [PAGER_INFO_SIZE] pager_info
//   src[1]   F32 [1, n_kv, n_head]
//   userdata page_op
void host_pager_add_attention(ggml_tensor * dst, int ith, int nth, void * userdata);

// n rows of K, from the positions of block src to those of block dst, in place
void host_rotate_rows(const pager_layer & l, uint8_t * rows, uint32_t n, uint32_t src, uint32_t dst);

// K rows and V rows of a stored block, at the positions of block dst
//   data  the layer's part of the block
void host_load_rows(const pager_layer & l, const uint8_t * data, uint32_t block, uint32_t dst, std::vector<uint8_t> & rows);

} // namespace infllm
