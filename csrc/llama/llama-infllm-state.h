#pragma once

#include "llama-infllm-sequence.h"

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

class llama_io_read_i;
class llama_io_write_i;

// The state of a sequence as bytes, of this machine. Everything is read, and looked at, before anything is changed: what does not
// fit or is damaged is refused by an exception.

// what keeps blocks elsewhere than among the bytes, if a writer or reader is one
class llama_infllm_block_sink {
public:
    virtual ~llama_infllm_block_sink() = default;

    virtual void put(infllm::block_store & store, int32_t id) = 0;
};

// gives them back in their order
class llama_infllm_block_source {
public:
    virtual ~llama_infllm_block_source() = default;

    virtual int32_t map(infllm::block_store & store)    = 0;
    virtual void    get(uint8_t * dst, size_t n_bytes) = 0;

    // throws unless these were all blocks, of a sequence of so many tokens
    virtual void check_all(uint32_t n_tokens) const { (void) n_tokens; }
};

// What a context must have in common with the one that was saved: names and values are those of the parameters.
class llama_infllm_fingerprint {
public:
    explicit llama_infllm_fingerprint(const llama_infllm_layers & layers);

    void write(llama_io_write_i & io) const;

    // throws unless what is read is the same, and says what differs
    void check(llama_io_read_i & io) const;

private:
    struct item {
        const char * name;
        uint64_t     value;
        std::string (*text)(uint64_t value) = nullptr; // what the value is called
    };
    std::vector<item> items;
};

// what llama_infllm_sequence holds
struct llama_infllm_snapshot {
    llama_seq_id id; // of the sequence that was saved

    struct layer {
        std::vector<uint8_t> k;      // cells in use
        std::vector<uint8_t> v;
        std::vector<uint8_t> init_k; // see llama_infllm_sequence
        std::vector<uint8_t> repr;   // of the stored blocks
        std::vector<uint8_t> mean;
        std::vector<uint8_t> pager;  // pager_state
    };

    uint32_t n_tokens;
    uint32_t n_written;
    uint32_t n_offload;
    uint32_t shift;
    uint32_t stale;
    int32_t  place;

    std::vector<layer>   layers;
    std::vector<int32_t> blocks; // in the store, with a reference

    // with a checksum
    void write(llama_io_write_i & io, infllm::block_store & store) const;

    // Throws if it is not the state of such a sequence, or there is no memory. No more memory is taken than there are bytes to read.
    //   reserve  makes room for so many more blocks in the store, or throws
    using reserve_fun = std::function<void(uint32_t n_block)>;
    void read(llama_io_read_i & io, const llama_infllm_layers & layers, infllm::block_store & store, const reserve_fun & reserve);

private:
    void check(const llama_infllm_layers & layers) const; // the numbers that decide what follows
    void check_slots(layer & part, const llama_infllm_layer & l) const;
};
