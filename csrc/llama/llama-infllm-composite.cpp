#include "llama-infllm-composite.h"

#include "llama-infllm-impl.h"

#include "llama-impl.h"

//
// llama_infllm_composite
//

llama_infllm_composite::llama_infllm_composite(const llama_hparams & hparams, parts parts) :
    hparams(hparams),
    mem(std::move(parts)) {
    for (llama_memory_i * part : { static_cast<llama_memory_i *>(mem.recr.get()), static_cast<llama_memory_i *>(mem.full.get()),
            static_cast<llama_memory_i *>(mem.swa.get()) }) {
        if (part) {
            all.push_back(part);
        }
    }
}

llama_memory_context_ptr llama_infllm_composite::init_batch(llama_batch_allocr & balloc, uint32_t n_ubatch, bool embd_all) {
    GGML_UNUSED(embd_all);

    const auto fail = [](const char * why) {
        if (why) {
            llama_infllm_set_error(why);
            LLAMA_LOG_ERROR("init_batch: %s\n", why);
        }
        return std::make_unique<llama_infllm_composite_context>(LLAMA_MEMORY_STATUS_FAILED_PREPARE);
    };

    // what waited for a checkpoint, see seq_rm()
    for (llama_seq_id s = 0; mem.recr && s < llama_seq_id(mem.full->get_n_seq()); ++s) {
        if (mem.recr->seq_pos_max(s) < 0 && mem.full->seq_pos_max(s) >= 0) {
            for (auto * part : all) {
                part->seq_rm(s, -1, -1);
            }
        }
    }

    auto ubatches = mem.full->prepare(balloc, n_ubatch);
    if (ubatches.empty()) {
        return fail(nullptr); // it has said why
    }
    if (mem.recr && !mem.recr->prepare(ubatches)) {
        return fail("there is no recurrent state for another sequence: raise n_seq_max");
    }
    llama_kv_cache::slot_info_vec_t sinfos_swa;
    if (mem.swa) {
        sinfos_swa = mem.swa->prepare(ubatches);
        if (sinfos_swa.empty()) {
            return fail("the cache of the sliding window has no room for the batch");
        }
    }
    return std::make_unique<llama_infllm_composite_context>(this, std::move(sinfos_swa), std::move(ubatches));
}

llama_memory_context_ptr llama_infllm_composite::init_full() {
    return std::make_unique<llama_infllm_composite_context>(this);
}

llama_memory_context_ptr llama_infllm_composite::init_update(llama_context * lctx, bool optimize) {
    return std::make_unique<llama_infllm_composite_context>(this, lctx, optimize);
}

bool llama_infllm_composite::get_can_shift() const {
    return false;
}

void llama_infllm_composite::clear(bool data) {
    for (auto * part : all) {
        part->clear(data);
    }
}

bool llama_infllm_composite::swa_has(llama_seq_id seq_id, llama_pos p) const {
    const llama_pos p_min = mem.swa->seq_pos_min(seq_id);
    return p_min <= 0 || llama_hparams::is_masked_swa(hparams.n_swa, hparams.swa_type, p_min - 1, p);
}

bool llama_infllm_composite::seq_rm(llama_seq_id seq_id, llama_pos p0, llama_pos p1) {
    const llama_seq_id s0 = seq_id < 0 ? 0 : seq_id;
    const llama_seq_id s1 = seq_id < 0 ? mem.full->get_n_seq() : seq_id + 1;

    for (llama_seq_id s = s0; s < s1; ++s) {
        if (!mem.full->can_rm(s, p0, p1)) {
            return false;
        }
        const bool is_tail = p0 > 0 && p0 <= mem.full->seq_pos_max(s) && (p1 < 0 || p1 > p0);
        if (is_tail && mem.swa && !swa_has(s, p0)) {
            return false;
        }
    }
    if (mem.recr && !mem.recr->seq_rm(seq_id, p0, p1)) {
        // So it is after a failed ubatch, too, which llama_context removes: it has left a state that nothing can follow on.
        // The rest waits for a checkpoint.
        if (seq_id >= 0 && mem.full->is_last_ubatch(seq_id, p0)) {
            for (auto * part : all) {
                part->seq_rm(seq_id, part == mem.recr.get() ? -1 : p0, -1);
            }
        }
        return false;
    }
    for (auto * part : all) {
        if (part != mem.recr.get()) {
            part->seq_rm(seq_id, p0, p1);
        }
    }
    return true;
}

void llama_infllm_composite::seq_cp(llama_seq_id seq_id_src, llama_seq_id seq_id_dst, llama_pos p0, llama_pos p1) {
    for (auto * part : all) {
        part->seq_cp(seq_id_src, seq_id_dst, p0, p1);
    }
}

void llama_infllm_composite::seq_keep(llama_seq_id seq_id) {
    for (auto * part : all) {
        part->seq_keep(seq_id);
    }
}

void llama_infllm_composite::seq_add(llama_seq_id seq_id, llama_pos p0, llama_pos p1, llama_pos shift) {
    mem.full->seq_add(seq_id, p0, p1, shift); // refuses
}

void llama_infllm_composite::seq_div(llama_seq_id seq_id, llama_pos p0, llama_pos p1, int d) {
    mem.full->seq_div(seq_id, p0, p1, d); // refuses
}

llama_pos llama_infllm_composite::seq_pos_min(llama_seq_id seq_id) const {
    llama_pos res = -1;
    for (const auto * part : all) {
        res = std::max(res, part->seq_pos_min(seq_id));
    }
    return res;
}

llama_pos llama_infllm_composite::seq_pos_max(llama_seq_id seq_id) const {
    llama_pos res = mem.full->seq_pos_max(seq_id);
    for (const auto * part : all) {
        res = std::min(res, part->seq_pos_max(seq_id));
    }
    return res;
}

std::map<ggml_backend_buffer_type_t, size_t> llama_infllm_composite::memory_breakdown() const {
    std::map<ggml_backend_buffer_type_t, size_t> res;
    for (const auto * part : all) {
        for (const auto & [buft, size] : part->memory_breakdown()) {
            res[buft] += size;
        }
    }
    return res;
}

void llama_infllm_composite::state_write(llama_io_write_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) const {
    mem.full->state_write(io, seq_id, flags);
    if (mem.swa) {
        mem.swa->state_write(io, seq_id, flags);
    }
    if (mem.recr) {
        mem.recr->state_write(io, seq_id, flags);
    }
}

void llama_infllm_composite::state_read(llama_io_read_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) {
    mem.full->state_read(io, seq_id, flags); // refuses what does not fit
    try {
        if (mem.swa) {
            mem.swa->state_read(io, seq_id, flags);
        }
        if (mem.recr) {
            mem.recr->state_read(io, seq_id, flags);
        }
    } catch (...) {
        for (auto * part : all) { // they do not belong together
            part->seq_rm(seq_id, -1, -1);
        }
        throw;
    }
}

//
// llama_infllm_composite_context
//

llama_infllm_composite_context::llama_infllm_composite_context(llama_memory_status status) : status(status) {
}

llama_infllm_composite_context::llama_infllm_composite_context(llama_infllm_composite * mem) :
    ctx_full(mem->get_full()->init_full()),
    ctx_swa (mem->get_swa()  ? mem->get_swa() ->init_full() : nullptr),
    ctx_recr(mem->get_recr() ? mem->get_recr()->init_full() : nullptr) {
    combine_status();
}

llama_infllm_composite_context::llama_infllm_composite_context(llama_infllm_composite * mem, llama_context * lctx, bool optimize) :
    ctx_full(mem->get_full()->init_update(lctx, optimize)),
    ctx_swa (mem->get_swa()  ? mem->get_swa() ->init_update(lctx, optimize) : nullptr),
    ctx_recr(mem->get_recr() ? mem->get_recr()->init_update(lctx, optimize) : nullptr) {
    combine_status();
}

llama_infllm_composite_context::llama_infllm_composite_context(
        llama_infllm_composite * mem,
        llama_kv_cache::slot_info_vec_t sinfos_swa,
        std::vector<llama_ubatch> ubatches) :
    ubatches(std::move(ubatches)),
    ctx_full(std::make_unique<llama_kv_cache_infllm_context>(mem->get_full(), this->ubatches)) {
    if (mem->get_swa()) {
        ctx_swa = std::make_unique<llama_kv_cache_context>(mem->get_swa(), std::move(sinfos_swa), this->ubatches);
    }
    if (mem->get_recr()) {
        ctx_recr = std::make_unique<llama_memory_recurrent_context>(mem->get_recr(), this->ubatches);
    }
    combine_status();
}

void llama_infllm_composite_context::combine_status() {
    status = ctx_full->get_status();
    for (const auto * part : { &ctx_swa, &ctx_recr }) {
        if (*part) {
            status = llama_memory_status_combine(status, (*part)->get_status());
        }
    }
}

bool llama_infllm_composite_context::next() {
    for (auto * part : { &ctx_full, &ctx_swa, &ctx_recr }) {
        if (*part) {
            (*part)->next();
        }
    }
    return ++i_cur < ubatches.size();
}

bool llama_infllm_composite_context::apply() {
    bool res = true;
    for (auto * part : { &ctx_full, &ctx_swa, &ctx_recr }) {
        // an update may concern some of the parts alone
        if (*part && (*part)->get_status() != LLAMA_MEMORY_STATUS_NO_UPDATE) {
            res = (*part)->apply() && res;
        }
    }
    return res;
}

llama_memory_status llama_infllm_composite_context::get_status() const {
    return status;
}

const llama_ubatch & llama_infllm_composite_context::get_ubatch() const {
    return ubatches[i_cur];
}

const llama_kv_cache_infllm_context * llama_infllm_composite_context::get_full() const {
    return static_cast<const llama_kv_cache_infllm_context *>(ctx_full.get());
}

const llama_kv_cache_context * llama_infllm_composite_context::get_swa() const {
    return static_cast<const llama_kv_cache_context *>(ctx_swa.get());
}

const llama_memory_recurrent_context * llama_infllm_composite_context::get_recr() const {
    return static_cast<const llama_memory_recurrent_context *>(ctx_recr.get());
}

//
// helpers
//

llama_kv_cache_infllm * llama_infllm_find(llama_memory_i * memory) {
    const auto * composite = dynamic_cast<llama_infllm_composite *>(memory);
    return composite ? composite->get_full() : dynamic_cast<llama_kv_cache_infllm *>(memory);
}

const llama_kv_cache_infllm_context * llama_infllm_find(const llama_memory_context_i * mctx) {
    const auto * composite = dynamic_cast<const llama_infllm_composite_context *>(mctx);
    return composite ? composite->get_full() : dynamic_cast<const llama_kv_cache_infllm_context *>(mctx);
}
