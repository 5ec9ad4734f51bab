// Sessions: a sequence in a file, see ../infllm/session-file.h.

#include "llama-infllm.h"

#include "llama-infllm-composite.h"
#include "llama-infllm-impl.h"
#include "llama-infllm-io.h"
#include "llama-infllm-state.h"
#include "llama-kv-cache-infllm.h"

#include "../infllm/checksum.h"
#include "../infllm/session-file.h"

#include "llama-impl.h"
#include "llama-memory.h"

#include <cstring>
#include <stdexcept>

using infllm::session_file;

struct llama_infllm_session {
    std::shared_ptr<session_file> file;
};

// all but the blocks goes to memory, and the blocks to a file that has some of them already
class session_writer : public llama_infllm_writer, public llama_infllm_block_sink {
public:
    explicit session_writer(std::shared_ptr<session_file> file) : file(std::move(file)) {}

    void put(infllm::block_store & store, int32_t id) override {
        const auto & home = store.get_home(id);
        blocks.push_back(home.file == file ? session_file::entry { home.offset, home.sum } : file->add(store.data(id)));
        ids.push_back(id);
    }

    void commit(std::vector<int32_t> tokens, const uint8_t * data, size_t n_data) {
        file->commit({ std::move(tokens), blocks, { get().data(), get().size() }, { data, n_data } });
    }

    // they are on disk now
    void set_homes(infllm::block_store & store) const {
        for (size_t i = 0; i < ids.size(); ++i) {
            store.set_home(ids[i], { file, blocks[i].offset, blocks[i].sum });
        }
    }

private:
    const std::shared_ptr<session_file> file;
    std::vector<session_file::entry> blocks;
    std::vector<int32_t>             ids;
};

class session_reader : public llama_infllm_reader, public llama_infllm_block_source {
public:
    explicit session_reader(std::shared_ptr<session_file> from) :
        llama_infllm_reader(from->get_rest().state.data, from->get_rest().state.size), file(std::move(from)) {}

    int32_t map(infllm::block_store & store) override {
        const auto & e = next(store.block_bytes());
        return store.map(file->block(e), file, { file, e.offset, e.sum });
    }

    void get(uint8_t * dst, size_t n_bytes) override {
        const auto & e = next(n_bytes);
        std::memcpy(dst, file->block(e), n_bytes);
        if (infllm::checksum::of(dst, n_bytes) != e.sum) {
            refuse();
        }
    }

    void check_all(uint32_t n_tokens) const override {
        if (n_block != file->get_rest().blocks.size() || n_tokens != file->get_rest().tokens.size()) {
            refuse();
        }
    }

private:
    const std::shared_ptr<session_file> file;
    size_t n_block = 0;

    [[noreturn]] static void refuse() { throw std::runtime_error("the state cannot be loaded: it is damaged"); }

    const session_file::entry & next(size_t block_bytes) {
        const auto & blocks = file->get_rest().blocks;
        if (n_block >= blocks.size() || file->get_block_bytes() != block_bytes) {
            refuse();
        }
        return blocks[n_block++];
    }
};

static llama_kv_cache_infllm & memory_of(llama_context * ctx, llama_seq_id seq_id) {
    auto * mem = llama_infllm_find(llama_get_memory(ctx));
    if (!mem) {
        throw std::runtime_error("sessions need the InfLLM memory, which this context is without");
    }
    if (seq_id < 0 || uint32_t(seq_id) >= mem->get_n_seq()) {
        throw std::runtime_error(::format("seq_id = %d: the context has %u sequences", seq_id, mem->get_n_seq()));
    }
    return *mem;
}

llama_infllm_session * llama_infllm_session_open(const char * path) {
    return llama_infllm_try<llama_infllm_session *>(nullptr, [&] {
        return new llama_infllm_session { session_file::open(path) };
    });
}

void llama_infllm_session_free(llama_infllm_session * session) {
    delete session;
}

void llama_infllm_session_get_info(const llama_infllm_session * session, llama_infllm_session_info * info) {
    const auto & file = *session->file;
    *info = {
        /*.n_tokens   =*/ file.get_rest().tokens.size(),
        /*.n_blocks   =*/ file.get_rest().blocks.size(),
        /*.n_saved    =*/ file.get_generation(),
        /*.bytes      =*/ file.get_size(),
        /*.bytes_state=*/ file.get_rest().state.size,
        /*.bytes_data =*/ file.get_rest().data.size,
    };
}

const llama_token * llama_infllm_session_tokens(const llama_infllm_session * session) {
    return session->file->get_rest().tokens.data();
}

const uint8_t * llama_infllm_session_data(const llama_infllm_session * session) {
    return session->file->get_rest().data.data;
}

bool llama_infllm_session_verify(const llama_infllm_session * session) {
    return llama_infllm_try(false, [&] {
        session->file->verify();
        return true;
    });
}

bool llama_infllm_session_load(llama_infllm_session * session, llama_context * ctx, llama_seq_id seq_id) {
    return llama_infllm_try(false, [&] {
        memory_of(ctx, seq_id); // or what it throws
        llama_synchronize(ctx);

        session_reader io(session->file);
        llama_get_memory(ctx)->state_read(io, seq_id, 0);
        return true;
    });
}

bool llama_infllm_session_save(llama_context * ctx, llama_seq_id seq_id, const char * path,
        const llama_token * tokens, size_t n_tokens, const uint8_t * data, size_t n_data) {
    return llama_infllm_try(false, [&] {
        auto & mem = memory_of(ctx, seq_id);
        llama_synchronize(ctx);
        const auto n_past = size_t(mem.seq_pos_max(seq_id) + 1);
        if (n_tokens != n_past) {
            throw std::runtime_error(::format("n_tokens = %zu, but sequence %d has %zu tokens", n_tokens, seq_id, n_past));
        }

        // Go on with the file that has blocks of this sequence, or with a new one in its place. What a file has beside the blocks of
        // its last state is written over, so nobody else may read it.
        auto file = std::static_pointer_cast<session_file>(mem.get_own_file(seq_id));
        if (!file || !file->is(path) || !file->begin()) {
            file = session_file::create(path, mem.get_layers().block_bytes());
            file->begin();
        }
        try {
            session_writer io(file);
            llama_get_memory(ctx)->state_write(io, seq_id, 0);
            io.commit({ tokens, tokens + n_tokens }, data, n_data);
            mem.set_homes([&](infllm::block_store & store) { io.set_homes(store); });
        } catch (...) {
            file->abandon();
            throw;
        }
        return true;
    });
}
