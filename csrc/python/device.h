#pragma once

#include "ggml-backend.h"

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

// GPUs of this machine, or of an RPC server
struct device_info {
    std::string name; // "CUDA0", "RPC0"
    std::string description;
    size_t      memory_free; // bytes
    size_t      memory_total;
};

// thrown when a server stopped to answer: what its devices held is gone
struct device_lost : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// devices of this machine that can hold layers
std::vector<device_info> local_devices();

// devices of the server at endpoint "host:port"
// throws std::runtime_error when there is no RPC backend in this build, or no such server
std::vector<device_info> rpc_devices(const std::string & endpoint);

// all that a model can be on: those of this machine, the CPU among them, and of servers
std::vector<ggml_backend_dev_t> all_devices();

// GPUs, and devices of servers, by name; throws std::invalid_argument
ggml_backend_dev_t find_device(const std::string & name);

// whether a device belongs to an RPC server
bool is_rpc_device(ggml_backend_dev_t dev);

// requests to RPC servers that have failed in this process so far
uint32_t rpc_n_lost();
