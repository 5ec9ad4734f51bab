#include "llama-infllm-state.h"

#include "llama-infllm-params.h"

#include "../infllm/checksum.h"

#include "llama-impl.h"
#include "llama-io.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

static const char     MAGIC[8] = { 'i', 'n', 'f', 'l', 'l', 'm', 0, 0 };
static const uint32_t VERSION  = 5;

[[noreturn]] static void refuse(const std::string & why) {
    throw std::runtime_error("the state cannot be loaded: " + why);
}

template <typename T>
static void write_value(llama_io_write_i & io, const T & value) {
    io.write(&value, sizeof(value));
}

template <typename T>
static T read_value(llama_io_read_i & io) {
    T res;
    io.read(&res, sizeof(res));
    return res;
}

//
// checksums
//

class summed_writer : public llama_io_write_i {
public:
    explicit summed_writer(llama_io_write_i & io) : io(io) {}

    void write(const void * src, size_t size) override {
        sum.add(src, size);
        io.write(src, size);
    }

    [[noreturn]] void write_tensor(ggml_tensor *, size_t, size_t) override { GGML_ABORT("tensors are written as bytes"); }

    size_t n_bytes() override { return io.n_bytes(); }

    // and what has been written
    void end() { write_value(io, sum.get()); }

private:
    llama_io_write_i & io;
    infllm::checksum   sum;
};

class summed_reader : public llama_io_read_i {
public:
    explicit summed_reader(llama_io_read_i & io) : io(io) {}

    void read(void * dst, size_t size) override {
        io.read(dst, size);
        sum.add(dst, size);
    }

    [[noreturn]] void read_tensor(ggml_tensor *, size_t, size_t) override { GGML_ABORT("tensors are read as bytes"); }

    size_t n_bytes() override { return io.n_bytes(); }

    bool is_whole() { return read_value<uint64_t>(io) == sum.get(); }

private:
    llama_io_read_i & io;
    infllm::checksum  sum;
};

//
// llama_infllm_fingerprint
//

static std::string type_name(uint64_t type) {
    return type < GGML_TYPE_COUNT ? ggml_type_name(ggml_type(type)) : std::to_string(type);
}

static uint64_t bits_of(float x) {
    uint32_t res;
    std::memcpy(&res, &x, sizeof(res));
    return res;
}

static std::string float_name(uint64_t bits) {
    const auto low = uint32_t(bits);
    float res;
    std::memcpy(&res, &low, sizeof(res));
    return ::format("%g", res);
}

llama_infllm_fingerprint::llama_infllm_fingerprint(const llama_infllm_layers & layers) {
    const auto & prm   = layers.prm.infllm;
    const auto & rope  = layers.prm.rope;
    const auto & cells = layers.cells;

    // what others follow from comes first
    items = {
        { "layers with the method", layers.all().size() },
        { "the model's weights", layers.model_sum() },
        { "position",           uint64_t(prm.position),      [](uint64_t x) { return llama_infllm_choice_name("position", int(x)); } },
        { "search",             uint64_t(prm.search),        [](uint64_t x) { return llama_infllm_choice_name("search",   int(x)); } },
        { "scores",             uint64_t(prm.scores),        [](uint64_t x) { return llama_infllm_choice_name("scores",   int(x)); } },
        { "type_k",             uint64_t(layers.prm.type_k), type_name },
        { "type_v",             uint64_t(layers.prm.type_v), type_name },
        { "type_store",         uint64_t(prm.type_store),    [](uint64_t x) { return llama_infllm_choice_name("type_store", int(x)); } },
        { "rotated values",     layers.prm.rot_v },
        { "rope_freq_base",     bits_of(rope.freq_base),     float_name },
        { "rope_freq_scale",    bits_of(rope.freq_scale),    float_name },
        { "yarn_ext_factor",    bits_of(rope.ext_factor),    float_name },
        { "yarn_attn_factor",   bits_of(rope.attn_factor),   float_name },
        { "yarn_beta_fast",     bits_of(rope.beta_fast),     float_name },
        { "yarn_beta_slow",     bits_of(rope.beta_slow),     float_name },
        { "yarn_orig_ctx",      rope.orig_ctx },
        { "long factors of LongRoPE", rope.is_long },
        { "n_init",             cells.n_init },
        { "n_local",            cells.n_local },
        { "block_size",         cells.block_size },
        { "max_cached_blocks",  cells.n_slot },
        { "cells of the ring (n_ubatch)", cells.n_ring },
        { "n_repr",             prm.n_repr },
        { "repr_topk",          prm.repr_topk },
        { "room for more than the resident buffer (n_ctx)", layers.can_page() },
    };
    for (const auto & l : layers.all()) {
        items.push_back({ "index of a layer",           uint64_t(l.il) });
        items.push_back({ "KV heads of a layer",        l.shape.n_head_kv });
        items.push_back({ "size of the heads of K",     l.shape.n_embd_head_k });
        items.push_back({ "size of the heads of V",     l.n_embd_head_v });
        items.push_back({ "bytes of a token's K",       l.shape.row_k });
        items.push_back({ "bytes of a token's V",       l.shape.row_v });
        items.push_back({ "sums of a block",            l.shape.n_chunk*uint64_t(l.shape.n_sum) });
        items.push_back({ "rotated dimensions",         l.shape.n_rot });
        items.push_back({ "layers that search",         l.search });
    }
}

void llama_infllm_fingerprint::write(llama_io_write_i & io) const {
    io.write(MAGIC, sizeof(MAGIC));
    write_value(io, VERSION);
    write_value(io, uint32_t(items.size()));
    for (const auto & i : items) {
        write_value(io, i.value);
    }
}

void llama_infllm_fingerprint::check(llama_io_read_i & io) const {
    char magic[sizeof(MAGIC)];
    io.read(magic, sizeof(magic));
    if (std::memcmp(magic, MAGIC, sizeof(MAGIC)) != 0) {
        refuse("it is not one of an InfLLM memory");
    }
    const auto version = read_value<uint32_t>(io);
    if (version != VERSION) {
        refuse(::format("it is of version %u, this program reads version %u", version, VERSION));
    }
    const auto n = read_value<uint32_t>(io);
    for (uint32_t i = 0; i < n && i < items.size(); ++i) {
        const auto value = read_value<uint64_t>(io);
        if (value != items[i].value) {
            const auto text = items[i].text ? items[i].text : [](uint64_t x) { return std::to_string(x); };
            refuse(::format("%s: %s in the state, %s in this context", items[i].name, text(value).c_str(), text(items[i].value).c_str()));
        }
    }
    if (n != items.size()) {
        refuse("it is of another model");
    }
}

//
// llama_infllm_snapshot
//

// one after the other, with their sizes
template <typename Layer, typename F>
static void for_each_part(Layer & l, F f) {
    for (auto * part : { &l.k, &l.v, &l.init_k, &l.repr, &l.mean, &l.pager }) {
        f(*part);
    }
}

void llama_infllm_snapshot::write(llama_io_write_i & to, infllm::block_store & store) const {
    summed_writer io(to);
    write_value(io, id);
    write_value(io, n_tokens);
    write_value(io, n_written);
    write_value(io, n_offload);
    write_value(io, shift);
    write_value(io, stale);
    write_value(io, place);
    for (const auto & l : layers) {
        for_each_part(l, [&](const std::vector<uint8_t> & part) {
            if (!part.empty()) { // nor has it an address
                io.write(part.data(), part.size());
            }
        });
    }
    auto * sink = dynamic_cast<llama_infllm_block_sink *>(&to);
    for (const int32_t block : blocks) {
        if (sink) {
            sink->put(store, block);
        } else {
            io.write(store.data(block), store.block_bytes());
        }
    }
    io.end();
}

void llama_infllm_snapshot::check(const llama_infllm_layers & layers) const {
    const auto & cells = layers.cells;
    if (n_tokens > layers.prm.n_ctx_seq) {
        refuse(::format("it has %u tokens, more than n_ctx = %u", n_tokens, layers.prm.n_ctx_seq));
    }
    const uint32_t n_whole = n_tokens > cells.n_init ? (n_tokens - cells.n_init)/cells.block_size : 0;
    const bool     fits    = n_offload == 0 ? n_tokens <= cells.n_cells() :
        n_offload >= cells.n_slot && n_offload <= n_whole && n_offload <= layers.n_block_max &&
        n_tokens - cells.block_pos(n_offload) <= cells.n_ring;
    const bool     shifted = n_offload == 0 || !layers.remap ? shift == 0 : shift <= n_offload - cells.n_slot;
    if (!fits || !shifted || n_written < n_tokens || stale > 1 || place < infllm::PLACE_UPDATE || place > infllm::PLACE_ALL) {
        refuse("it is damaged");
    }
}

// they decide what is copied where
void llama_infllm_snapshot::check_slots(layer & part, const llama_infllm_layer & l) const {
    const auto slots = infllm::pager_state::at(l.shape, part.pager.data()).slots;

    std::vector<int32_t> in_slots(slots.block, slots.block + slots.n_slot);
    std::sort(in_slots.begin(), in_slots.end());
    if (in_slots.front() < 0 || in_slots.back() >= int32_t(n_offload) ||
            std::adjacent_find(in_slots.begin(), in_slots.end()) != in_slots.end()) {
        refuse("it is damaged");
    }
}

static void read_bytes(llama_io_read_i & io, std::vector<uint8_t> & res, size_t size) {
    const size_t piece = 1 << 20;
    for (size_t n = 0; n < size;) {
        const size_t n_read = std::min(piece, size - n);
        res.resize(n + n_read);
        io.read(res.data() + n, n_read);
        n += n_read;
    }
}

void llama_infllm_snapshot::read(
        llama_io_read_i & from, const llama_infllm_layers & model_layers, infllm::block_store & store, const reserve_fun & reserve) {
    summed_reader io(from);
    id        = read_value<llama_seq_id>(io);
    n_tokens  = read_value<uint32_t>(io);
    n_written = read_value<uint32_t>(io);
    n_offload = read_value<uint32_t>(io);
    shift     = read_value<uint32_t>(io);
    stale     = read_value<uint32_t>(io);
    place     = read_value<int32_t >(io);
    check(model_layers);

    const auto & cells   = model_layers.cells;
    const bool   paging  = n_offload > 0;
    const size_t n_cells = paging ? cells.n_cells() : n_tokens;
    for (const auto & l : model_layers.all()) {
        const auto & shape = l.shape;

        layer part;
        read_bytes(io, part.k,      n_cells*shape.row_k);
        read_bytes(io, part.v,      n_cells*shape.row_v);
        read_bytes(io, part.init_k, paging && model_layers.remap && l.rope >= 0 ? cells.n_init*shape.row_k : 0);
        read_bytes(io, part.repr,   paging && l.search ? size_t(n_offload)*shape.n_repr*shape.n_embd_repr()*sizeof(uint16_t) : 0);
        read_bytes(io, part.mean,   paging && l.mean ? shape.n_embd_repr()*sizeof(float) : 0);
        read_bytes(io, part.pager,  model_layers.can_page() ? infllm::pager_state::size(shape) : 0);
        if (paging) {
            check_slots(part, l);
        }
        layers.push_back(std::move(part));
    }

    auto * source = dynamic_cast<llama_infllm_block_source *>(&from);
    for (uint32_t b = 0; b < n_offload; ++b) {
        if (source && store.can_map()) {
            blocks.reserve(n_offload);
            blocks.push_back(source->map(store));
            continue;
        }
        const uint32_t n_reserved = 16;
        if (b%n_reserved == 0) {
            reserve(std::min(n_reserved, n_offload - b));
        }
        blocks.push_back(store.alloc());
        if (source) {
            source->get(store.data(blocks.back()), store.block_bytes());
        } else {
            io.read(store.data(blocks.back()), store.block_bytes());
        }
    }
    if (!io.is_whole()) {
        refuse("it is damaged");
    }
    if (source) {
        source->check_all(n_tokens);
    }
}

//
// llama_infllm_sequence
//

static std::vector<uint8_t> get_bytes(const ggml_tensor * t, size_t offset, size_t size) {
    std::vector<uint8_t> res(size);
    ggml_backend_tensor_get(t, res.data(), offset, size);
    return res;
}

static void set_bytes(ggml_tensor * t, size_t offset, const std::vector<uint8_t> & bytes) {
    if (!bytes.empty()) {
        ggml_backend_tensor_set(t, bytes.data(), offset, bytes.size());
    }
}

void llama_infllm_sequence::write(llama_io_write_i & io) const {
    pagers.synchronize();

    llama_infllm_snapshot res;
    res.id        = id;
    res.n_tokens  = n_tokens;
    res.n_written = n_written;
    res.n_offload = get_n_offload();
    res.shift     = shift;
    res.stale     = stale;
    res.place     = place;

    const size_t n_cells = paging() ? cells.n_cells() : n_tokens;
    for (const auto & l : layers.all()) {
        llama_infllm_snapshot::layer part;
        part.k = get_bytes(l.k, id*l.k->nb[2], n_cells*l.k->nb[1]);
        if (l.v) {
            part.v = get_bytes(l.v, id*l.v->nb[2], n_cells*l.v->nb[1]);
        }
        if (paging()) {
            part.init_k = init_k[l.idx];
        }
        if (paging() && l.repr) {
            part.repr = get_bytes(l.repr, id*l.repr->nb[2], size_t(get_n_offload())*l.shape.n_repr*l.repr->nb[1]);
        }
        if (paging() && l.mean) {
            part.mean = get_bytes(l.mean, id*l.mean->nb[2], l.mean->nb[1]);
        }
        if (layers.can_page()) {
            pagers.of(l).read(l.idx, id, [&](const infllm::pager_layer & pl, const infllm::pager_state & state) {
                const auto * begin = reinterpret_cast<const uint8_t *>(state.stats); // it begins with them
                part.pager.assign(begin, begin + infllm::pager_state::size(pl));
                std::memset(part.pager.data(), 0, sizeof(infllm::pager_stats));
            });
        }
        res.layers.push_back(std::move(part));
    }
    res.blocks = blocks;
    res.write(io, store);
}

void llama_infllm_sequence::load(llama_infllm_snapshot & state) {
    reset();
    pagers.synchronize();

    n_tokens  = state.n_tokens;
    n_written = state.n_written;
    shift     = state.shift;
    stale     = state.stale != 0;
    place     = infllm::pager_place(state.place);
    blocks    = std::move(state.blocks);
    for (const auto & l : layers.all()) {
        const auto & part = state.layers[l.idx];
        set_bytes(l.k, id*l.k->nb[2], part.k);
        if (l.v) {
            set_bytes(l.v, id*l.v->nb[2], part.v);
        }
        if (l.repr) {
            set_bytes(l.repr, id*l.repr->nb[2], part.repr);
        }
        if (l.mean) {
            set_bytes(l.mean, id*l.mean->nb[2], part.mean);
        }
        if (layers.can_page()) {
            init_k[l.idx] = part.init_k;
            pagers.of(l).edit(l.idx, id, [&](const infllm::pager_layer &, const infllm::pager_state & to) {
                std::memcpy(reinterpret_cast<uint8_t *>(to.stats) + sizeof(infllm::pager_stats),
                        part.pager.data() + sizeof(infllm::pager_stats), part.pager.size() - sizeof(infllm::pager_stats));
            });
        }
    }

    std::vector<uint8_t *> data;
    for (const int32_t block : blocks) {
        data.push_back(store.data(block));
    }
    pagers.load(id, data);
}
