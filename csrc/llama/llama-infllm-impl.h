#pragma once

// What the hooks in upstream's files call (see csrc/patches), and helpers shared by our files.

#include "llama-infllm.h"

#include "../infllm/kv-row.h"

#include "llama-memory.h"

#include "ggml.h"

#include <exception>
#include <functional>
#include <map>
#include <new>
#include <string>

struct llama_cparams;
struct llama_model;
struct llm_graph_context;

class llama_kv_cache_context;
class llama_kv_cache_infllm;

class llm_graph_input_attn_infllm;
class llm_graph_input_attn_k;
class llm_graph_input_attn_kv;
class llm_graph_input_attn_kv_iswa;
class llm_graph_input_mem_hybrid;
class llm_graph_input_mem_hybrid_iswa;
class llm_graph_input_mem_hybrid_k;

//
// hooks
//

// Lives while llama_init_from_model() makes a context. It is active when llama_infllm_init_from_model() or the
// environment variable LLAMA_INFLLM asks for the method, and then adapts the context parameters.
class llama_infllm_scope {
public:
    llama_infllm_scope(const llama_model & model, llama_context_params & params);
    ~llama_infllm_scope();

    llama_infllm_scope(const llama_infllm_scope &)             = delete;
    llama_infllm_scope & operator=(const llama_infllm_scope &) = delete;

    bool ok() const { return is_ok; } // false: the parameters cannot work

private:
    bool is_ok = true;
};

// in llama_model::create_memory(), where a memory with attention is made: nullptr unless a scope is active
// filter, filter_recr: layers with attention, and those with a recurrent state; nullptr for upstream's choice
// throws if the model cannot have this memory
llama_memory_i * llama_infllm_create_memory(
        const llama_model & model,
        const llama_memory_params & params,
        const llama_cparams & cparams,
        const llama_memory_i::layer_filter_cb & filter,
        const llama_memory_i::layer_filter_cb & filter_recr,
        const llama_memory_i::layer_reuse_cb & reuse);

// in the constructor of llama_context: throws if a scope is active, but the model made itself a memory of another kind
void llama_infllm_verify(const llama_model & model, llama_memory_i * memory);

// in the functions of the same names: nullptr unless the graph is built for this memory
llm_graph_input_attn_kv         * llama_infllm_build_attn_inp_kv        (const llm_graph_context & graph);
llm_graph_input_attn_k          * llama_infllm_build_attn_inp_k         (const llm_graph_context & graph);
llm_graph_input_attn_kv_iswa    * llama_infllm_build_attn_inp_kv_iswa   (const llm_graph_context & graph);
llm_graph_input_mem_hybrid      * llama_infllm_build_inp_mem_hybrid     (const llm_graph_context & graph);
llm_graph_input_mem_hybrid_k    * llama_infllm_build_inp_mem_hybrid_k   (const llm_graph_context & graph);
llm_graph_input_mem_hybrid_iswa * llama_infllm_build_inp_mem_hybrid_iswa(const llm_graph_context & graph);

// In build_attn(): what upstream asks there for keys and values, so that all it does with them is its own code. It is the
// context of a plain KV cache, unless inp was made by one of the functions above. Then the ubatch is written to the resident buffer,
// and what get_k() and get_v() give is all that is resident, once the page op is in the graph.
class llama_infllm_attn {
public:
    llama_infllm_attn(
            const llm_graph_context & graph,
            llm_graph_input_attn_kv * inp,
            ggml_tensor * q_cur, // [n_embd_head_k, n_head, n_tokens]
            ggml_tensor * sinks,
            float kq_scale);

    // of a model that has latent vectors (MLA): values are part of the keys
    llama_infllm_attn(
            const llm_graph_context & graph,
            llm_graph_input_attn_k * inp,
            ggml_tensor * q_cur,
            ggml_tensor * sinks,
            float kq_scale);

    // of a model with windows: which layers have one decides hparams.is_swa()
    llama_infllm_attn(
            const llm_graph_context & graph,
            llm_graph_input_attn_kv_iswa * inp,
            ggml_tensor * q_cur,
            ggml_tensor * sinks,
            float kq_scale,
            bool is_swa);

    // used like the pointer that it replaces
    const llama_infllm_attn * operator->() const { return this; }

    uint32_t get_n_kv() const;

    ggml_tensor * cpy_k(ggml_context * ctx, ggml_tensor * k_cur, ggml_tensor * k_idxs, int32_t il) const;
    ggml_tensor * cpy_v(ggml_context * ctx, ggml_tensor * v_cur, ggml_tensor * v_idxs, int32_t il) const;

    ggml_tensor * get_k(ggml_context * ctx, int32_t il) const; // [n_embd_head_k, n_head_kv, n_kv]
    ggml_tensor * get_v(ggml_context * ctx, int32_t il) const; // [n_embd_head_v, n_head_kv, n_kv]

private:
    const llm_graph_context & graph;

    const llama_kv_cache_context * mctx; // of a plain KV cache
    llm_graph_input_attn_infllm  * inp;  // nullptr: a plain KV cache

    ggml_tensor * q_cur;
    ggml_tensor * sinks;

    const float kq_scale;

    void build_page(int32_t il) const;
};

// in build_attn_mha(): attention over a resident buffer is computed where the buffer is
void llama_infllm_pin_attn(const llm_graph_context & graph, ggml_tensor * attn);

//
// helpers
//

// why a context of the model cannot have this memory, whatever its parameters are: a sentence, "" if it can
std::string llama_infllm_why_not(const llama_model & model, const llama_context_params & cparams);

// layers that attend to all tokens, which the method is for: f(il)
void llama_infllm_for_each_layer(const llama_model & model, const std::function<void(uint32_t)> & f);

// The weights by name, each once: of those that devices share, such as tied embeddings, they have copies, and the model lists
// them in an order that follows the devices.
std::map<std::string, const ggml_tensor *> llama_infllm_weights(const llama_model & model);

// Whether values are rotated by a Hadamard matrix before they are quantised, and attention's result back, which spreads
// outliers: where llama_kv_cache does so.
bool llama_infllm_rotates_v(const llama_model & model, ggml_type type_v);

// type_store as it is used: AUTO where rows are stored as they are. Returns why it cannot be, "" if it can
std::string llama_infllm_resolve_type_store(
        const llama_model & model, const llama_context_params & cparams, llama_infllm_type_store & type);

// a memory begins, or ends: see llama_infllm_n_ctx_max() and llama_infllm_get_all_stats()
void llama_infllm_add_live   (const llama_kv_cache_infllm * mem);
void llama_infllm_remove_live(const llama_kv_cache_infllm * mem);

void llama_infllm_set_error(const std::string & msg);

// what f returns; where it throws, `failed`, and llama_infllm_last_error() says why
template <typename T, typename F>
T llama_infllm_try(T failed, F f) {
    llama_infllm_set_error("");
    try {
        return f();
    } catch (const std::bad_alloc &) {
        llama_infllm_set_error("there is not enough memory");
    } catch (const std::exception & err) {
        llama_infllm_set_error(err.what());
    }
    return failed;
}

// memory of this machine that can be taken, bytes; UINT64_MAX where the system does not tell
uint64_t llama_infllm_ram_free();
bool     llama_infllm_ram_has(uint64_t size);

// the types of K and V that the memory can have, as the method and ggml call them
infllm::kv_type llama_infllm_to_kv  (ggml_type type);
infllm::kv_type llama_infllm_codec  (llama_infllm_type_store type); // of a resolved one: KV_F16 if rows are stored as they are
ggml_type       llama_infllm_to_ggml(infllm::kv_type type);

void llama_infllm_to_f32  (ggml_type type, const void * src, float * dst, int64_t n);
void llama_infllm_from_f32(ggml_type type, const float * src, void * dst, int64_t n_row, int64_t n_per_row);
