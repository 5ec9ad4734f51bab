#pragma once

#include "pager.h"

#include <cstddef>

struct ggml_tensor;

namespace infllm {

// Who pages: its side of the page op, and what comes between ubatches. One pager serves the layers on one device, that of the
// host all that no device pages. Every call comes from the thread that computes, but for those of alloc() and free(), which another
// thread may make beside it.
struct pager;

// the blocks [block0, block0 + n_block) of a sequence leave the ring; all before them are in the store. The mean of the keys is
// taken from the first ones, and known when there are any before
struct store_job {
    uint32_t seq;
    uint32_t block0;
    uint32_t n_block;
    uint32_t n_tokens; // of the sequence

    uint8_t * const * data; // [n_block] where they go, in memory from alloc()
};

struct pager_api {
    // memory that host and device share, at one address; nullptr when there is none left
    void * (*alloc)(size_t size);
    void   (*free )(void * ptr);

    pager * (*create )(const pager_layer * layers, uint32_t n_layer, uint32_t n_seq, uint64_t block_bytes);
    void    (*destroy)(pager * p);

    // store() returns when the next graph may start. The data of stored blocks may arrive later: page ops wait for it by
    // themselves, the host by wait().
    void (*store)(pager * p, const store_job & job);
    void (*wait )(pager * p);

    // a ggml_custom_op_t, to be told apart by its address
    //   src[0] I32 [PAGER_INFO_SIZE, n_stream]             pager_info
    //   next   F32 [n_embd_head, n_head, n_chunk*n_stream] sums of the queries, per block of positions; missing if they are not summed up
    //   next   F32 [n_row, n_sub, n_stream]                scores; missing while nothing is stored, or as the layer before selects
    //   userdata                                           page_op
    void (*page)(ggml_tensor * dst, int ith, int nth, void * userdata);
};

struct page_op {
    pager             * p;
    const pager_layer * layer;
    bool                again;    // select what the layer before has selected
    bool                sum_only; // take up the queries alone, of a layer that is paged with one before it

    // layers that select the same, which the host pages with this one: of a device without a pager, that saves splits of the graph
    const pager_layer * const * followers;
    uint32_t                    n_follower;
};

// why the code in pager.h cannot handle such a layer, nullptr if it can
inline const char * pager_refuses(const pager_layer & l) {
    const uint64_t max_scratch = 36*1024; // of the 48 KiB that every CUDA device has, less page_scratch
    return l.type_k != KV_F16 && l.n_embd_head_k > PAGER_MAX_HEAD ? "heads of quantised K have more than 256 values" :
           l.type_k != KV_F16 && l.n_embd_head_k%32 != 0       ? "heads with quantised K are not a multiple of 32 values" :
           page_scratch::size(l) > max_scratch                 ? "topk and max_cached_blocks are too large for its shared memory" :
           store_scratch::size(l) > max_scratch                ? "keys of a token and n_repr are too large for its shared memory" :
                                                                 nullptr;
}

} // namespace infllm
