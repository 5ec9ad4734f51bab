#include "llama-kv-cache-infllm.h"

#include "llama-infllm-impl.h"
#include "llama-infllm-split.h"
#include "llama-infllm-state.h"

#include "llama-impl.h"
#include "llama-io.h"
#include "llama-model.h"

#include <algorithm>
#include <stdexcept>

//
// llama_kv_cache_infllm
//

llama_kv_cache_infllm::llama_kv_cache_infllm(
        const llama_model & model,
        const params & params,
        const std::map<int32_t, llama_infllm_key> & keys,
        const layer_filter_cb & filter,
        const layer_reuse_cb & reuse) :
    model(model),
    paging(std::make_unique<llama_infllm_page_control>(params.infllm, params.n_seq_max)),
    layers(model, params, keys, filter, reuse, *paging),
    store(paging->make_store(layers.block_bytes(), params.infllm.store_max_bytes)),
    seq_tokens(params.n_seq_max),
    seq_blocks(params.n_seq_max) {
    for (uint32_t s = 0; s < params.n_seq_max; ++s) {
        seqs.emplace_back(llama_seq_id(s), layers, *paging, *store);
    }
    paging->verify();
    if (!model.hparams.no_alloc) { // else it is made to be measured
        llama_infllm_add_live(this);
    }
}

llama_kv_cache_infllm::~llama_kv_cache_infllm() {
    llama_infllm_remove_live(this);
    paging->wait(); // blocks may still be on their way to the store
}

llama_memory_context_ptr llama_kv_cache_infllm::init_batch(
        llama_batch_allocr & balloc, uint32_t n_ubatch, bool embd_all) {
    GGML_UNUSED(embd_all);

    auto ubatches = prepare(balloc, n_ubatch);
    if (ubatches.empty()) {
        return std::make_unique<llama_kv_cache_infllm_context>(LLAMA_MEMORY_STATUS_FAILED_PREPARE);
    }
    return std::make_unique<llama_kv_cache_infllm_context>(this, std::move(ubatches));
}

std::vector<llama_ubatch> llama_kv_cache_infllm::prepare(llama_batch_allocr & balloc, uint32_t n_ubatch) {
    llama_infllm_set_error("");

    std::vector<llama_ubatch> res;
    try {
        if (balloc.get_batch().embd && model.hparams.n_pos_per_embd() > 1) {
            throw std::runtime_error("the batch has embeddings, of an image for example, whose tokens have several positions each: "
                    "the InfLLM memory takes text alone");
        }
        llama_infllm_split split(balloc, layers, seqs, n_ubatch, can_stream());
        for (auto ubatch = split.next(); ubatch.n_tokens > 0; ubatch = split.next()) {
            res.push_back(std::move(ubatch));
        }
        reserve(split.get_n_blocks_new(), split.get_n_block_max());
    } catch (const std::exception & err) {
        llama_infllm_set_error(err.what());
        LLAMA_LOG_ERROR("init_batch: %s\n", err.what());
        return {};
    }
    return res;
}

bool llama_kv_cache_infllm::fits_memory(uint64_t n_new) const {
    const uint64_t size  = store->block_bytes();
    const uint64_t limit = store->bytes_max();
    const uint64_t used  = store->n_blocks() - store->n_elsewhere();
    const uint64_t taken = n_new - std::min<uint64_t>(n_new, store->n_backed());
    return n_new == 0 || ((limit == 0 || (used + n_new)*size <= limit) && (taken == 0 || llama_infllm_ram_has(taken*size)));
}

std::string llama_kv_cache_infllm::check_store(uint64_t n_new) const {
    const uint64_t size  = store->block_bytes();
    const uint64_t limit = store->bytes_max();
    const uint64_t used  = store->n_blocks();

    const auto * files = store->get_files();
    if (fits_memory(n_new) || (files && n_new*size <= files->room())) {
        return "";
    }
    const auto     mib  = [](uint64_t n) { return n/1024.0/1024.0; };
    const uint64_t free = llama_infllm_ram_free();
    const bool     over = limit > 0 && (used - store->n_elsewhere() + n_new)*size > limit;
    const char   * path = layers.prm.infllm.store_path;
    return ::format("the block store has %.1f MiB and cannot grow by %.1f MiB (%s%s): %s", mib(used*size), mib(n_new*size),
            over ? ::format("store_max_bytes = %.1f MiB", mib(limit)).c_str() : ::format("%.1f MiB of memory are free", mib(free)).c_str(),
            files ? ::format(", %.1f MiB in store_path = %s", mib(files->room()), path).c_str() : "",
            files ? "free one of them, or shorten the text" : "raise store_max_bytes, free memory, give a store_path, or shorten the text");
}

std::string llama_kv_cache_infllm::check_tokens(llama_seq_id seq_id, uint32_t n_tokens) const {
    if (seq_id < 0 || seq_id >= llama_seq_id(seqs.size()) || n_tokens > layers.prm.n_ctx_seq) {
        return ::format("sequence %d cannot hold %u tokens: there are %zu sequences of n_ctx = %u",
                seq_id, n_tokens, seqs.size(), layers.prm.n_ctx_seq);
    }
    const uint32_t n_block = layers.can_page() ? layers.cells.n_offload(n_tokens, n_tokens) : 0;
    const uint32_t n_old   = seqs[seq_id].get_n_offload();
    return check_store(n_block > n_old ? n_block - n_old : 0);
}

llama_memory_context_ptr llama_kv_cache_infllm::init_full() {
    return std::make_unique<llama_kv_cache_infllm_context>(this);
}

llama_memory_context_ptr llama_kv_cache_infllm::init_update(llama_context * lctx, bool optimize) {
    GGML_UNUSED(lctx);
    GGML_UNUSED(optimize);

    return std::make_unique<llama_kv_cache_infllm_context>(LLAMA_MEMORY_STATUS_NO_UPDATE);
}

bool llama_kv_cache_infllm::get_can_shift() const {
    return false;
}

void llama_kv_cache_infllm::clear(bool data) {
    for (auto & seq : seqs) {
        seq.reset();
    }
    if (data) {
        paging->synchronize();
        layers.zero();
    }
    update();
}

bool llama_kv_cache_infllm::can_rm(llama_seq_id seq_id, llama_pos p0, llama_pos p1) const {
    if (seq_id >= llama_seq_id(seqs.size())) {
        return false;
    }
    // a hole would need blocks of varying size
    const uint32_t n0 = std::max(p0, 0);
    const uint32_t n1 = seqs[seq_id].get_n_tokens();
    return n0 >= n1 || p1 < 0 || uint32_t(p1) >= n1 || p1 <= llama_pos(n0);
}

bool llama_kv_cache_infllm::seq_rm(llama_seq_id seq_id, llama_pos p0, llama_pos p1) {
    if (seq_id >= llama_seq_id(seqs.size())) {
        return false;
    }

    const uint32_t n0 = std::max(p0, 0);

    for (size_t s = 0; s < seqs.size(); ++s) {
        if ((seq_id < 0 || seq_id == llama_seq_id(s)) && !can_rm(s, p0, p1)) {
            return false;
        }
    }

    for (size_t s = 0; s < seqs.size(); ++s) {
        if ((seq_id < 0 || seq_id == llama_seq_id(s)) && n0 < seqs[s].get_n_tokens() && (p1 < 0 || p1 > llama_pos(n0))) {
            seqs[s].truncate(n0, is_last_ubatch(s, n0));
        }
    }
    update();

    return true;
}

void llama_kv_cache_infllm::seq_cp(llama_seq_id seq_id_src, llama_seq_id seq_id_dst, llama_pos p0, llama_pos p1) {
    const auto n_seq = llama_seq_id(seqs.size());
    if (seq_id_src < 0 || seq_id_src >= n_seq || seq_id_dst < 0 || seq_id_dst >= n_seq || p0 > 0) {
        LLAMA_LOG_ERROR("%s: cannot copy positions [%d, %d) of sequence %d to %d: the InfLLM memory copies a sequence from "
                "its start, and has %d sequences\n", __func__, p0, p1, seq_id_src, seq_id_dst, n_seq);
        return;
    }
    if (seq_id_src == seq_id_dst) {
        return;
    }

    auto & dst = seqs[seq_id_dst];
    dst.reset();
    paging->synchronize();
    layers.copy_seq(seq_id_src, seq_id_dst);
    if (layers.can_page()) {
        paging->copy_seq(seq_id_src, seq_id_dst);
    }
    dst.copy(seqs[seq_id_src]);

    if (p1 >= 0 && uint32_t(p1) < dst.get_n_tokens()) {
        dst.truncate(p1, false);
    }
    update();
}

void llama_kv_cache_infllm::seq_keep(llama_seq_id seq_id) {
    for (size_t s = 0; s < seqs.size(); ++s) {
        if (llama_seq_id(s) != seq_id) {
            seqs[s].reset();
        }
    }
    update();
}

void llama_kv_cache_infllm::seq_add(llama_seq_id seq_id, llama_pos p0, llama_pos p1, llama_pos shift) {
    if (shift != 0 && (p1 < 0 || p1 > p0) && p0 <= seq_pos_max(seq_id)) {
        LLAMA_LOG_ERROR("%s: the InfLLM memory cannot shift positions (get_can_shift() is false); nothing is changed\n", __func__);
    }
}

void llama_kv_cache_infllm::seq_div(llama_seq_id seq_id, llama_pos p0, llama_pos p1, int d) {
    if (d != 1 && (p1 < 0 || p1 > p0) && p0 <= seq_pos_max(seq_id)) {
        LLAMA_LOG_ERROR("%s: the InfLLM memory cannot divide positions; nothing is changed\n", __func__);
    }
}

llama_pos llama_kv_cache_infllm::seq_pos_min(llama_seq_id seq_id) const {
    return seq_pos_max(seq_id) < 0 ? -1 : 0;
}

llama_pos llama_kv_cache_infllm::seq_pos_max(llama_seq_id seq_id) const {
    return seq_id < 0 || seq_id >= llama_seq_id(seqs.size()) ? -1 : llama_pos(seqs[seq_id].get_n_tokens()) - 1;
}

std::map<ggml_backend_buffer_type_t, size_t> llama_kv_cache_infllm::memory_breakdown() const {
    return layers.memory_breakdown();
}

std::shared_ptr<void> llama_kv_cache_infllm::get_own_file(llama_seq_id seq_id) const {
    const auto & blocks = seqs[seq_id].get_blocks();
    const auto   first  = std::find_if(blocks.begin(), blocks.end(), [&](int32_t b) { return store->get_home(b).file != nullptr; });
    if (first == blocks.end()) {
        return nullptr;
    }
    const auto file = store->get_home(*first).file;
    long n_holds = 1; // this one
    for (const int32_t b : blocks) {
        n_holds += store->n_holds(b, file);
    }
    return file.use_count() == n_holds ? file : nullptr;
}

void llama_kv_cache_infllm::state_write(llama_io_write_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) const {
    if (flags & LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY) {
        return; // what cannot go back by itself: nothing
    }

    // one of them, or all that have tokens
    std::vector<const llama_infllm_sequence *> saved;
    for (llama_seq_id s = 0; s < llama_seq_id(seqs.size()); ++s) {
        if (s == seq_id || (seq_id < 0 && seqs[s].get_n_tokens() > 0)) {
            saved.push_back(&seqs[s]);
        }
    }
    const auto n = uint32_t(saved.size());

    llama_infllm_fingerprint(layers).write(io);
    io.write(&n, sizeof(n));
    for (const auto * seq : saved) {
        seq->write(io);
    }
}

void llama_kv_cache_infllm::state_read(llama_io_read_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) {
    if (flags & LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY) {
        return;
    }

    llama_infllm_set_error("");

    std::vector<llama_infllm_snapshot> states;
    try {
        llama_infllm_fingerprint(layers).check(io);
        uint32_t n;
        io.read(&n, sizeof(n));
        if (n > seqs.size() || (seq_id >= 0 && n != 1)) {
            throw std::runtime_error(::format("the state cannot be loaded: it has %u sequences, this context %zu", n, seqs.size()));
        }
        for (uint32_t i = 0; i < n; ++i) {
            auto & state = states.emplace_back();
            state.read(io, layers, *store, [&](uint32_t n_block) { reserve(n_block, 0); });
            if (seq_id < 0 && (state.id < 0 || state.id >= llama_seq_id(seqs.size()) || (i > 0 && state.id <= states[i - 1].id))) {
                throw std::runtime_error(::format("the state cannot be loaded: it has a sequence %d, this context %zu sequences",
                        state.id, seqs.size()));
            }
            reserve(0, state.n_offload);
        }
    } catch (const std::exception & err) {
        for (const auto & state : states) {
            for (const int32_t block : state.blocks) {
                store->unref(block);
            }
        }
        llama_infllm_set_error(err.what());
        LLAMA_LOG_ERROR("%s: %s\n", __func__, err.what());
        throw;
    }

    for (auto & seq : seqs) {
        if (seq_id < 0) {
            seq.reset();
        }
    }
    for (auto & state : states) {
        const llama_seq_id id = seq_id < 0 ? state.id : seq_id;
        layers.use_seq(id);
        seqs[id].load(state);
    }
    update();
}

void llama_kv_cache_infllm::reserve(uint64_t n_blocks_new, uint32_t n_block) {
    std::string why = check_store(n_blocks_new);
    if (why.empty() && !store->reserve(n_blocks_new, !store->get_files() || fits_memory(n_blocks_new))) {
        why = "there is no room for more blocks in the store: free memory, or the disk of store_path, or shorten the text";
    }
    if (why.empty() && layers.can_page() && !layers.grow(n_block)) {
        why = "there is no memory for more representative keys: free memory, lower n_repr, or shorten the text";
    }
    if (!why.empty()) {
        throw std::runtime_error(why);
    }
}

//
// llama_kv_cache_infllm specific API
//

bool llama_kv_cache_infllm::add_stats(int32_t il, llama_infllm_stats & res) const {
    if (il >= 0 && !layers.has(il)) {
        return false;
    }

    std::lock_guard<std::mutex> lock(mutex);

    const auto & cells = layers.cells;

    for (size_t s = 0; s < seq_tokens.size(); ++s) {
        const uint64_t n_tail = seq_tokens[s] - uint64_t(seq_blocks[s])*cells.block_size; // init tokens and ring
        res.n_seq             += seq_tokens[s] > 0;
        res.n_tokens          += seq_tokens[s];
        res.n_tokens_resident += n_tail + (seq_blocks[s] > 0 ? cells.n_slot*cells.block_size : 0);
    }
    for (const auto & l : layers.all()) {
        if (il >= 0 && l.il != il) {
            continue;
        }
        const auto     c       = paging->get_stats(l);
        const uint64_t size_kv = l.shape.stored_kv();
        res.n_layer        += 1;
        res.n_blocks       += store_blocks;
        res.n_slots        += seqs.size()*cells.n_slot;
        res.bytes_resident += ggml_nbytes(l.k) + (l.v ? ggml_nbytes(l.v) : 0);
        res.bytes_repr     += l.repr ? ggml_nbytes(l.repr) : 0;
        res.bytes_store_kv += store_blocks*size_kv;
        res.bytes_store    += store_blocks*l.shape.size();
        res.bytes_store_file += store_mapped*l.shape.size();
        res.bytes_paged_in += c.n_copied*size_kv;
        res.n_select       += c.n_select;
        res.n_selected     += c.n_selected;
        res.n_hit          += c.n_selected - c.n_page_in;
        res.n_page_in      += c.n_page_in;
        res.n_page_in_file += c.n_file;
        res.us_page_in     += c.ns_memory/1000;
        res.us_page_in_file += c.ns_file/1000;
        res.n_layer_pager  += paging->has_pager(l);
        res.n_layer_device += paging->by_device(l);
    }

    return true;
}

std::string llama_kv_cache_infllm::get_paging_reason(int32_t il) const {
    return il < 0 ? paging->get_reason(nullptr) : layers.has(il) ? paging->get_reason(&layers.get(il)) : "";
}

void llama_kv_cache_infllm::set_scores(llama_infllm_score_callback callback, void * user_data) {
    score           = callback;
    score_user_data = user_data;
}

uint32_t llama_kv_cache_infllm::check_slots() {
    paging->synchronize();

    uint32_t n_bad = 0;
    for (auto & seq : seqs) {
        n_bad += seq.check_slots();
    }
    return n_bad;
}

bool llama_kv_cache_infllm::is_last_ubatch(llama_seq_id seq_id, llama_pos p0) const {
    return std::any_of(last.begin(), last.end(), [&](const auto & s) { return s.seq_id == seq_id && llama_pos(s.p0) == p0; });
}

void llama_kv_cache_infllm::begin_ubatch(const std::vector<stream> & streams, uint32_t n_tokens) {
    last = streams;

    paging->update();
    for (const auto & s : streams) {
        auto & seq = seqs[s.seq_id];
        layers.use_seq(s.seq_id);
        seq.begin_ubatch(llama_infllm_sequence::make_plan(layers.cells, s.p0, s.p0 + n_tokens, seq.get_n_offload()));
    }
    update_gauges();
}

void llama_kv_cache_infllm::update() {
    paging->update();
    update_gauges();
}

void llama_kv_cache_infllm::update_gauges() {
    std::lock_guard<std::mutex> lock(mutex);
    for (size_t s = 0; s < seqs.size(); ++s) {
        seq_tokens[s] = seqs[s].get_n_tokens();
        seq_blocks[s] = seqs[s].get_n_offload();
    }
    store_blocks = store->n_blocks();
    store_mapped = store->n_elsewhere();
}
