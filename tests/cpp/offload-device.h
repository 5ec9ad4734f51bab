#pragma once

#include "pager-api.h"
#include "llama-infllm-host-pager.h"

#include "ggml-backend-impl.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <map>
#include <string>

// A GPU for tests: the CPU computes, but on memory of its own, which nobody else can touch: all but weights cannot even be read
// while the device does not work. It claims every op that the CPU has and, as GPUs do, ops on weights in host memory. With
// pages set it pages by itself, as CUDA does.
class offload_device {
public:
    explicit offload_device(const std::string & name) : name(name) {
        reg_iface.get_name         = [](ggml_backend_reg_t) { return "offload"; };
        reg_iface.get_device_count = [](ggml_backend_reg_t) { return size_t(1); };
        reg_iface.get_device       = [](ggml_backend_reg_t reg, size_t) { return &static_cast<offload_device *>(reg->context)->dev; };
        reg_iface.get_proc_address = [](ggml_backend_reg_t reg, const char * fun) -> void * {
            const auto * self = static_cast<offload_device *>(reg->context);
            const bool known = self->pages && std::strcmp(fun, "ggml_backend_infllm_pager_api") == 0;
            return known ? reinterpret_cast<void *>(get_pager_api) : nullptr;
        };
        reg = { GGML_BACKEND_API_VERSION, reg_iface, this };

        dev.reg     = &reg;
        dev.context = this;
        dev.iface.get_name         = [](ggml_backend_dev_t d) { return of(d).name.c_str(); };
        dev.iface.get_description  = [](ggml_backend_dev_t) { return "the CPU as a GPU"; };
        dev.iface.get_memory       = [](ggml_backend_dev_t, size_t * free, size_t * total) { *free = *total = size_t(1) << 32; };
        dev.iface.get_type         = [](ggml_backend_dev_t) { return GGML_BACKEND_DEVICE_TYPE_GPU; };
        dev.iface.get_props        = [](ggml_backend_dev_t d, ggml_backend_dev_props * props) {
            *props = {};
            props->name        = of(d).name.c_str();
            props->description = "the CPU as a GPU";
            props->type        = GGML_BACKEND_DEVICE_TYPE_GPU;
            ggml_backend_dev_memory(d, &props->memory_free, &props->memory_total);
        };
        dev.iface.init_backend     = init_backend;
        dev.iface.get_buffer_type  = [](ggml_backend_dev_t d) { return &of(d).buft; };
        dev.iface.supports_op      = [](ggml_backend_dev_t d, const ggml_tensor * op) {
            return op->op != of(d).missing_op && ggml_backend_dev_supports_op(cpu(), op);
        };
        dev.iface.supports_buft    = [](ggml_backend_dev_t d, ggml_backend_buffer_type_t b) { return b == &of(d).buft; };
        dev.iface.offload_op       = [](ggml_backend_dev_t d, const ggml_tensor * op) {
            return op->op != GGML_OP_GET_ROWS && op->ne[1] >= of(d).n_offload_min;
        };

        buft.device  = &dev;
        buft.context = this;
        buft.iface.get_name      = [](ggml_backend_buffer_type_t b) { return of(b->device).name.c_str(); };
        buft.iface.alloc_buffer  = alloc_buffer;
        buft.iface.get_alignment = [](ggml_backend_buffer_type_t) { return size_t(64); };
        buft.iface.is_host       = [](ggml_backend_buffer_type_t) { return false; };
    }

    ggml_backend_dev_t get() { return &dev; }

    int64_t n_offload_min = 32;            // rows from which ops on weights in host memory are claimed
    ggml_op missing_op    = GGML_OP_COUNT; // an op that the device does not have
    bool    pages         = false;

    // whether there is memory left that can be pinned
    static inline std::atomic<bool> pins { true };

    // ops that were given tensors outside of the device's memory
    static int n_misplaced() { return misplaced; }

private:
    // memory can be touched while one of these lives
    class access {
    public:
        access() {
            if (depth++ == 0) {
                protect(PROT_READ | PROT_WRITE);
            }
        }
        ~access() {
            if (--depth == 0) {
                protect(PROT_NONE);
            }
        }

        access(const access &)             = delete;
        access & operator=(const access &) = delete;

    private:
        static void protect(int flags) {
            for (auto & [b, m] : maps) {
                const int wanted = b->usage == GGML_BACKEND_BUFFER_USAGE_WEIGHTS ? PROT_READ | PROT_WRITE : flags;
                if (m.flags != wanted) {
                    mprotect(b->context, m.size, wanted);
                    m.flags = wanted;
                }
            }
        }
        static inline int depth = 0;
    };

    static offload_device & of(ggml_backend_dev_t d) { return *static_cast<offload_device *>(d->context); }

    static ggml_backend_dev_t cpu() { return ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU); }

    static ggml_backend_buffer_t alloc_buffer(ggml_backend_buffer_type_t buft, size_t size) {
        const size_t page = size_t(sysconf(_SC_PAGESIZE));
        const size_t n    = (std::max<size_t>(size, 1) + page - 1)/page*page;
        void * ptr = mmap(nullptr, n, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (ptr == MAP_FAILED) {
            return nullptr;
        }
        ggml_backend_buffer_i iface = {};
        iface.free_buffer   = [](ggml_backend_buffer_t b) { munmap(b->context, maps[b].size); maps.erase(b); };
        iface.get_base      = [](ggml_backend_buffer_t b) { return b->context; };
        iface.memset_tensor = [](ggml_backend_buffer_t, ggml_tensor * t, uint8_t value, size_t offset, size_t n) {
            access a;
            std::memset(static_cast<char *>(t->data) + offset, value, n);
        };
        iface.set_tensor    = [](ggml_backend_buffer_t, ggml_tensor * t, const void * data, size_t offset, size_t n) {
            access a;
            std::memcpy(static_cast<char *>(t->data) + offset, data, n);
        };
        iface.get_tensor    = [](ggml_backend_buffer_t, const ggml_tensor * t, void * data, size_t offset, size_t n) {
            access a;
            std::memcpy(data, static_cast<const char *>(t->data) + offset, n);
        };
        iface.clear         = [](ggml_backend_buffer_t b, uint8_t value) {
            access a;
            std::memset(b->context, value, b->size);
        };
        ggml_backend_buffer_t buffer = ggml_backend_buffer_init(buft, iface, ptr, size);
        maps[buffer] = { n, PROT_NONE };
        return buffer;
    }

    static ggml_backend_t init_backend(ggml_backend_dev_t dev, const char *) {
        static ggml_guid guid = { 0x0f, 0xf1, 0x0a, 0xd0 };

        ggml_backend_t inner = ggml_backend_dev_init(cpu(), nullptr);
        ggml_backend_cpu_set_n_threads(inner, 1);

        ggml_backend_i iface = {};
        iface.get_name      = [](ggml_backend_t b) { return of(b->device).name.c_str(); };
        iface.free          = [](ggml_backend_t b) {
            ggml_backend_free(static_cast<ggml_backend_t>(b->context));
            delete b;
        };
        iface.graph_compute = [](ggml_backend_t b, ggml_cgraph * graph) {
            for (int i = 0; i < ggml_graph_n_nodes(graph); ++i) {
                const ggml_tensor * node = ggml_graph_node(graph, i);
                if (node->op == GGML_OP_VIEW) {
                    continue; // computes nothing, and is in whatever split it comes to lie in
                }
                bool ok = is_mine(b, node);
                for (const ggml_tensor * src : node->src) {
                    ok = ok && (!src || is_mine(b, src));
                }
                misplaced += !ok;
                if (!ok) {
                    return GGML_STATUS_FAILED;
                }
            }
            access a;
            return ggml_backend_graph_compute(static_cast<ggml_backend_t>(b->context), graph);
        };
        return new ggml_backend { &guid, iface, dev, inner };
    }

    static bool is_mine(ggml_backend_t b, const ggml_tensor * t) {
        const auto * buffer = t->view_src ? t->view_src->buffer : t->buffer;
        return buffer && buffer->buft == &of(b->device).buft;
    }

    // the pager of the CPU, let into the memory
    static const void * get_pager_api() {
        using namespace infllm;
        static const pager_api & host = host_pager_api();
        static const pager_api   api  = [] {
            pager_api res = host;
            res.store = [](pager * p, const store_job & job) { access a; host.store(p, job); };
            res.alloc = [](size_t size) { return pins ? host.alloc(size) : nullptr; };
            return res;
        }();
        return &api;
    }

    const std::string name;

    ggml_backend_reg_i       reg_iface = {};
    ggml_backend_reg         reg       = {};
    ggml_backend_device      dev       = {};
    ggml_backend_buffer_type buft      = {};

    struct mapping {
        size_t size;
        int    flags;
    };

    static inline std::map<ggml_backend_buffer_t, mapping> maps; // of all devices
    static inline int                                      misplaced = 0;
};
