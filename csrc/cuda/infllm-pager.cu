// The pager of CUDA devices: the functions of pager.h as kernels. Selection, slot bookkeeping and copies run in the stream of
// the graph, with nothing read by the host; stored blocks lie in pinned host memory that kernels read over the bus.

#include "infllm-cuda.cuh"

#include "../infllm/pager-api.h"

#include "common.cuh"

#include <algorithm>
#include <atomic>
#include <numeric>
#include <vector>

namespace infllm {

static constexpr uint32_t N_THREADS_SELECT = 1024;
static constexpr uint32_t N_THREADS        = 256;
static constexpr uint32_t N_PART           = 8;  // thread blocks that copy a block, so that the loads in flight fill the bus

// blocks on their way to the host
static constexpr uint32_t N_STAGED_MAX     = 16;
static constexpr uint64_t STAGED_BYTES_MAX = 64u << 20;

struct thread_block {
    __device__ uint32_t rank() const { return threadIdx.x; }
    __device__ uint32_t size() const { return blockDim.x; }
    __device__ void     sync() const { __syncthreads(); }
    __device__ uint32_t add(uint32_t * p, uint32_t n) const { return atomicAdd(p, n); }
};

//
// kernels
//

// a thread block for each stream
static __global__ void __launch_bounds__(N_THREADS_SELECT) select_kernel(
        const pager_layer l, const pager_info * infos, const float * q, const uint32_t q_nb1, const uint32_t q_nb2, const uint64_t q_stream,
        float * scores, const uint32_t n_row, const uint32_t n_sub, const uint64_t scores_stream, const bool gather) {
    extern __shared__ uint64_t data[];
    __shared__ page_scratch scratch;

    const pager_info & info = infos[blockIdx.x];

    if (threadIdx.x == 0) {
        scratch.init(l, data);
    }
    __syncthreads();
    page_select(thread_block(), l, info, q ? q + blockIdx.x*q_stream : nullptr, q_nb1, q_nb2,
            scores ? scores + blockIdx.x*scores_stream : nullptr, n_row, n_sub, scratch);
    if (threadIdx.x == 0 && gather) {
        page_count(l, info);
    }
}

// blocks may still be on their way to the host: n_stored have arrived
static __device__ void wait_for_block(const uint32_t * n_stored, uint32_t block) {
    if (threadIdx.x == 0) {
        while (*(const volatile uint32_t *) n_stored <= block) {
#if __CUDA_ARCH__ >= 700
            __nanosleep(200);
#endif
        }
        __threadfence_system();
    }
    __syncthreads();
}

static __global__ void gather_kernel(const pager_layer l, const pager_info * infos, const uint32_t * n_stored) {
    const pager_info & info = infos[blockIdx.y];
    const uint32_t     seq  = info.seq;
    const uint32_t     i    = blockIdx.x/N_PART;

    const pager_state state = pager_state::of(l, seq);
    if (i >= *state.n_page_in) {
        return;
    }
    wait_for_block(n_stored + seq, state.page_ins[i].block);
    page_gather(thread_block(), l, info, i, blockIdx.x%N_PART, N_PART);
}

static __global__ void store_kernel(
        const pager_layer * layers, const uint32_t seq, const uint32_t block0, const uint32_t n_tokens, const bool centre,
        uint8_t * staging, const uint64_t begin, const uint64_t size) {
    extern __shared__ uint64_t data[];

    const pager_layer & l = layers[blockIdx.y];

    store_scratch scratch;
    scratch.init(l, data);

    const uint32_t block = block0 + blockIdx.x;
    pager_store(thread_block(), l, seq, block, last_query_block(l.cells, block, n_tokens), centre,
            staging + blockIdx.x*size - begin, scratch);
}

//
// the pager
//

// Two streams of its own: what must be done before the next graph starts, and copies to the host that may overlap it.
struct pager {
    int device;

    std::vector<pager_layer> layers;

    uint64_t begin; // of the layers' part of a stored block
    uint64_t size;
    uint32_t n_staged; // parts of blocks that staging has room for
    uint64_t store_smem;

    pager_layer * d_layers = nullptr;
    uint32_t    * n_stored = nullptr; // [n_seq] blocks that have arrived in the store
    uint32_t    * numbers  = nullptr; // [n_block_max + 1] 0, 1, 2, .. in pinned memory: what n_stored is set from
    uint8_t     * staging  = nullptr; // [n_staged] parts of blocks

    cudaStream_t stream      = nullptr;
    cudaStream_t stream_copy = nullptr;
    cudaEvent_t  staged      = nullptr;
    cudaEvent_t  copied      = nullptr;
};

// Threads other than the one that computes take memory ahead. Any device will do that is in use: memory is shared with all of them,
// and a thread that has none set would begin to use the first one.
static std::atomic<int> device_in_use { 0 };

static void * alloc(size_t size) {
    ggml_cuda_set_device(device_in_use);
    void * ptr = nullptr;
    if (cudaHostAlloc(&ptr, size, cudaHostAllocPortable | cudaHostAllocMapped) != cudaSuccess) {
        (void) cudaGetLastError();
        return nullptr;
    }
    return ptr;
}

static void free(void * ptr) {
    CUDA_CHECK(cudaFreeHost(ptr));
}

static void destroy(pager * p) {
    ggml_cuda_set_device(p->device);
    if (p->stream) {
        CUDA_CHECK(cudaStreamSynchronize(p->stream));
        CUDA_CHECK(cudaStreamDestroy(p->stream));
    }
    if (p->stream_copy) {
        CUDA_CHECK(cudaStreamSynchronize(p->stream_copy));
        CUDA_CHECK(cudaStreamDestroy(p->stream_copy));
    }
    for (cudaEvent_t event : { p->staged, p->copied }) {
        if (event) {
            CUDA_CHECK(cudaEventDestroy(event));
        }
    }
    if (p->numbers) {
        free(p->numbers);
    }
    CUDA_CHECK(cudaFree(p->d_layers));
    CUDA_CHECK(cudaFree(p->n_stored));
    CUDA_CHECK(cudaFree(p->staging));
    delete p;
}

static pager * create(const pager_layer * layers, uint32_t n_layer, uint32_t n_seq, uint64_t block_bytes) {
    cudaPointerAttributes attr;
    CUDA_CHECK(cudaPointerGetAttributes(&attr, layers[0].k));

    auto * p = new pager;
    p->device     = attr.device;
    device_in_use = attr.device;
    p->layers     = { layers, layers + n_layer };
    p->begin      = block_bytes;
    p->store_smem = 0;

    uint64_t end = 0;
    uint64_t sum = 0;
    for (const auto & l : p->layers) {
        p->begin      = std::min(p->begin, l.offset);
        end           = std::max(end, l.offset + l.size());
        sum          += l.size();
        p->store_smem = std::max(p->store_smem, store_scratch::size(l));
    }
    p->size     = end - p->begin;
    p->n_staged = std::clamp<uint64_t>(STAGED_BYTES_MAX/p->size, 2, N_STAGED_MAX);

    // it is copied in one piece, which must not hold what the host stores there
    if (sum != p->size) {
        delete p;
        return nullptr;
    }

    const uint32_t n_block_max = p->layers[0].n_block_max;

    ggml_cuda_set_device(p->device);
    p->numbers = static_cast<uint32_t *>(alloc((n_block_max + 1)*sizeof(uint32_t)));
    const bool ok = p->numbers &&
        cudaMalloc(&p->d_layers, n_layer*sizeof(pager_layer)) == cudaSuccess &&
        cudaMalloc(&p->n_stored, n_seq*sizeof(uint32_t))      == cudaSuccess &&
        cudaMalloc(&p->staging,  p->n_staged*p->size)         == cudaSuccess;
    if (!ok) {
        (void) cudaGetLastError();
        destroy(p);
        return nullptr;
    }
    std::iota(p->numbers, p->numbers + n_block_max + 1, 0u);
    CUDA_CHECK(cudaMemcpy(p->d_layers, layers, n_layer*sizeof(pager_layer), cudaMemcpyHostToDevice));
    CUDA_CHECK(cudaMemset(p->n_stored, 0, n_seq*sizeof(uint32_t)));
    CUDA_CHECK(cudaStreamCreateWithFlags(&p->stream,      cudaStreamNonBlocking));
    CUDA_CHECK(cudaStreamCreateWithFlags(&p->stream_copy, cudaStreamNonBlocking));
    CUDA_CHECK(cudaEventCreateWithFlags(&p->staged, cudaEventDisableTiming));
    CUDA_CHECK(cudaEventCreateWithFlags(&p->copied, cudaEventDisableTiming));
    return p;
}

// By a copy engine, not by a kernel: page ops that wait for this number may fill all multiprocessors.
static void set_n_stored(pager * p, uint32_t seq, uint32_t n, cudaStream_t stream) {
    CUDA_CHECK(cudaMemcpyAsync(p->n_stored + seq, p->numbers + n, sizeof(uint32_t), cudaMemcpyHostToDevice, stream));
}

// The ring is copied aside within the device, which is fast, and from there to the host while the next graph runs.
static void store(pager * p, const store_job & job) {
    ggml_cuda_set_device(p->device);

    CUDA_CHECK(cudaStreamWaitEvent(p->stream, p->copied));
    set_n_stored(p, job.seq, job.block0, p->stream);

    for (uint32_t i0 = 0; i0 < job.n_block; i0 += p->n_staged) {
        const uint32_t n = std::min(p->n_staged, job.n_block - i0);

        CUDA_CHECK(cudaStreamWaitEvent(p->stream, p->copied));
        const dim3 grid(n, p->layers.size());
        store_kernel<<<grid, N_THREADS, p->store_smem, p->stream>>>(
                p->d_layers, job.seq, job.block0 + i0, job.n_tokens, job.block0 > 0, p->staging, p->begin, p->size);
        CUDA_CHECK(cudaGetLastError());
        CUDA_CHECK(cudaEventRecord(p->staged, p->stream));

        CUDA_CHECK(cudaStreamWaitEvent(p->stream_copy, p->staged));
        for (uint32_t i = 0; i < n; ++i) {
            CUDA_CHECK(cudaMemcpyAsync(job.data[i0 + i] + p->begin, p->staging + i*p->size, p->size,
                    cudaMemcpyDeviceToHost, p->stream_copy));
        }
        set_n_stored(p, job.seq, job.block0 + i0 + n, p->stream_copy);
        CUDA_CHECK(cudaEventRecord(p->copied, p->stream_copy));
    }

    CUDA_CHECK(cudaStreamSynchronize(p->stream));
}

static void wait(pager * p) {
    ggml_cuda_set_device(p->device);
    CUDA_CHECK(cudaStreamSynchronize(p->stream_copy));
}

static void page(ggml_tensor * dst, int ith, int nth, void * userdata) {
    GGML_UNUSED(dst);
    GGML_UNUSED(ith);
    GGML_UNUSED(nth);
    GGML_UNUSED(userdata);
    GGML_ABORT("the page op of a CUDA device was given to the CPU");
}

} // namespace infllm

//
// hooks
//

static ggml_custom_op_params get_params(const ggml_tensor * op) {
    ggml_custom_op_params res;
    memcpy(&res, op->op_params, sizeof(res));
    return res;
}

bool ggml_cuda_infllm_supports(const ggml_tensor * op) {
    return get_params(op).fun == infllm::page;
}

void ggml_cuda_infllm_page(ggml_backend_cuda_context & ctx, ggml_tensor * dst) {
    using namespace infllm;

    const auto   * op     = static_cast<const page_op *>(get_params(dst).userdata);
    const auto   & l      = *op->layer;
    const bool     sums   = l.sums_queries();
    const auto   * info   = static_cast<const pager_info *>(dst->src[0]->data);
    const auto   * q      = sums ? dst->src[1] : nullptr;
    const auto   * scores = dst->src[sums ? 2 : 1];
    const bool     gather = scores || op->again;
    cudaStream_t   stream = ctx.stream();

    const uint32_t n_stream = dst->src[0]->ne[1];
    select_kernel<<<n_stream, N_THREADS_SELECT, page_scratch::size(l), stream>>>(
            l, info, q ? static_cast<const float *>(q->data) : nullptr, q ? q->nb[1]/sizeof(float) : 0, q ? q->nb[2]/sizeof(float) : 0,
            q ? q->ne[2]/n_stream*(q->nb[2]/sizeof(float)) : 0,
            scores ? static_cast<float *>(scores->data) : nullptr, scores ? scores->ne[0] : 0, scores ? scores->ne[1] : 0,
            scores ? scores->nb[2]/sizeof(float) : 0, gather);
    CUDA_CHECK(cudaGetLastError());

    if (gather) {
        gather_kernel<<<dim3(l.cells.n_slot*N_PART, n_stream), N_THREADS, 0, stream>>>(l, info, op->p->n_stored);
        CUDA_CHECK(cudaGetLastError());
    }
}

const void * ggml_cuda_infllm_pager_api() {
    static const infllm::pager_api api = {
        infllm::alloc, infllm::free, infllm::create, infllm::destroy, infllm::store, infllm::wait, infllm::page,
    };
    return &api;
}
