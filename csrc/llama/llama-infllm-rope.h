#pragma once

#include "llama.h"

#include "../infllm/rotation.h"

#include <vector>

struct ggml_context;
struct ggml_tensor;

struct llama_cparams;
struct llama_model;

// The rotations of RoPE as the model applies it in one layer, to move what is rotated already: every angle comes from
// ggml_rope_ext with the model's own parameters (frequency factors, YaRN, base per layer), in a graph or for a distance. The
// magnitude of YaRN and LongRoPE is in the keys and queries once: what moves them leaves it as it is, what undoes the rotation
// takes it out, so that dimensions that are rotated count as much as those that are not.
class llama_infllm_rope {
public:
    llama_infllm_rope(const llama_model & model, const llama_cparams & cparams, int32_t il);

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
    ggml_tensor * build(ggml_context * ctx, ggml_tensor * cur, ggml_tensor * pos, ggml_tensor * freq_factors, float scale) const;

    ggml_tensor * factors; // may be nullptr

    int   type;
    int   n_rot;
    int   n_ctx_orig;
    float freq_base;
    float freq_scale;
    float ext_factor;
    float mscale;    // what ggml_rope_ext multiplies with by itself when YaRN extends the context
    float magnitude; // of keys and queries
    float beta_fast;
    float beta_slow;
};
