#include "../infllm/pager-api.h"

#include "ggml.h"

#include <algorithm>
#include <cstdlib>
#include <vector>

namespace infllm {

// the layers of the CPU
struct pager {
    std::vector<pager_layer> layers;
    std::vector<uint64_t>    scratch;
};

static pager * create(const pager_layer * layers, uint32_t n_layer, uint32_t n_seq, uint64_t block_bytes) {
    GGML_UNUSED(n_seq);
    GGML_UNUSED(block_bytes);

    auto * res = new pager { { layers, layers + n_layer }, {} };
    uint64_t size = 0;
    for (const auto & l : res->layers) {
        size = std::max({ size, page_scratch::size(l), store_scratch::size(l) });
    }
    res->scratch.resize(size/sizeof(uint64_t) + 1);
    return res;
}

static void destroy(pager * p) {
    delete p;
}

static void store(pager * p, const store_job & job) {
    for (const auto & l : p->layers) {
        store_scratch scratch;
        scratch.init(l, p->scratch.data());
        for (uint32_t i = 0; i < job.n_block; ++i) {
            const uint32_t block = job.block0 + i;
            pager_store(single_thread(), l, job.seq, block, last_query_block(l.cells, block, job.n_tokens), job.block0 > 0,
                    job.data[i], scratch);
        }
    }
}

static void wait(pager * p) {
    GGML_UNUSED(p);
}

static void page(ggml_tensor * dst, int ith, int nth, void * userdata) {
    GGML_UNUSED(nth);

    if (ith > 0) {
        return;
    }

    const auto * op     = static_cast<const page_op *>(userdata);
    const bool   sums   = op->layer->n_chunk > 0;
    const auto * info   = static_cast<const pager_info *>(dst->src[0]->data);
    const auto * q      = sums ? dst->src[1] : nullptr;
    const auto * scores = dst->src[sums ? 2 : 1];

    page_scratch scratch = {};
    scratch.init(*op->layer, op->p->scratch.data());
    page_select(single_thread(), *op->layer, *info, q ? static_cast<const float *>(q->data) : nullptr,
            q ? q->nb[1]/sizeof(float) : 0, q ? q->nb[2]/sizeof(float) : 0, scores ? static_cast<float *>(scores->data) : nullptr,
            scores ? scores->ne[0] : 0, scores ? scores->ne[1] : 0, scratch);

    for (uint32_t i = 0; info->n_block > 0 && i < op->layer->cells.n_slot; ++i) {
        page_gather(single_thread(), *op->layer, *info, i, 0, 1);
    }
}

const pager_api & host_pager_api() {
    static const pager_api api = { std::malloc, std::free, create, destroy, store, wait, page };
    return api;
}

} // namespace infllm
