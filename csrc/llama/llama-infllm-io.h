#pragma once

#include "llama-io.h"

#include "ggml-backend.h"

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <vector>

// a state to memory, and from it

class llama_infllm_writer : public llama_io_write_i {
public:
    void write(const void * src, size_t size) override {
        const auto * begin = static_cast<const uint8_t *>(src);
        bytes.insert(bytes.end(), begin, begin + size);
    }

    void write_tensor(ggml_tensor * tensor, size_t offset, size_t size) override {
        const size_t begin = bytes.size();
        bytes.resize(begin + size);
        ggml_backend_tensor_get(tensor, bytes.data() + begin, offset, size);
    }

    size_t n_bytes() override { return bytes.size(); }

    const std::vector<uint8_t> & get() const { return bytes; }

private:
    std::vector<uint8_t> bytes;
};

// throws where there are no more bytes
class llama_infllm_reader : public llama_io_read_i {
public:
    llama_infllm_reader(const uint8_t * data, size_t size) : data(data), n_all(size) {}

    void read(void * dst, size_t size) override {
        if (size > 0) {
            std::memcpy(dst, take(size), size);
        }
    }

    void read_tensor(ggml_tensor * tensor, size_t offset, size_t size) override {
        ggml_backend_tensor_set(tensor, take(size), offset, size);
    }

    size_t n_bytes() override { return n_read; }

private:
    const uint8_t * data;
    size_t          n_all;
    size_t          n_read = 0;

    const uint8_t * take(size_t size) {
        if (size > n_all - n_read) {
            throw std::runtime_error("the state cannot be loaded: it is damaged");
        }
        n_read += size;
        return data + n_read - size;
    }
};
