#include "llama-infllm-page-control.h"

#include "llama-infllm-impl.h"

#include "llama-impl.h"

#include <stdexcept>

llama_infllm_page_control::llama_infllm_page_control(const llama_infllm_params & params, uint32_t n_seq) :
    prm(params), n_seq(n_seq), host(infllm::host_pager_api(), n_seq), n_stored(n_seq) {
    hooks.mutex   = &mutex;
    hooks.in_file = [this](const uint8_t * block) { return blocks && blocks->is_elsewhere(block); };
}

const infllm::pager_api * llama_infllm_page_control::find_api(ggml_backend_buffer_type_t buft) const {
    const bool force = prm.paging == LLAMA_INFLLM_PAGING_DEVICE;
    return prm.paging == LLAMA_INFLLM_PAGING_HOST ? nullptr : llama_infllm_pagers::find_api(buft, force);
}

void llama_infllm_page_control::add_layer(
        const llama_infllm_layer & l, ggml_backend_dev_t dev, uint32_t n_sub_max, bool can_page, const get_context & ctx) {
    const ggml_backend_buffer_type_t buft = ggml_backend_dev_buffer_type(dev);
    const ggml_backend_buffer_type_t cpu  = ggml_backend_cpu_buffer_type();

    reasons.push_back({ can_page && find_api(buft), "" });
    if (!can_page) {
        return;
    }
    host.add_layer(ctx(cpu), cpu, l.idx, l.shape, { l.k, l.v, l.mean, l.search }, l.rope, n_sub_max);

    if (prm.paging != LLAMA_INFLLM_PAGING_HOST && (find_api(buft) || !ggml_backend_buft_is_host(buft))) {
        reasons.back().why_host = why_not(l, dev, n_sub_max, ctx);
    }
    if (prm.paging == LLAMA_INFLLM_PAGING_DEVICE && !reasons.back().why_host.empty()) {
        throw std::runtime_error("paging = device, but " + reasons.back().why_host + ": use paging = host, or auto");
    }
}

std::string llama_infllm_page_control::why_not(
        const llama_infllm_layer & l, ggml_backend_dev_t dev, uint32_t n_sub_max, const get_context & ctx) {
    const ggml_backend_buffer_type_t buft = ggml_backend_dev_buffer_type(dev);
    const infllm::pager_api *        api  = find_api(buft);

    const std::string name = std::string("device ") + ggml_backend_dev_name(dev);
    if (!api) {
        return name + " has no pager of its own";
    }
    if (l.shape.published) {
        return "scores = published, which the host computes";
    }
    if (l.shape.type_k > infllm::KV_Q4_0) {
        return name + " pages K of type f16, q8_0 or q4_0, not " + ggml_type_name(l.k->type);
    }
    if (const char * why = infllm::pager_refuses(l.shape)) {
        return name + " cannot page this model: " + why;
    }
    if (device_api && device_api != api) {
        return name + " cannot page this model: other layers are on a device of another kind";
    }
    if (!device) {
        device_api = api;
        device     = std::make_unique<llama_infllm_pagers>(*api, n_seq);
    }
    const std::string why = device->add_layer(ctx(buft), buft, l.idx, l.shape, { l.k, l.v, l.mean, l.search }, l.rope, n_sub_max);
    return why.empty() ? "" : name + " cannot page this model: " + why;
}

void llama_infllm_page_control::start(uint64_t block_bytes, const llama_infllm_pagers::rotations & low,
        const llama_infllm_pagers::rotations & high, const llama_infllm_pagers::rotations & undo) {
    if (device && device->empty()) {
        device.reset();
    }
    host.start(block_bytes, low, high, undo);
    host.set_hooks(&hooks);
    if (device) {
        device->start(block_bytes, low, high, undo);
        if (device_api == &infllm::host_pager_api()) {
            device->set_hooks(&hooks);
        }
    }
    set_active();
}

void llama_infllm_page_control::set_active() {
    host.set_active([&](uint32_t idx) { return !has_devices() || !device->has(idx); });
}

void llama_infllm_page_control::make_blocks(const llama_infllm_layer & l, uint32_t n_block, const get_context & ctx) {
    host.make_blocks(ctx(ggml_backend_cpu_buffer_type()), l.idx, n_block);
    if (device && device->has(l.idx)) {
        device->make_blocks(ctx(device->get_buft(l.idx)), l.idx, n_block);
    }
}

bool llama_infllm_page_control::set_blocks(uint32_t n_block, const std::vector<ggml_tensor *> & reprs_new) {
    const auto repr = [&](uint32_t idx) { return reprs_new[idx]; };
    if (!host.set_blocks(n_block, repr, n_stored)) {
        return false;
    }
    reprs = reprs_new;
    // while the host pages, page_by_devices() does this
    if (has_devices() && !device->set_blocks(n_block, repr, n_stored)) {
        page_by_host("host and device have too little memory to share, or share the layers between them");
    }
    return true;
}

void llama_infllm_page_control::update() {
    if (!device) {
        return;
    }
    if (can_end && blocks->n_unpinned() > 0) {
        synchronize();
        const auto moved = blocks->pin();
        host.move_blocks([&](const uint8_t * data) {
            const auto it = moved.find(data);
            return it == moved.end() ? data : it->second;
        });
    }

    const std::string why = trace ? "scores are traced, which the host does" : why_unpinned();
    if (!why.empty()) {
        page_by_host(why);
    } else if (can_end && !has_devices()) {
        page_by_devices();
    }
    can_end = false;
}

std::string llama_infllm_page_control::why_unpinned() const {
    if (blocks->n_unpinned() == 0) {
        return "";
    }
    const auto & pinned = *blocks->get_pinned();
    return pinned.is_limited() ? ::format("pinned_max_bytes = %.1f MiB is reached", prm.pinned_max_bytes/1024.0/1024.0)
                               : ::format("no more than %.1f MiB of memory can be pinned", pinned.bytes()/1024.0/1024.0);
}

void llama_infllm_page_control::page_by_host(const std::string & why) {
    const bool was_device = has_devices();
    if (was_device) {
        LLAMA_LOG_WARN("%s: %s: for now the host pages, which is slower\n", __func__, why.c_str());
        synchronize();
    }

    std::lock_guard<std::mutex> lock(mutex);
    why_host = why;
    if (was_device) {
        for (uint32_t idx = 0; idx < reasons.size(); ++idx) {
            if (device->has(idx)) {
                host.take(idx, *device);
            }
        }
        set_active();
    }
}

bool llama_infllm_page_control::page_by_devices() {
    synchronize();

    // they know nothing of what was stored since, and representative keys may have grown
    const auto repr = [&](uint32_t idx) { return reprs[idx]; };
    if (device->get_n_block() != host.get_n_block() && !device->set_blocks(host.get_n_block(), repr, std::vector<uint32_t>(n_seq, 0))) {
        return false;
    }
    device->take_blocks(host, n_stored);

    {
        std::lock_guard<std::mutex> lock(mutex);
        why_host.clear();
        for (uint32_t idx = 0; idx < reasons.size(); ++idx) {
            if (device->has(idx)) {
                device->take(idx, host);
            }
        }
        set_active();
    }
    LLAMA_LOG_WARN("%s: devices page again\n", __func__);

    return true;
}

std::string llama_infllm_page_control::get_reason(const llama_infllm_layer * l) const {
    std::lock_guard<std::mutex> lock(mutex);
    for (uint32_t idx = 0; idx < reasons.size(); ++idx) {
        if ((!l || l->idx == idx) && !reasons[idx].why_host.empty()) {
            return reasons[idx].why_host;
        }
    }
    return !l || reasons[l->idx].has_pager ? why_host : "";
}

void llama_infllm_page_control::verify() const {
    if (prm.paging == LLAMA_INFLLM_PAGING_DEVICE && !why_host.empty()) {
        throw std::runtime_error("paging = device, but " + why_host + ": use paging = host, or auto");
    }
    if (const std::string why = get_reason(nullptr); !why.empty()) {
        LLAMA_LOG_WARN("%s: %s: the host pages, which is slower\n", __func__, why.c_str());
    }
}

void llama_infllm_page_control::set_trace(llama_infllm_trace_callback callback, void * user_data) {
    trace           = callback;
    trace_user_data = user_data;

    hooks.on_select = nullptr;
    if (trace) {
        hooks.on_select = [this](const infllm::pager_layer & l, const infllm::pager_info & info, const float * scores, uint32_t n_page_in) {
            const llama_infllm_trace_event event = {
                /*.il         =*/ l.il,
                /*.seq_id     =*/ info.seq,
                /*.pos        =*/ info.p0,
                /*.n_tokens   =*/ uint32_t(info.n_tokens),
                /*.n_blocks   =*/ uint32_t(info.n_block),
                /*.n_selected =*/ std::min(l.topk, uint32_t(info.n_block)),
                /*.n_page_in  =*/ n_page_in,
                /*.selected   =*/ l.chosen_of(info),
                /*.scores     =*/ scores,
            };
            trace(&event, trace_user_data);
        };
    }

    can_end = true;
    update();
}

void llama_infllm_page_control::synchronize() {
    if (sched) {
        ggml_backend_sched_synchronize(sched);
    }
    wait();
}

void llama_infllm_page_control::wait() {
    if (device) {
        device->wait();
    }
}

std::unique_ptr<infllm::block_store> llama_infllm_page_control::make_store(size_t block_bytes, uint64_t bytes_max) {
    auto res = std::make_unique<infllm::block_store>(block_bytes, bytes_max);
    if (device) {
        infllm::ram_slabs::source pinned;
        pinned.alloc     = [api = device_api](size_t size) { return llama_infllm_ram_has(size) ? api->alloc(size) : nullptr; };
        pinned.free      = [api = device_api](void * ptr, size_t) { api->free(ptr); };
        pinned.bytes_max = prm.pinned_max_bytes;
        pinned.ahead     = true;
        res->set_pinned(std::move(pinned));
    }
    if (prm.store_path[0] != 0) {
        res->set_files(std::make_shared<infllm::file_slabs>(prm.store_path, block_bytes));
    }
    blocks = res.get();
    return res;
}

void llama_infllm_page_control::store(uint32_t seq, uint32_t block0, uint32_t n_tokens, const std::vector<uint8_t *> & data) {
    const infllm::store_job job = { seq, block0, uint32_t(data.size()), n_tokens, data.data() };

    for (auto * pagers : { &host, has_devices() ? device.get() : nullptr }) {
        if (pagers) {
            for (uint32_t i = 0; i < data.size(); ++i) {
                pagers->set_block(seq, block0 + i, data[i]);
            }
            pagers->store(job);
        }
    }
    n_stored[seq] = block0 + data.size();
}

void llama_infllm_page_control::load(uint32_t seq, const std::vector<uint8_t *> & data) {
    for (auto * pagers : { &host, has_devices() ? device.get() : nullptr }) {
        if (pagers && !pagers->empty()) {
            for (uint32_t i = 0; i < data.size(); ++i) {
                pagers->set_block(seq, i, data[i]);
            }
            pagers->store({ seq, uint32_t(data.size()), 0, 0, nullptr }); // they are in the store already
        }
    }
    n_stored[seq] = data.size();
}

void llama_infllm_page_control::copy_seq(uint32_t src, uint32_t dst) {
    host.copy_seq(src, dst, n_stored[src]);
    if (has_devices()) {
        device->copy_seq(src, dst, n_stored[src]);
    }
    n_stored[dst] = n_stored[src];
}

infllm::pager_stats llama_infllm_page_control::get_stats(const llama_infllm_layer & l) const {
    std::lock_guard<std::mutex> lock(mutex);
    return host.empty() ? infllm::pager_stats {} : of(l).get_stats(l.idx);
}

void llama_infllm_page_control::reset_stats() {
    std::lock_guard<std::mutex> lock(mutex);
    host.reset_stats();
    if (device) {
        device->reset_stats();
    }
}
