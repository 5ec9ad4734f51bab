// Bandwidth of page-ins: blocks of an 8B model's layer are gathered from pinned host memory into slots, as in decode with
// nothing resident, and the same bytes are copied by cudaMemcpy from pinned memory. A line of JSON for each K/V type.
// Stands alone: the pager's own source, without ggml.

#include "../../csrc/cuda/infllm-pager.cu"

#include <cstdarg>
#include <cstdio>
#include <random>

int ggml_cuda_get_device() {
    int device = 0;
    CUDA_CHECK(cudaGetDevice(&device));
    return device;
}

void ggml_cuda_set_device(int device) {
    CUDA_CHECK(cudaSetDevice(device));
}

void ggml_cuda_error(const char * stmt, const char * func, const char * file, int line, const char * msg) {
    fprintf(stderr, "%s:%d: %s in %s: %s\n", file, line, stmt, func, msg);
    exit(1);
}

void ggml_abort(const char * file, int line, const char * fmt, ...) {
    va_list args;
    va_start(args, fmt);
    fprintf(stderr, "%s:%d: ", file, line);
    vfprintf(stderr, fmt, args);
    va_end(args);
    exit(1);
}

namespace infllm {

template <typename F>
static double seconds(cudaStream_t stream, int n, F f) {
    cudaEvent_t begin;
    cudaEvent_t end;
    CUDA_CHECK(cudaEventCreate(&begin));
    CUDA_CHECK(cudaEventCreate(&end));

    f(0); // warm up
    CUDA_CHECK(cudaEventRecord(begin, stream));
    for (int i = 0; i < n; ++i) {
        f(i);
    }
    CUDA_CHECK(cudaEventRecord(end, stream));
    CUDA_CHECK(cudaEventSynchronize(end));

    float ms = 0.0f;
    CUDA_CHECK(cudaEventElapsedTime(&ms, begin, end));
    CUDA_CHECK(cudaEventDestroy(begin));
    CUDA_CHECK(cudaEventDestroy(end));
    return ms/1000.0/n;
}

template <typename T>
static T * device_alloc(size_t n) {
    T * res = nullptr;
    CUDA_CHECK(cudaMalloc(&res, n*sizeof(T)));
    CUDA_CHECK(cudaMemset(res, 0, n*sizeof(T)));
    return res;
}

static void bench(kv_type type, const char * name, bool remap) {
    const uint32_t n_block = 2048; // in the store
    const uint32_t n_step  = 64;   // gathers, each of other blocks

    // a layer of Llama 3.1 8B with the default parameters
    pager_layer l = {};
    l.cells         = cell_layout::make(64, 4096, 64, 32, 512);
    l.n_head        = 32;
    l.n_head_kv     = 8;
    l.n_embd_head_k = 128;
    l.n_rot         = 128;
    l.remap         = remap;
    l.topk          = 16;
    l.repr_topk     = 4;
    l.n_chunk       = 1;
    l.n_block_max   = n_block;
    l.type_k        = type;
    l.row_k         = kv_row_bytes(type, l.n_embd_k());
    l.row_v         = l.row_k;

    const uint64_t bytes = l.size_k() + l.size_v();

    auto * rope = device_alloc<float>(size_t(block_rotations::n_low(n_block) + block_rotations::n_high(n_block))*l.n_rot);

    l.k         = device_alloc<uint8_t>(l.cells.n_cells()*l.row_k);
    l.v         = device_alloc<uint8_t>(l.cells.n_cells()*l.row_v);
    l.rope_low  = rope;
    l.rope_high = rope + size_t(block_rotations::n_low(n_block))*l.n_rot;

    auto * store = static_cast<uint8_t *>(alloc(n_block*bytes));
    auto * table = static_cast<const uint8_t **>(alloc(n_block*sizeof(uint8_t *)));
    if (!store || !table) {
        fprintf(stderr, "cannot pin %.1f GiB\n", n_block*bytes/1024.0/1024.0/1024.0);
        exit(1);
    }
    memset(store, 0, n_block*bytes);
    for (uint32_t b = 0; b < n_block; ++b) {
        table[b] = store + b*bytes;
    }
    l.blocks = table;

    // one state for each step, as if each were a sequence: its page-ins are ready
    const uint64_t state_size = pager_state::size(l);
    std::vector<uint64_t> states(n_step*state_size/sizeof(uint64_t));
    std::mt19937 rng(1);
    for (uint32_t i = 0; i < n_step; ++i) {
        const auto state = pager_state::at(l, reinterpret_cast<uint8_t *>(states.data()) + i*state_size);
        *state.n_page_in = l.topk;
        for (uint32_t j = 0; j < l.topk; ++j) {
            state.page_ins[j] = { int32_t(rng()%n_block), j };
        }
    }
    l.state = device_alloc<uint8_t>(states.size()*sizeof(uint64_t));
    CUDA_CHECK(cudaMemcpy(l.state, states.data(), states.size()*sizeof(uint64_t), cudaMemcpyHostToDevice));

    auto * info     = device_alloc<pager_info>(1);
    auto * n_stored = device_alloc<uint32_t>(1);
    CUDA_CHECK(cudaMemcpy(n_stored, &n_block, sizeof(n_block), cudaMemcpyHostToDevice));

    cudaStream_t stream;
    CUDA_CHECK(cudaStreamCreate(&stream));

    const size_t n_bytes = l.topk*bytes;
    auto * dst = device_alloc<uint8_t>(n_bytes);

    std::vector<double> paged, copied;
    for (int round = 0; round < 5; ++round) {
        paged.push_back(seconds(stream, n_step, [&](int i) {
            pager_layer step = l;
            step.state += i*state_size;
            gather_kernel<<<l.topk*N_PART, N_THREADS, 0, stream>>>(step, info, n_stored);
            CUDA_CHECK(cudaGetLastError());
        }));
        copied.push_back(seconds(stream, n_step, [&](int i) {
            CUDA_CHECK(cudaMemcpyAsync(dst, store + size_t(i)*n_bytes%(n_block*bytes - n_bytes), n_bytes,
                    cudaMemcpyHostToDevice, stream));
        }));
    }
    std::sort(paged.begin(),  paged.end());
    std::sort(copied.begin(), copied.end());

    const double gather = n_bytes/paged[2]/1e9;
    const double memcpy = n_bytes/copied[2]/1e9;
    printf("{\"type\": \"%s%s\", \"bytes\": %zu, \"gather_gb_s\": %.2f, \"memcpy_gb_s\": %.2f, \"share\": %.3f}\n",
            name, remap ? ", rotated" : "", n_bytes, gather, memcpy, gather/memcpy);
    fflush(stdout);

    free(store);
    free(table);
    for (void * p : { (void *) l.k, (void *) l.v, (void *) rope, (void *) l.state, (void *) info, (void *) n_stored, (void *) dst }) {
        CUDA_CHECK(cudaFree(p));
    }
    CUDA_CHECK(cudaStreamDestroy(stream));
}

} // namespace infllm

int main() {
    using namespace infllm;

    for (const bool remap : { false, true }) {
        bench(KV_F16,  "f16",  remap);
        bench(KV_Q8_0, "q8_0", remap);
        bench(KV_Q4_0, "q4_0", remap);
    }
    return 0;
}
