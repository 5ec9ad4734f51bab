#include "device.h"

#include "process.h"

#include <map>
#include <mutex>

// RPC devices are not put into ggml's registry: models would use them unasked
static std::mutex                                mutex;
static std::map<std::string, ggml_backend_dev_t> remote;

static device_info get_info(ggml_backend_dev_t dev) {
    device_info res = { ggml_backend_dev_name(dev), ggml_backend_dev_description(dev), 0, 0 };
    ggml_backend_dev_memory(dev, &res.memory_free, &res.memory_total);
    return res;
}

static ggml_backend_reg_t rpc_reg() {
    return ggml_backend_reg_by_name("RPC");
}

std::vector<device_info> local_devices() {
    process_check();

    std::vector<device_info> res;
    for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
        ggml_backend_dev_t dev = ggml_backend_dev_get(i);

        const auto type = ggml_backend_dev_type(dev);
        if (type == GGML_BACKEND_DEVICE_TYPE_GPU || type == GGML_BACKEND_DEVICE_TYPE_IGPU) {
            res.push_back(get_info(dev));
        }
    }
    return res;
}

std::vector<device_info> rpc_devices(const std::string & endpoint) {
    if (!rpc_reg()) {
        throw std::runtime_error("this build has no RPC backend: install with CMAKE_ARGS=\"-DGGML_RPC=ON\"");
    }
    process_check();
    process_set_used();

    const auto add_server = (ggml_backend_reg_t (*)(const char *)) ggml_backend_reg_get_proc_address(
            rpc_reg(), "ggml_backend_rpc_add_server");

    ggml_backend_reg_t reg = add_server(endpoint.c_str());
    if (!reg) {
        throw std::runtime_error("the RPC server " + endpoint + " has no devices, or does not answer");
    }

    std::lock_guard<std::mutex> lock(mutex);

    std::vector<device_info> res;
    for (size_t i = 0; i < ggml_backend_reg_dev_count(reg); ++i) {
        ggml_backend_dev_t dev = ggml_backend_reg_dev_get(reg, i);
        remote[ggml_backend_dev_name(dev)] = dev;
        res.push_back(get_info(dev));
    }
    return res;
}

std::vector<ggml_backend_dev_t> all_devices() {
    std::vector<ggml_backend_dev_t> res;
    for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
        res.push_back(ggml_backend_dev_get(i));
    }
    std::lock_guard<std::mutex> lock(mutex);
    for (const auto & it : remote) {
        res.push_back(it.second);
    }
    return res;
}

ggml_backend_dev_t find_device(const std::string & name) {
    {
        std::lock_guard<std::mutex> lock(mutex);
        const auto it = remote.find(name);
        if (it != remote.end()) {
            return it->second;
        }
    }

    std::string known;
    for (const auto & info : local_devices()) {
        if (info.name == name) {
            return ggml_backend_dev_by_name(name.c_str());
        }
        known += (known.empty() ? "" : ", ") + info.name;
    }
    throw std::invalid_argument("device '" + name + "' is unknown: this machine has " + (known.empty() ? "none" : known));
}

bool is_rpc_device(ggml_backend_dev_t dev) {
    return ggml_backend_dev_backend_reg(dev) == rpc_reg();
}

uint32_t rpc_n_lost() {
    if (!rpc_reg()) {
        return 0;
    }
    const auto n_lost = (uint32_t (*)()) ggml_backend_reg_get_proc_address(rpc_reg(), "ggml_backend_rpc_n_lost");
    return n_lost ? n_lost() : 0;
}
