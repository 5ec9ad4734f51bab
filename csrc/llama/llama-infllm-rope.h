#pragma once

#include "llama.h"

#include "../infllm/rotation.h"

#include <vector>

struct ggml_context;
struct ggml_tensor;

// The rotations of RoPE as the model applies it in one layer, to move what is rotated already: every angle comes from
// ggml_rope_ext with the parameters of the op in the model's own graph, in a graph or for a distance (llama-infllm-probe.h). The
// magnitude of YaRN and LongRoPE is in the keys and queries once: what moves them leaves it as it is, what undoes the rotation
// takes it out, so that dimensions that are rotated count as much as those that are not.
class llama_infllm_rope {
public:
    //   op    that rotates the keys of the layer
    //   rot0  the first dimension of a head that it rotates
    llama_infllm_rope(const ggml_tensor * op, uint32_t rot0);

    // the same RoPE, so that layers can share one object
    bool operator==(const llama_infllm_rope & other) const;

    // rotations by the given distances
    std::vector<infllm::rotation> rotations(const std::vector<llama_pos> & dist) const;

    // the same, of vectors that have the magnitude, to others that have not
    std::vector<infllm::rotation> rotations_undo(const std::vector<llama_pos> & dist) const;

    // rotate cur [n_embd_head, n_head, n_tokens] by the distances pos I32 [n_tokens]
    ggml_tensor * build(ggml_context * ctx, ggml_tensor * cur, ggml_tensor * pos) const;

    // the same, and take the magnitude out
    ggml_tensor * build_undo(ggml_context * ctx, ggml_tensor * cur, ggml_tensor * pos) const;

private:
    ggml_tensor * build_scaled(ggml_context * ctx, ggml_tensor * cur, ggml_tensor * pos, float scale) const;

    // of vectors whose rotated dimensions come first
    ggml_tensor * build(ggml_context * ctx, ggml_tensor * cur, ggml_tensor * pos, ggml_tensor * freq_factors, float scale) const;

    ggml_tensor * factors; // a weight; may be nullptr

    int   type;
    int   n_rot;
    int   rot0; // in latent vectors (MLA) the other dimensions come first
    int   n_ctx_orig;
    float freq_base;
    float freq_scale;
    float ext_factor;
    float mscale;    // what ggml_rope_ext multiplies with by itself when YaRN extends the context
    float magnitude; // of keys and queries
    float beta_fast;
    float beta_slow;
};
