#include "llama-infllm-impl.h"
#include "llama-kv-cache-infllm.h"

#include "llama-impl.h"
#include "llama-model.h"

#include <algorithm>
#include <cmath>
#include <cstring>

//
// llama_kv_cache_infllm_context
//

llama_kv_cache_infllm_context::llama_kv_cache_infllm_context(llama_memory_status status) : status(status) {
}

llama_kv_cache_infllm_context::llama_kv_cache_infllm_context(llama_kv_cache_infllm * mem) :
    status(LLAMA_MEMORY_STATUS_SUCCESS),
    mem(mem),
    n_kv(mem->layers.n_cells_alloc()),
    n_block(mem->layers.get_n_block_cap()) {
}

llama_kv_cache_infllm_context::llama_kv_cache_infllm_context(
        llama_kv_cache_infllm * mem, std::vector<llama_ubatch> ubatches) :
    status(LLAMA_MEMORY_STATUS_SUCCESS),
    mem(mem),
    ubatches(std::move(ubatches)) {
}

llama_kv_cache_infllm_context::~llama_kv_cache_infllm_context() = default;

bool llama_kv_cache_infllm_context::next() {
    return ++i_cur < ubatches.size();
}

bool llama_kv_cache_infllm_context::apply() {
    if (ubatches.empty()) {
        return true; // nothing to update
    }

    const auto & ubatch = ubatches[i_cur];

    n_tokens = ubatch.n_tokens/ubatch.n_seqs_unq;
    streams.clear();
    for (uint32_t i = 0; i < ubatch.n_tokens; i += n_tokens) {
        streams.push_back({ ubatch.seq_id[i][0], uint32_t(ubatch.pos[i]) });
    }
    mem->begin_ubatch(streams, n_tokens);

    // used cells are a prefix; pad as llama_kv_cache does, so that graphs can be reused
    n_kv    = 0;
    n_block = 0;
    for (const auto & s : streams) {
        const auto &   seq    = mem->seqs[s.seq_id];
        const uint32_t n_used = seq.paging() ? mem->layers.cells.n_cells() : seq.get_n_tokens();
        n_kv    = std::max(n_kv, std::min<uint32_t>(mem->layers.n_cells_alloc(), GGML_PAD(n_used, 256)));
        n_block = std::max(n_block, std::min<uint32_t>(mem->layers.get_n_block_cap(), GGML_PAD(n_search(seq), 64)));
    }

    return true;
}

uint32_t llama_kv_cache_infllm_context::n_search(const llama_infllm_sequence & seq) const {
    return mem->get_selector().keeps(n_tokens) && !mem->has_scores() ? 0 : seq.get_n_offload();
}

llama_memory_status llama_kv_cache_infllm_context::get_status() const {
    return status;
}

const llama_ubatch & llama_kv_cache_infllm_context::get_ubatch() const {
    return ubatches[i_cur];
}

uint32_t llama_kv_cache_infllm_context::get_n_stream(const llama_ubatch & ubatch) const {
    return ubatch.n_tokens == ubatch.n_seqs_unq && mem->can_stream() ? ubatch.n_seqs_unq : 1;
}

uint32_t llama_kv_cache_infllm_context::get_n_chunk(uint32_t n_tokens) const {
    return n_tokens == 1 ? 1 : (n_tokens + mem->layers.cells.block_size - 2)/mem->layers.cells.block_size + 1;
}

void llama_kv_cache_infllm_context::set_input_idxs(ggml_tensor * dst) const {
    GGML_ASSERT(ggml_backend_buffer_is_host(dst->buffer));
    auto * data = static_cast<int64_t *>(dst->data);

    for (const auto & s : streams) {
        for (uint32_t i = 0; i < n_tokens; ++i) {
            *data++ = cell0(s) + mem->layers.cells.cell(s.p0 + i);
        }
    }
}

template <typename T>
static void fill_mask(T * data, int64_t n_kv, int64_t n, const infllm::cell_layout & cells,
        uint32_t p0, uint32_t ring_pos, bool paging, bool causal) {
    const T zero = llama_cast<T>(0.0f);
    const T ninf = llama_cast<T>(-INFINITY);

    // all that lies before the ring is older than the queries
    const uint32_t n_old = paging ? cells.ring_begin() : 0;

    std::fill(data,         data + n_old, zero);
    std::fill(data + n_old, data + n_kv,  ninf);
    for (uint32_t p = paging ? ring_pos : 0; p < p0; ++p) {
        data[cells.cell(p)] = zero;
    }
    if (!causal) {
        for (int64_t i = 0; i < n; ++i) {
            data[cells.cell(p0 + i)] = zero;
        }
    }
    // each query sees what the one before it sees, and itself
    for (int64_t i = 0; i < n; ++i) {
        T * row = data + i*n_kv;
        if (i > 0) {
            std::copy(row - n_kv, row, row);
        }
        row[cells.cell(p0 + i)] = zero;
    }
}

// ALiBi (Press et al. 2022, arXiv 2108.12409): in place of 0 the distance, which attention multiplies by the slope of its head;
// what lies before the ring is at the positions that it has there
template <typename T>
static void add_distances(T * data, int64_t n_kv, int64_t n, const infllm::cell_layout & cells,
        uint32_t p0, uint32_t ring_pos, bool paging, uint32_t shift) {
    std::vector<uint32_t> pos(n_kv); // of what is in a cell
    for (uint32_t i = 0; paging && i < cells.ring_begin(); ++i) {
        pos[i] = i + shift*cells.block_size;
    }
    for (uint32_t p = paging ? ring_pos : 0; p < p0 + n; ++p) {
        pos[cells.cell(p)] = p;
    }

    const T ninf = llama_cast<T>(-INFINITY);
    for (int64_t i = 0; i < n; ++i) {
        for (int64_t j = 0; j < n_kv; ++j) {
            T & x = data[i*n_kv + j];
            if (x != ninf) {
                x = llama_cast<T>(-std::abs(float(int64_t(p0) + i - pos[j])));
            }
        }
    }
}

void llama_kv_cache_infllm_context::set_input_kq_mask(ggml_tensor * dst, bool causal) const {
    GGML_ASSERT(ggml_backend_buffer_is_host(dst->buffer));

    const auto fill = [&](auto * data) {
        for (const auto & s : streams) {
            const auto &   seq      = mem->seqs[s.seq_id];
            const uint32_t ring_pos = mem->layers.cells.block_pos(seq.get_n_offload());

            fill_mask(data, dst->ne[0], dst->ne[1], mem->layers.cells, s.p0, ring_pos, seq.paging(), causal);
            if (mem->model.hparams.use_alibi) {
                add_distances(data, dst->ne[0], dst->ne[1], mem->layers.cells, s.p0, ring_pos, seq.paging(), seq.get_shift());
            }
            data += dst->ne[0]*dst->ne[1];
        }
    };
    if (dst->type == GGML_TYPE_F16) {
        fill(static_cast<ggml_fp16_t *>(dst->data));
    } else {
        fill(static_cast<float *>(dst->data));
    }
}

void llama_kv_cache_infllm_context::set_input_w_sum(ggml_tensor * dst) const {
    GGML_ASSERT(ggml_backend_buffer_is_host(dst->buffer));
    auto * data = static_cast<float *>(dst->data);

    const auto &   cells  = mem->layers.cells;
    const uint32_t p0     = streams[0].p0; // for a token each there is nothing to sum up
    const uint32_t block0 = p0 < cells.n_init ? 0 : cells.block_of(p0);

    std::fill_n(data, ggml_nelements(dst), 0.0f);
    for (uint32_t i = 0; i < dst->ne[0]; ++i) {
        if (p0 + i >= cells.n_init) {
            data[(cells.block_of(p0 + i) - block0)*dst->ne[0] + i] = 1.0f;
        }
    }
}

void llama_kv_cache_infllm_context::set_input_w_mean(ggml_tensor * dst) const {
    GGML_ASSERT(ggml_backend_buffer_is_host(dst->buffer));
    auto * data = static_cast<float *>(dst->data);

    const int64_t n = dst->ne[0];

    // counted from the end, where the question is
    std::fill_n(data, ggml_nelements(dst), 0.0f);
    for (size_t s = 0; s < streams.size(); ++s) {
        for (const uint32_t len : mem->get_selector().sub_lengths(n_tokens)) {
            for (int64_t i1 = n; i1 > n - n_tokens; i1 -= len, data += n) {
                const int64_t i0 = std::max<int64_t>(0, i1 - len);
                std::fill(data + i0, data + i1, 1.0f/(i1 - i0));
            }
        }
    }
}

void llama_kv_cache_infllm_context::set_input_window(ggml_tensor * dst) const {
    GGML_ASSERT(ggml_backend_buffer_is_host(dst->buffer));
    auto * data = static_cast<float *>(dst->data);

    const auto &   cells = mem->layers.cells;
    const uint32_t p0    = streams[0].p0;
    const uint32_t begin = cells.block_pos(mem->seqs[streams[0].seq_id].get_n_offload());

    std::fill_n(data, ggml_nelements(dst), 0.0f);
    for (uint32_t i = 0; i < dst->ne[1]; ++i) {
        const uint32_t p1 = p0 + i + 1;
        for (uint32_t p = std::max(begin, p1 > cells.n_local ? p1 - cells.n_local : 0); p < p1; ++p) {
            data[i*dst->ne[0] + cells.cell(p)] = 1.0f;
        }
    }
}

void llama_kv_cache_infllm_context::set_input_scores(ggml_tensor * dst, int32_t il) const {
    GGML_ASSERT(ggml_backend_buffer_is_host(dst->buffer));

    std::vector<float> scores(mem->seqs[streams[0].seq_id].get_n_offload());
    mem->score(il, scores.size(), scores.data(), mem->score_user_data);

    const uint32_t n_repr = mem->get_params().n_repr;
    auto * data = static_cast<float *>(dst->data);
    for (size_t b = 0; b < scores.size(); ++b) {
        std::fill_n(data + b*n_repr, n_repr, scores[b]);
    }
}

void llama_kv_cache_infllm_context::set_input_info(ggml_tensor * dst) const {
    GGML_ASSERT(ggml_backend_buffer_is_host(dst->buffer));

    auto * data = static_cast<infllm::pager_info *>(dst->data);
    for (size_t i = 0; i < streams.size(); ++i) {
        const auto & seq = mem->seqs[streams[i].seq_id];
        data[i] = {
            /*.stream   =*/ int32_t(i),
            /*.seq      =*/ streams[i].seq_id,
            /*.p0       =*/ int32_t(streams[i].p0),
            /*.n_tokens =*/ int32_t(n_tokens),
            /*.n_block  =*/ int32_t(n_search(seq)),
            /*.agree    =*/ mem->get_selector().agrees() && !mem->has_scores(),
            /*.place    =*/ seq.get_place(),
            /*.shift    =*/ int32_t(seq.get_shift()),
        };
    }
}

void llama_kv_cache_infllm_context::set_input_key_idxs(ggml_tensor * dst) const {
    GGML_ASSERT(ggml_backend_buffer_is_host(dst->buffer));
    auto * data = static_cast<int32_t *>(dst->data);

    const uint32_t n_key = dst->ne[0]/streams.size();
    for (const auto & s : streams) {
        const uint32_t p1 = s.p0 + n_tokens;
        for (uint32_t i = 0; i < n_key; ++i) {
            // a stream beside others may have fewer; it has no blocks to search
            *data++ = cell0(s) + (p1 + i < n_key ? 0 : mem->layers.cells.cell(p1 + i - n_key));
        }
    }
}

void llama_kv_cache_infllm_context::set_input_key_shift(ggml_tensor * dst) const {
    GGML_ASSERT(ggml_backend_buffer_is_host(dst->buffer));
    auto * data = static_cast<int32_t *>(dst->data);

    const int64_t n_key = dst->ne[0]/streams.size();
    for (const auto & s : streams) {
        const int64_t p1 = s.p0 + n_tokens;
        for (int64_t i = 0; i < n_key; ++i) {
            *data++ = int32_t(n_key - i - p1); // minus its position
        }
    }
}

void llama_kv_cache_infllm_context::set_input_q_shift(ggml_tensor * dst) const {
    GGML_ASSERT(ggml_backend_buffer_is_host(dst->buffer));
    auto * data = static_cast<int32_t *>(dst->data);

    // InfLLM, section 3.3: tokens beyond the local window all appear at its far end
    const auto & ubatch = ubatches[i_cur];
    for (int64_t i = 0; i < dst->ne[0]; ++i) {
        data[i] = int32_t(mem->layers.cells.n_local) - ubatch.pos[i];
    }
}
