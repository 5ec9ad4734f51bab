#pragma once

#include "llama-infllm-layers.h"
#include "llama-infllm-sequence.h"

#include "llama-batch.h"

#include <vector>

// Splits a batch into ubatches: tokens of one sequence, or a token of each of several that follow on each other (streams). It walks
// through the batch as apply() will, so that all that it needs is known before anything is changed.
class llama_infllm_split {
public:
    // throws std::runtime_error if tokens of the batch are of a kind that is not taken
    llama_infllm_split(
            llama_batch_allocr & balloc,
            const llama_infllm_layers & layers,
            const std::vector<llama_infllm_sequence> & seqs,
            uint32_t n_ubatch,
            bool can_stream);

    // the next one, without tokens if there is none; throws std::runtime_error if a sequence cannot take its tokens
    llama_ubatch next();

    // what the ubatches so far need
    uint64_t get_n_blocks_new() const { return n_blocks_new; } // in the store
    uint32_t get_n_block_max()  const { return n_block_max; }  // of a sequence

private:
    // what the batch has of a sequence; a text ends here if its last token alone has an output
    struct part {
        uint32_t p1          = 0;
        uint32_t n_outputs   = 0;
        bool     last_output = false;
    };

    llama_batch_allocr &        balloc;
    const llama_batch &         batch;
    const llama_infllm_layers & layers;
    const uint32_t              n_ubatch;
    const bool                  can_stream;

    std::vector<part>                        parts; // [n_seq]
    std::vector<llama_infllm_sequence::plan> plans; // [n_seq] of what is in ubatches already

    int32_t  i            = 0; // no token before this one is left
    uint64_t n_blocks_new = 0;
    uint32_t n_block_max  = 0;

    bool is_split(int32_t i) const;

    uint32_t n_tokens()  const; // of the sequence of token i, in the next ubatch
    uint32_t n_streams() const; // sequences that have one token left, and follow on each other from that of token i on

    void take(llama_seq_id s, llama_pos pos, uint32_t n);
};
