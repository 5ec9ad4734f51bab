#pragma once

#include "llama-infllm-layers.h"
#include "llama-infllm-pagers.h"

#include "../infllm/block-store.h"

#include <memory>
#include <mutex>
#include <string>
#include <vector>

// Who pages a layer, and how the rest of the memory reaches who does. Devices that can page do, unless something keeps them from it;
// then the host goes on from the same state, and the devices again when that has ended.
class llama_infllm_page_control {
public:
    llama_infllm_page_control(const llama_infllm_params & params, uint32_t n_seq);

    //
    // for llama_infllm_layers
    //

    // the API of a device, if it shall page by itself
    const infllm::pager_api * find_api(ggml_backend_buffer_type_t buft) const;

    using get_context = std::function<ggml_context * (ggml_backend_buffer_type_t)>;

    // throws if devices are to page, but this one cannot
    void add_layer(const llama_infllm_layer & l, ggml_backend_dev_t dev, uint32_t n_sub_max, bool can_page, const get_context & ctx);
    void start(uint64_t block_bytes, const llama_infllm_pagers::rotations & low, const llama_infllm_pagers::rotations & high,
            const llama_infllm_pagers::rotations & undo);

    void make_blocks(const llama_infllm_layer & l, uint32_t n_block, const get_context & ctx);
    bool set_blocks (uint32_t n_block, const std::vector<ggml_tensor *> & reprs); // by index of the layer

    //
    // who pages
    //

    bool has_devices() const { return device && why_host.empty(); } // they page now

    bool by_device(const llama_infllm_layer & l) const { return has_devices() && device->has(l.idx); }

    llama_infllm_pagers       & of(const llama_infllm_layer & l)       { return by_device(l) ? *device : host; }
    const llama_infllm_pagers & of(const llama_infllm_layer & l) const { return by_device(l) ? *device : host; }

    // as the host sees a layer, whoever pages it
    const infllm::pager_layer & host_layer(const llama_infllm_layer & l) const { return host.get_layer(l.idx); }

    // before a ubatch, and when what kept devices from paging may have come to an end
    void update();
    void set_can_end() { can_end = true; }

    // why the host pages a layer, or any of them (nullptr), that is on a device; "": it does not, or was asked to
    std::string get_reason(const llama_infllm_layer * l) const;

    // throws if devices are to page, but do not
    void verify() const;

    bool has_pager(const llama_infllm_layer & l) const { return reasons[l.idx].has_pager; } // its device has one

    void set_trace(llama_infllm_trace_callback callback, void * user_data);

    //
    // between ubatches
    //

    // the scheduler of the graphs, so that host access to device buffers can wait for it
    void set_sched(ggml_backend_sched_t sched_cur) { sched = sched_cur; }
    void synchronize();

    // for blocks that are on their way to the store
    void wait();

    // where the blocks live; it must go before this does, after wait()
    std::unique_ptr<infllm::block_store> make_store(size_t block_bytes, uint64_t bytes_max);

    // blocks [block0, block0 + data.size()) of a sequence leave the ring
    void store(uint32_t seq, uint32_t block0, uint32_t n_tokens, const std::vector<uint8_t *> & data);

    // the blocks of a sequence, none before, which were stored by another context
    void load(uint32_t seq, const std::vector<uint8_t *> & data);

    const std::vector<uint32_t> & get_n_stored() const { return n_stored; } // [n_seq]
    void set_n_stored(uint32_t seq, uint32_t n) { n_stored[seq] = n; }      // it has become less
    void copy_seq(uint32_t src, uint32_t dst);

    infllm::pager_stats get_stats(const llama_infllm_layer & l) const;
    void                reset_stats();

private:
    const llama_infllm_params prm;
    const uint32_t            n_seq;

    llama_infllm_pagers                  host;
    std::unique_ptr<llama_infllm_pagers> device;

    const infllm::pager_api * device_api = nullptr; // of all devices that page: memory is shared in one way

    struct reason {
        bool        has_pager;
        std::string why_host; // never by the device; "": it does, or was not asked to
    };
    std::vector<reason> reasons; // [n_layer]

    std::string why_host;        // the host pages for all layers now; "": it does not
    bool        can_end = false; // what kept the devices from paging may have come to an end

    std::vector<uint32_t>      n_stored; // [n_seq]
    std::vector<ggml_tensor *> reprs;    // [n_layer]

    infllm::block_store * blocks = nullptr;
    ggml_backend_sched_t  sched  = nullptr;

    llama_infllm_trace_callback trace           = nullptr;
    void *                      trace_user_data = nullptr;

    // guards who pages, and the counters, which any thread may ask for
    mutable std::mutex       mutex;
    infllm::host_pager_hooks hooks;

    std::string why_not(const llama_infllm_layer & l, ggml_backend_dev_t dev, uint32_t n_sub_max, const get_context & ctx);

    // why not all blocks are in pinned memory; "": they are
    std::string why_unpinned() const;

    void page_by_host(const std::string & why);
    bool page_by_devices(); // false: there is not enough memory to share
    void set_active();
};
