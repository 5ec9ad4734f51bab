#include "context.h"

#include <stdexcept>

// a sentence; a ValueError in Python
[[noreturn]] static void refuse() {
    throw std::invalid_argument(llama_infllm_last_error());
}

session::session(const std::string & path) {
    {
        py::gil_scoped_release no_gil;
        ptr.reset(llama_infllm_session_open(path.c_str()));
    }
    if (!ptr) {
        refuse();
    }
}

llama_infllm_session_info session::info() const {
    llama_infllm_session_info res;
    llama_infllm_session_get_info(ptr.get(), &res);
    return res;
}

std::vector<llama_token> session::tokens() const {
    const auto * begin = llama_infllm_session_tokens(ptr.get());
    return { begin, begin + info().n_tokens };
}

py::bytes session::data() const {
    return py::bytes(reinterpret_cast<const char *>(llama_infllm_session_data(ptr.get())), info().bytes_data);
}

void session::verify() const {
    bool ok;
    {
        py::gil_scoped_release no_gil;
        ok = llama_infllm_session_verify(ptr.get());
    }
    if (!ok) {
        refuse();
    }
}
