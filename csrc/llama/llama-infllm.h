#pragma once

// Public C API of the InfLLM memory: contexts longer than the device memory and than the training length.
//
// The KV cache of a context made by llama_infllm_init_from_model() is cut into blocks that live in host memory.
// Attention sees a bounded set of resident tokens: the init tokens, the local window and the blocks that score
// highest for the current queries (InfLLM, Xiao et al. 2024, arXiv 2402.04617). All other calls of llama.h work
// on such a context unchanged.
//
// Unmodified programs: the environment variable LLAMA_INFLLM turns the method on in llama_init_from_model(),
// either "1" (the defaults) or a list such as "n_local=1024,topk=16,position=infllm".

#include "llama.h"

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum llama_infllm_position {
    LLAMA_INFLLM_POSITION_AUTO   = 0, // TRUE if n_ctx <= n_ctx_train, else INFLLM
    LLAMA_INFLLM_POSITION_TRUE   = 1, // every token keeps its own position
    LLAMA_INFLLM_POSITION_INFLLM = 2, // a paged-in block takes the positions of its slot, and the local window
                                      //   follows: no more positions than resident cells, at most n_ctx_train
};

// who selects blocks and copies them into slots
enum llama_infllm_paging {
    LLAMA_INFLLM_PAGING_AUTO   = 0, // the layer's device where it can (CUDA), else the host
    LLAMA_INFLLM_PAGING_HOST   = 1, // the host, whatever device the layer is on
    LLAMA_INFLLM_PAGING_DEVICE = 2, // the layer's device, or it is an error; on the CPU this is for tests
};

// which blocks attention sees
enum llama_infllm_attend {
    LLAMA_INFLLM_ATTEND_RESIDENT = 0, // all that are in slots
    LLAMA_INFLLM_ATTEND_TOPK     = 1, // those selected now, as published: there are no other slots
};

// how blocks are scored
enum llama_infllm_scores {
    LLAMA_INFLLM_SCORES_LINEAR    = 0, // representative are the keys with the largest products with the queries that follow,
                                       //   summed over the query heads of a KV head (the formula of the paper)
    LLAMA_INFLLM_SCORES_PUBLISHED = 1, // ... that got most attention within their local window, for each query head (the
                                       //   authors' code). Computes attention twice; for comparisons. The host pages
};

// what representative keys are multiplied with to score a block
enum llama_infllm_search {
    LLAMA_INFLLM_SEARCH_AUTO      = 0, // KEYS, but QUERIES with published scores
    LLAMA_INFLLM_SEARCH_KEYS      = 1, // the keys of the current tokens, less the mean key: a block counts that holds a context
                                       //   like the current one
    LLAMA_INFLLM_SEARCH_QUERIES   = 2, // the queries of the current tokens, as published
    LLAMA_INFLLM_SEARCH_QUEST     = 3, // the queries, too, but with the largest and the smallest values of keys: a block counts
                                       //   by a bound of the attention to any of its keys (Quest, Tang et al. 2024, arXiv
                                       //   2406.10774)
    LLAMA_INFLLM_SEARCH_PRESELECT = 4, // KEYS for any text of more than one token; an answer, which comes one by one, keeps what
                                       //   was selected for it (KTransformers' preselect_block)
};

// type of K and V in the store, where it is not that of the resident buffer
enum llama_infllm_type_store {
    LLAMA_INFLLM_TYPE_STORE_AUTO = 0, // as in the resident buffer: blocks come back bit for bit
    LLAMA_INFLLM_TYPE_STORE_F16  = 1,
    LLAMA_INFLLM_TYPE_STORE_Q8_0 = 2, // quantised after a Hadamard rotation: about half, a quarter of the memory of f16
    LLAMA_INFLLM_TYPE_STORE_Q4_0 = 3,
};

// how large a resident buffer is where neither budget nor its parts are given; never less than with FAST
enum llama_infllm_profile {
    LLAMA_INFLLM_PROFILE_AUTO     = 0, // BALANCED
    LLAMA_INFLLM_PROFILE_EXACT    = 1, // all that there is memory for, up to n_ctx_train
    LLAMA_INFLLM_PROFILE_BALANCED = 2, // the same, but attention reads no more bytes for a token than the weights are
    LLAMA_INFLLM_PROFILE_FAST     = 3, // n_local = n_ctx_train/8, at most 4096; topk = n_ctx_train/32 tokens, at most 16 blocks
};

struct llama_infllm_params {
    uint32_t n_init;            // init tokens, always resident (attention sinks)
    uint32_t n_local;           // local window, tokens, >= n_ubatch
    uint32_t block_size;        // tokens of a block
    uint32_t topk;              // blocks selected per layer for every ubatch
    uint32_t max_cached_blocks; // slots per layer and sequence, >= topk. All three 0: by budget and profile; one of them 0: topk for
                                //   this one, the others as with FAST, and fewer slots where n_ctx_train leaves no room
    uint32_t repr_topk;         // tokens whose keys make a representative key, <= block_size/n_repr; 0: all of its part, but 4
                                //   with search = queries. Bounds (search = quest) are of all
    uint32_t n_score;           // tokens of a sub-chunk: a ubatch is scored by the best of its sub-chunk means; 0: 16, with
                                //   search = queries or quest 32, and the whole ubatch with published scores. By keys, ubatches
                                //   of at most 2*n_score tokens by those of 2*block_size/n_repr tokens too, if these are fewer
    enum llama_infllm_position position;
    uint64_t store_max_bytes;   // limit of the memory of the block store, bytes; 0: no limit
    enum llama_infllm_paging paging;
    uint64_t pinned_max_bytes;  // limit of pinned memory for devices that page, bytes; 0: no limit. Beyond it the host pages
    enum llama_infllm_attend attend;
    enum llama_infllm_scores scores;
    uint32_t n_repr;            // representative keys of a block, each of an equal part of it; 0: one for 4 tokens, beyond
                                //   n_ctx_train for 8, and for more where there would be over 32768 a layer; but one in all
                                //   with search = queries, and a pair of bounds for 16 with search = quest
    enum llama_infllm_search search;
    char     store_path[512];   // folder for the blocks that store_max_bytes, or the memory there is, has no room for; they go to a
                                //   file without a name. "": they are refused
    enum llama_infllm_type_store type_store; // with type_k = type_v = f16, or the same
    uint64_t budget;            // K and V of the resident buffer of a sequence, bytes; 0: by profile
    uint64_t reserve;           // memory of each device that is left free by profile, bytes; 0: an eighth
    enum llama_infllm_profile profile;
};

// what a resident buffer is limited by
enum llama_infllm_limit {
    LLAMA_INFLLM_LIMIT_PARTS    = 0, // n_local, topk or max_cached_blocks are given
    LLAMA_INFLLM_LIMIT_BUDGET   = 1,
    LLAMA_INFLLM_LIMIT_N_CTX    = 2, // it holds all tokens: as llama.cpp, bit for bit
    LLAMA_INFLLM_LIMIT_TRAINING = 3, // the training length
    LLAMA_INFLLM_LIMIT_SPEED    = 4,
    LLAMA_INFLLM_LIMIT_MEMORY   = 5,
};

// the size of a resident buffer, and why
struct llama_infllm_plan {
    uint32_t n_cells;           // of a sequence
    uint32_t n_cells_fast;      // that FAST has: the least without a budget
    uint32_t n_cells_train;     // at most, by the training length,
    uint32_t n_cells_speed;     //   by profile,
    uint32_t n_cells_memory;    //   and by the memory that is free now; UINT32_MAX: no limit
    uint64_t bytes_cell;        // K and V of a token, layers with the method
    uint64_t bytes_weights;     // that computing a token reads
    enum llama_infllm_limit limit;
};

// counters since the context was made (or llama_infllm_reset_stats), gauges of now
struct llama_infllm_stats {
    uint32_t n_layer;           // layers summed up here: 1, or all
    uint32_t n_seq;             // sequences that hold tokens
    uint64_t n_tokens;          // tokens held, all sequences
    uint64_t n_tokens_resident; // tokens attention can see without paging, all sequences (of one layer)
    uint64_t n_blocks;          // blocks in the store, times layers; 0 while everything fits the resident buffer
    uint64_t n_slots;           // slots, times layers
    uint64_t bytes_resident;    // K and V of the resident buffer
    uint64_t bytes_repr;        // representative keys
    uint64_t bytes_store;       // blocks in the store: K, V and what representative keys are chosen by
    uint64_t bytes_store_kv;    // K and V rows alone
    uint64_t bytes_paged_in;
    uint64_t n_select;          // selections made
    uint64_t n_selected;        // blocks selected
    uint64_t n_hit;             // of which already resident
    uint64_t n_page_in;         // of which paged in (n_selected = n_hit + n_page_in)
    uint32_t n_layer_pager;     // layers on devices that have a pager, where paging = host does not say otherwise
    uint32_t n_layer_device;    // of which these page now; the host pages all other layers
    uint64_t bytes_store_file;  // of bytes_store, in files, of sessions or in store_path, or a fork's: takes no memory of its own
    // what the host pages; a layer's time is that of those that follow its selection, too
    uint64_t n_page_in_file;    // blocks copied into slots from there, selected or to fill up
    uint64_t us_page_in;        // time that page ops took to copy blocks in from memory, microseconds
    uint64_t us_page_in_file;   // and from there
};

struct llama_infllm_trace_event {
    int32_t         il;         // layer
    llama_seq_id    seq_id;
    llama_pos       pos;        // position of the ubatch's first token
    uint32_t        n_tokens;   // tokens of the ubatch
    uint32_t        n_blocks;   // blocks that could be selected
    uint32_t        n_selected;
    uint32_t        n_page_in;
    const int32_t * selected;   // [n_selected] block indices, best first; block b holds the positions
                                //   n_init + b*block_size .. n_init + (b + 1)*block_size - 1
    const float   * scores;     // [n_blocks]
};

// called from a compute thread during llama_decode(); must not call back into the context
typedef void (*llama_infllm_trace_callback)(const struct llama_infllm_trace_event * event, void * user_data);

LLAMA_API struct llama_infllm_params llama_infllm_default_params(void);

// read "1" or "name=value,..." into params; names are the fields above; "0" or "" switch the method off
// returns false on an unknown name or a bad value, see llama_infllm_last_error()
LLAMA_API bool llama_infllm_params_parse(const char * text, struct llama_infllm_params * params, bool * enabled);

// tokens that the model was trained for, or those that YaRN extends them to when cparams asks for it
LLAMA_API uint32_t llama_infllm_n_ctx_train(const struct llama_model * model, const struct llama_context_params * cparams);

// positions that the model has embeddings for, UINT32_MAX where these are none: a longer text would end the program
LLAMA_API uint32_t llama_infllm_n_pos_max(const struct llama_model * model);

// fill in the automatic values and check params against the model and the context parameters
// returns false when they cannot work, or the model or its types of K and V have no InfLLM memory, see
// llama_infllm_last_error()
LLAMA_API bool llama_infllm_params_resolve(
        const struct llama_model          * model,
        const struct llama_context_params * cparams,
              struct llama_infllm_params  * params);

// what is planned for params as llama_infllm_params_resolve() takes them; false where that fails
LLAMA_API bool llama_infllm_get_plan(
        const struct llama_model          * model,
        const struct llama_context_params * cparams,
        const struct llama_infllm_params  * params,
              struct llama_infllm_plan    * plan);

// cells of the resident buffer per sequence for resolved params, padded to a multiple of 256 as the buffer is
// (a context shorter than that needs, and gets, only n_ctx cells)
LLAMA_API uint32_t llama_infllm_n_cells(const struct llama_infllm_params * params, uint32_t n_ubatch);

// The layers of a model that attend to all tokens, which the InfLLM memory is for; n_k, n_v: values of K and V that a token has
// in all of them. Others, of a hybrid model or with a sliding window, keep llama.cpp's memory, which does not grow with n_ctx.
// dev: of the layers on this device alone, NULL: of all
LLAMA_API uint32_t llama_infllm_n_layer(const struct llama_model * model, ggml_backend_dev_t dev, uint64_t * n_k, uint64_t * n_v);

// bytes of the representative keys of n_block blocks, with resolved parameters
LLAMA_API uint64_t llama_infllm_repr_bytes(const struct llama_model * model, const struct llama_infllm_params * params, uint32_t n_block);

// like llama_init_from_model(), with the InfLLM memory
// returns NULL on failure, see llama_infllm_last_error()
LLAMA_API struct llama_context * llama_infllm_init_from_model(
        struct llama_model          * model,
        struct llama_context_params   cparams,
        struct llama_infllm_params    params);

// like llama_init_from_model() where LLAMA_INFLLM is not set, whatever it is set to
LLAMA_API struct llama_context * llama_infllm_init_from_model_plain(
        struct llama_model          * model,
        struct llama_context_params   cparams);

// one sentence about the last failure on this thread, "" if there was none
LLAMA_API const char * llama_infllm_last_error(void);

// true if the context has the InfLLM memory
LLAMA_API bool llama_infllm_active(const struct llama_context * ctx);

// the resolved parameters of the context; false if it has no InfLLM memory
LLAMA_API bool llama_infllm_get_params(const struct llama_context * ctx, struct llama_infllm_params * params);

// A text from position p0 to p1 is computed in ubatches that end at positions which depend on p1 and n_ubatch alone; with `ends` its
// last token alone has an output, and its last tokens, llama_infllm_n_end() of them, are a ubatch of their own. A caller that ends
// its batches where llama_infllm_batch_end() says gets the same logits, bit for bit, whatever n_batch is, and when it reads on from
// the end of any ubatch. p1 if p0 >= p1. The same without the InfLLM memory.
LLAMA_API uint32_t llama_infllm_n_end     (const struct llama_context * ctx);
LLAMA_API uint32_t llama_infllm_ubatch_end(const struct llama_context * ctx, uint32_t p0, uint32_t p1, bool ends);
LLAMA_API uint32_t llama_infllm_batch_end (const struct llama_context * ctx, uint32_t p0, uint32_t p1, bool ends);

// Whether a sequence can hold n_tokens tokens in all, by n_ctx, store_max_bytes and the memory that is free now: a long text that
// cannot be held is better refused before it is read. false: see llama_infllm_last_error(). Without the InfLLM memory: true.
LLAMA_API bool llama_infllm_check_tokens(const struct llama_context * ctx, llama_seq_id seq_id, uint32_t n_tokens);

//
// Sessions: a sequence in a file, with its tokens and whatever else belongs to it. What is wrong is told by llama_infllm_last_error().
// A file belongs to one machine's byte order, one model and one set of parameters; others are refused, by what differs.
//

struct llama_infllm_session; // an open file, which nobody else can write to until it is freed and no context has its blocks

struct llama_infllm_session_info {
    uint64_t n_tokens;
    uint64_t n_blocks;
    uint64_t n_saved;     // how often it was saved
    uint64_t bytes;       // of the file
    uint64_t bytes_state; // what is resident
    uint64_t bytes_data;  // of the caller
};

// reads all but the blocks; NULL on failure
LLAMA_API struct llama_infllm_session * llama_infllm_session_open(const char * path);

LLAMA_API void llama_infllm_session_free(struct llama_infllm_session * session);

LLAMA_API void llama_infllm_session_get_info(const struct llama_infllm_session * session, struct llama_infllm_session_info * info);

LLAMA_API const llama_token * llama_infllm_session_tokens(const struct llama_infllm_session * session); // [n_tokens]
LLAMA_API const uint8_t     * llama_infllm_session_data  (const struct llama_infllm_session * session); // [bytes_data]

// reads all blocks; false if one of them is not what was saved
LLAMA_API bool llama_infllm_session_verify(const struct llama_infllm_session * session);

// Sequence seq_id becomes the session. Blocks stay in the file, which is mapped, and come when they are selected, unless a device
// pages them. Returns false, with nothing changed, if the session is not for such a context; a model with recurrent layers or
// sliding windows can lose the sequence where these parts are refused.
LLAMA_API bool llama_infllm_session_load(struct llama_infllm_session * session, struct llama_context * ctx, llama_seq_id seq_id);

// Save a sequence of n_tokens tokens. Where path is the file that the sequence was loaded from or saved to before, and no other
// context has it open, only blocks that are new are written; else it is a new file, put into the place of what is there. Returns false if that fails, then there is what
// was there before, also after a crash at any time.
LLAMA_API bool llama_infllm_session_save(
        struct llama_context * ctx, llama_seq_id seq_id, const char * path,
        const llama_token * tokens, size_t n_tokens, const uint8_t * data, size_t n_data);

// A sequence of a context becomes what one of another context is, of the same model and parameters. Both share the blocks that are
// stored until now, which live as long as one of them needs them; they can be used on different threads, and each ends on its own.
// Where devices page, blocks are copied. false: see llama_infllm_last_error()
LLAMA_API bool llama_infllm_fork(
        struct llama_context * src, llama_seq_id seq_id_src, struct llama_context * dst, llama_seq_id seq_id_dst);

// Tokens that a sequence of a model can have and still be answered: the training length, or the n_ctx of a context with the method
// that there is of it, if that is more.
LLAMA_API int32_t llama_infllm_n_ctx_max(const struct llama_model * model);

// il < 0: all layers; false if the context has no InfLLM memory or no such layer
// may be called from another thread while the context computes; devices that page bring their counters up to date at
// llama_synchronize()
LLAMA_API bool llama_infllm_get_stats(const struct llama_context * ctx, int32_t il, struct llama_infllm_stats * stats);

// of all contexts of the process together, or as it was before the last one was freed, from any thread; false if none has had
// the method
LLAMA_API bool llama_infllm_get_all_stats(struct llama_infllm_stats * stats);

// Why the host pages layer il, or any layer (il < 0), that is on a device: one sentence, written to buf as snprintf() does, ""
// where the devices page, or where there are none. May end, as stats tell: blocks that could not be pinned do when they are
// removed. Returns the length of the sentence, -1 if the context has no InfLLM memory
LLAMA_API int32_t llama_infllm_paging_reason(const struct llama_context * ctx, int32_t il, char * buf, size_t buf_size);

LLAMA_API void llama_infllm_reset_stats(struct llama_context * ctx);

// per-layer selection trace; NULL switches it off
LLAMA_API void llama_infllm_set_trace(struct llama_context * ctx, llama_infllm_trace_callback callback, void * user_data);

// Replace the scores of the stored blocks, of a layer and a ubatch, by others: to replay what was selected elsewhere, for
// benchmarks. Called before the ubatch is computed; NULL switches it off.
typedef void (*llama_infllm_score_callback)(int32_t il, uint32_t n_blocks, float * scores, void * user_data);

LLAMA_API void llama_infllm_set_scores(struct llama_context * ctx, llama_infllm_score_callback callback, void * user_data);

// Compare every slot with the block in the store that it should hold, rotated to its place: the number of slots, of all
// layers and sequences, whose bytes differ. For tests; reads all that is resident.
LLAMA_API uint32_t llama_infllm_check_slots(struct llama_context * ctx);

#ifdef __cplusplus
}
#endif
