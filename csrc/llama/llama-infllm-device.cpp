#include "llama-infllm-device.h"

#include "llama-impl.h"

#include <stdexcept>

void llama_infllm_check_device(ggml_backend_dev_t dev, const llama_infllm_layers & layers, const llama_infllm_layer & l,
        float attn_soft_cap, ggml_tensor * sinks) {
    const auto & shape = l.shape;

    ggml_context_ptr ptr { ggml_init({ 64*ggml_tensor_overhead(), nullptr, true }) };
    ggml_context *   ctx = ptr.get();

    const auto check = [&](const ggml_tensor * op, const char * what) {
        if (!ggml_backend_dev_supports_op(dev, op)) {
            throw std::runtime_error(::format("the device %s cannot %s (%s) with heads of %u and %u, K %s and V %s, which the InfLLM "
                    "memory does where its resident buffer is: use other types of K and V, or offload_kqv = false",
                    ggml_backend_dev_name(dev), what, ggml_op_desc(op), shape.n_embd_head_k, l.n_embd_head_v,
                    ggml_type_name(l.k->type), ggml_type_name((l.v ? l.v : l.k)->type)));
        }
    };

    const auto cells = [&](ggml_tensor * t) { return ggml_view_2d(ctx, t, t->ne[0], t->ne[1], t->nb[1], 0); };
    const auto heads = [&](ggml_tensor * t, uint32_t n_embd_head) {
        return ggml_permute(ctx, ggml_view_3d(ctx, t, n_embd_head, shape.n_head_kv, t->ne[1],
                t->nb[1]/shape.n_head_kv, t->nb[1], 0), 0, 2, 1, 3);
    };

    for (const uint32_t n_tokens : { 1u, layers.prm.n_ubatch }) {
        ggml_tensor * idxs = ggml_new_tensor_1d(ctx, GGML_TYPE_I64, n_tokens);
        for (ggml_tensor * t : { l.k, l.v ? l.v : l.k }) {
            check(ggml_set_rows(ctx, cells(t), ggml_new_tensor_2d(ctx, GGML_TYPE_F32, t->ne[0], n_tokens), idxs), "write keys and values");
        }

        ggml_tensor * q    = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, shape.n_embd_head_k, shape.n_head, n_tokens);
        ggml_tensor * mask = ggml_new_tensor_2d(ctx, GGML_TYPE_F16, l.k->ne[1], n_tokens);
        ggml_tensor * attn = ggml_flash_attn_ext(ctx, ggml_permute(ctx, q, 0, 2, 1, 3),
                heads(l.k, shape.n_embd_head_k), heads(l.v ? l.v : l.k, l.n_embd_head_v), mask, 1.0f, 0.0f, attn_soft_cap);
        ggml_flash_attn_ext_add_sinks(attn, sinks);
        check(attn, "compute flash attention");

        if (layers.can_page() && shape.published) {
            check(ggml_mul_mat(ctx, heads(l.k, shape.n_embd_head_k), ggml_permute(ctx, q, 0, 2, 1, 3)), "multiply keys and queries");
        }
    }
    if (l.mean) {
        check(ggml_get_rows(ctx, cells(l.k), ggml_new_tensor_1d(ctx, GGML_TYPE_I32, layers.prm.n_ubatch)), "gather keys");
        check(ggml_sub(ctx, ggml_new_tensor_2d(ctx, GGML_TYPE_F32, l.mean->ne[0], 2), cells(l.mean)), "centre keys");
    }
    if (l.search) {
        const int64_t n_embd = shape.n_embd_repr();
        check(ggml_mul_mat(ctx, ggml_new_tensor_2d(ctx, GGML_TYPE_F16, n_embd, 64),
                    ggml_new_tensor_2d(ctx, GGML_TYPE_F32, n_embd, 2)), "score blocks");
    }
}
