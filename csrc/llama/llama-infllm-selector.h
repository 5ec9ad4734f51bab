#pragma once

#include "llama-infllm.h"

#include <cstdint>
#include <memory>
#include <vector>

struct ggml_tensor;

struct llama_infllm_layer;
struct llm_graph_context;

class llama_infllm_layers;
class llm_graph_input_attn_infllm;

// How blocks are searched for: which layers search, by what of the current tokens, and what is kept of each block for it. All
// policy of the search is here.
class llama_infllm_selector {
public:
    static std::unique_ptr<llama_infllm_selector> make(const llama_infllm_params & params);

    explicit llama_infllm_selector(const llama_infllm_params & params) : prm(params) {}
    virtual ~llama_infllm_selector() = default;

    //
    // what is kept
    //

    // whether a layer has representative keys; the others select what the layer before has selected
    virtual bool searches(uint32_t idx) const = 0;

    // whether representative keys are centred, see centred.h
    virtual bool centres() const { return false; }

    // whether layers agree on the relevance of blocks, see relevance.h
    virtual bool agrees() const { return false; }

    // whether representative keys are bounds, see bounds.h
    virtual bool bounds() const { return false; }

    virtual uint32_t n_head_repr(uint32_t n_head, uint32_t n_head_kv) const;

    // what the tokens of representative keys are chosen by, of each block of positions, see pager_layer: floats; 0: nothing
    virtual uint32_t n_sum(uint32_t n_head, uint32_t n_head_kv, uint32_t n_embd_head_k) const;

    virtual bool sums_queries()   const;                  // in the page op
    virtual bool sums_attention() const { return false; } // after it, by the host

    //
    // what is searched for
    //

    // whether n_tokens of a stream keep what was selected before them: they do not search
    virtual bool keeps(uint32_t /*n_tokens*/) const { return false; }

    // tokens at the end of a text that are a ubatch of their own, see text-split.h
    virtual uint32_t n_end() const { return 0; }

    // lengths of the sub-chunks that a ubatch is scored by, tokens
    virtual std::vector<uint32_t> sub_lengths(uint32_t n_tokens) const;

    // sub-chunks of n_tokens of a stream, and of a ubatch of at most n_ubatch tokens of one, or a token of each of n_seq
    uint32_t n_sub    (uint32_t n_tokens) const;
    uint32_t n_sub_max(uint32_t n_ubatch, uint32_t n_seq) const;

    //
    // graph
    //

    // the inputs that build_search() reads, of a ubatch that has blocks to search; n_tokens of each stream
    virtual void build_inputs(const llm_graph_context & graph, llm_graph_input_attn_infllm & inp) const = 0;

    // what representative keys are multiplied with
    //   q   [n_embd_head_k, n_head, n_tokens]
    //   res [n_embd_head_k*n_head_repr, n_sub, n_stream]
    virtual ggml_tensor * build_search(const llm_graph_context & graph, const llm_graph_input_attn_infllm & inp,
            const llama_infllm_layers & layers, const llama_infllm_layer & l, ggml_tensor * q) const = 0;

protected:
    const llama_infllm_params prm;
};
