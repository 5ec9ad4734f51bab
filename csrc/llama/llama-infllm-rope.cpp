#include "llama-infllm-rope.h"

#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml.h"

#include <cmath>
#include <cstring>
#include <stdexcept>

// in ggml_rope_impl()
static int   get_i32(const ggml_tensor * op, int i) { return op->op_params[i]; }
static float get_f32(const ggml_tensor * op, int i) {
    float res;
    std::memcpy(&res, op->op_params + i, sizeof(res));
    return res;
}

llama_infllm_rope::llama_infllm_rope(const ggml_tensor * op, uint32_t rot0) :
    factors    (op->src[2]),
    // a token of text has one position, by which M-RoPE rotates as RoPE of this type does
    type       (get_i32(op, 2) & GGML_ROPE_TYPE_MROPE ? int(GGML_ROPE_TYPE_NEOX) : get_i32(op, 2)),
    n_rot      (get_i32(op, 1)),
    rot0       (rot0),
    n_ctx_orig (get_i32(op, 4)),
    freq_base  (get_f32(op, 5)),
    freq_scale (get_f32(op, 6)),
    ext_factor (get_f32(op, 7)),
    mscale     (ext_factor != 0.0f ? 1.0f + 0.1f*std::log(1.0f/freq_scale) : 1.0f), // rope_yarn() in ggml-cpu/ops.cpp
    magnitude  (get_f32(op, 8)*mscale),
    beta_fast  (get_f32(op, 9)),
    beta_slow  (get_f32(op, 10)) {
}

bool llama_infllm_rope::operator==(const llama_infllm_rope & other) const {
    return factors == other.factors && type == other.type && n_rot == other.n_rot && rot0 == other.rot0 &&
        n_ctx_orig == other.n_ctx_orig && freq_base == other.freq_base && freq_scale == other.freq_scale &&
        ext_factor == other.ext_factor && magnitude == other.magnitude &&
        beta_fast == other.beta_fast && beta_slow == other.beta_slow;
}

ggml_tensor * llama_infllm_rope::build(
        ggml_context * ctx, ggml_tensor * cur, ggml_tensor * pos, ggml_tensor * freq_factors, float scale) const {
    return ggml_rope_ext(ctx, cur, pos, freq_factors, n_rot, type, n_ctx_orig,
            freq_base, freq_scale, ext_factor, scale/mscale, beta_fast, beta_slow);
}

ggml_tensor * llama_infllm_rope::build_scaled(ggml_context * ctx, ggml_tensor * cur, ggml_tensor * pos, float scale) const {
    if (rot0 == 0) {
        return build(ctx, cur, pos, factors, scale);
    }
    const auto part = [&](int64_t begin, int64_t n) {
        return ggml_cont(ctx, ggml_view_3d(ctx, cur, n, cur->ne[1], cur->ne[2], cur->nb[1], cur->nb[2], begin*cur->nb[0]));
    };
    return ggml_concat(ctx, part(0, rot0), build(ctx, part(rot0, n_rot), pos, factors, scale), 0);
}

ggml_tensor * llama_infllm_rope::build(ggml_context * ctx, ggml_tensor * cur, ggml_tensor * pos) const {
    return build_scaled(ctx, cur, pos, 1.0f);
}

ggml_tensor * llama_infllm_rope::build_undo(ggml_context * ctx, ggml_tensor * cur, ggml_tensor * pos) const {
    return build_scaled(ctx, cur, pos, 1.0f/magnitude);
}

std::vector<infllm::rotation> llama_infllm_rope::rotations_undo(const std::vector<llama_pos> & dist) const {
    auto res = rotations(dist);
    for (auto & rot : res) {
        for (auto & x : rot.cs) {
            x /= magnitude;
        }
    }
    return res;
}

std::vector<infllm::rotation> llama_infllm_rope::rotations(const std::vector<llama_pos> & dist) const {
    const int64_t n    = dist.size();
    const bool    neox = type & LLAMA_ROPE_TYPE_NEOX;

    ggml_init_params params = {
        /*.mem_size   =*/ 8*ggml_tensor_overhead() + ggml_graph_overhead(),
        /*.mem_buffer =*/ nullptr,
        /*.no_alloc   =*/ true,
    };
    ggml_context_ptr ctx { ggml_init(params) };
    ggml_backend_ptr cpu { ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr) };
    if (!ctx || !cpu) {
        throw std::runtime_error("failed to set up the computation of RoPE rotations");
    }

    // rotating the vector (1, 0) of every pair gives (cos, sin)
    ggml_tensor * x   = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F32, n_rot, 1, n);
    ggml_tensor * pos = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_I32, n);
    // a model that is not loaded, to measure contexts, has factors without data: any rotations will do
    ggml_tensor * ff  = factors && factors->data ? ggml_new_tensor_1d(ctx.get(), GGML_TYPE_F32, factors->ne[0]) : nullptr;
    ggml_tensor * y   = build(ctx.get(), x, pos, ff, 1.0f);
    ggml_cgraph * gf  = ggml_new_graph(ctx.get());
    ggml_build_forward_expand(gf, y);

    ggml_backend_buffer_ptr buf { ggml_backend_alloc_ctx_tensors(ctx.get(), cpu.get()) };
    if (!buf) {
        throw std::runtime_error("out of memory while computing RoPE rotations");
    }

    std::vector<float> data(n_rot*n, 0.0f);
    for (int64_t i = 0; i < n; ++i) {
        for (int j = 0; j < n_rot/2; ++j) {
            data[i*n_rot + (neox ? j : 2*j)] = 1.0f;
        }
    }
    ggml_backend_tensor_set(x,   data.data(), 0, ggml_nbytes(x));
    ggml_backend_tensor_set(pos, dist.data(), 0, ggml_nbytes(pos));
    if (ff) {
        std::vector<uint8_t> tmp(ggml_nbytes(factors));
        ggml_backend_tensor_get(factors, tmp.data(), 0, tmp.size());
        ggml_backend_tensor_set(ff,      tmp.data(), 0, tmp.size());
    }

    if (ggml_backend_graph_compute(cpu.get(), gf) != GGML_STATUS_SUCCESS) {
        throw std::runtime_error("failed to compute RoPE rotations");
    }
    ggml_backend_tensor_get(y, data.data(), 0, ggml_nbytes(y));

    std::vector<infllm::rotation> res(n);
    for (int64_t i = 0; i < n; ++i) {
        res[i].neox = neox;
        res[i].rot0 = rot0;
        res[i].cs.resize(n_rot);
        for (int j = 0; j < n_rot/2; ++j) {
            const float c = data[i*n_rot + (neox ? j           : 2*j)];
            const float s = data[i*n_rot + (neox ? j + n_rot/2 : 2*j + 1)];
            const float m = std::hypot(c, s);
            res[i].cs[2*j    ] = c/m;
            res[i].cs[2*j + 1] = s/m;
        }
    }

    return res;
}
