#include "process.h"

#include "ggml-backend.h"

#include <stdexcept>

#ifndef _WIN32
#include <pthread.h>
#endif

// set in the child's one thread before it can do anything else
static uint32_t n_forks   = 0;
static bool     is_broken = false;

static bool is_used = false;

#ifndef _WIN32
static void on_fork_child() {
    n_forks++;
    is_broken |= is_used;
}
#endif

void process_init() {
    // drivers of GPUs are initialised when they are counted, which importing the module does
    is_used = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_GPU)  != nullptr
           || ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_IGPU) != nullptr;
#ifndef _WIN32
    pthread_atfork(nullptr, nullptr, on_fork_child);
#endif
}

void process_check() {
    if (is_broken) {
        throw std::runtime_error("this process was forked from one that had loaded a model or found a GPU, and threads and drivers "
            "do not survive a fork: start it by spawn (multiprocessing.get_context(\"spawn\")), or fork before that");
    }
}

void process_set_used() {
    is_used = true;
}

uint32_t process_n_forks() {
    return n_forks;
}
