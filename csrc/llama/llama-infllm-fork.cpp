// A sequence in a second context: its blocks are shared, which never change; the rest, which is small, is copied.

#include "llama-infllm.h"

#include "llama-infllm-composite.h"
#include "llama-infllm-impl.h"
#include "llama-infllm-io.h"
#include "llama-infllm-state.h"
#include "llama-kv-cache-infllm.h"

#include "llama-memory.h"

#include <cstring>
#include <stdexcept>

namespace {

struct shared_block {
    const uint8_t *             data;
    std::shared_ptr<const void> owner;
    infllm::block_store::home   where;
};

class shared_writer : public llama_infllm_writer, public llama_infllm_block_sink {
public:
    void put(infllm::block_store & store, int32_t id) override {
        if (store.can_map()) {
            blocks.push_back({ store.data(id), store.share(id), store.get_home(id) });
            return;
        }
        // a device's
        const auto copy = std::make_shared<std::vector<uint8_t>>(store.data(id), store.data(id) + store.block_bytes());
        blocks.push_back({ copy->data(), copy, {} });
    }

    std::vector<shared_block> blocks;
};

class shared_reader : public llama_infllm_reader, public llama_infllm_block_source {
public:
    explicit shared_reader(const shared_writer & from) : llama_infllm_reader(from.get().data(), from.get().size()), blocks(from.blocks) {}

    int32_t map(infllm::block_store & store) override {
        const auto & b = next();
        return store.map(b.data, b.owner, b.where);
    }

    void get(uint8_t * dst, size_t n_bytes) override { std::memcpy(dst, next().data, n_bytes); }

private:
    const std::vector<shared_block> & blocks;
    size_t n_block = 0;

    const shared_block & next() { return blocks.at(n_block++); }
};

} // namespace

bool llama_infllm_fork(llama_context * src, llama_seq_id seq_id_src, llama_context * dst, llama_seq_id seq_id_dst) {
    return llama_infllm_try(false, [&] {
        auto * mem_src = llama_infllm_find(llama_get_memory(src));
        auto * mem_dst = llama_infllm_find(llama_get_memory(dst));
        if (!mem_src || !mem_dst) {
            throw std::runtime_error("both contexts must have the InfLLM memory");
        }
        if (src == dst || seq_id_src < 0 || uint32_t(seq_id_src) >= mem_src->get_n_seq() ||
                seq_id_dst < 0 || uint32_t(seq_id_dst) >= mem_dst->get_n_seq()) {
            throw std::runtime_error("a sequence is forked into a sequence of another context");
        }
        llama_synchronize(src);
        llama_synchronize(dst);

        shared_writer writer;
        llama_get_memory(src)->state_write(writer, seq_id_src, 0);
        shared_reader reader(writer);
        llama_get_memory(dst)->state_read(reader, seq_id_dst, 0);
        return true;
    });
}
