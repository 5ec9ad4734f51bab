#include "log.h"

#include "llama.h"

#include <log.h> // of llama.cpp's `common`

#include <atomic>
#include <cstdio>
#include <deque>

static const size_t n_lines_max = 32;

static std::atomic<bool> g_verbose { false };

// per thread, so that two models loaded at once do not mix their reasons
static thread_local std::deque<std::string> t_lines;
static thread_local ggml_log_level          t_level = GGML_LOG_LEVEL_NONE; // of the last line, for CONT

static void log_callback(ggml_log_level level, const char * text, void * /*user_data*/) {
    const bool cont = level == GGML_LOG_LEVEL_CONT;

    if (!cont) {
        t_level = level;
    }

    if (g_verbose && t_level != GGML_LOG_LEVEL_DEBUG) {
        fputs(text, stderr);
        fflush(stderr);
    }

    if (t_level != GGML_LOG_LEVEL_ERROR) {
        return;
    }

    if (cont && !t_lines.empty()) {
        t_lines.back() += text;
        return;
    }

    t_lines.emplace_back(text);
    if (t_lines.size() > n_lines_max) {
        t_lines.pop_front();
    }
}

void log_install() {
    llama_log_set(log_callback, nullptr);
    common_log_set_verbosity_thold(-1); // it says twice what it throws, by a thread of its own
}

void log_set_verbose(bool verbose) {
    g_verbose = verbose;
}

void log_clear() {
    t_lines.clear();
}

std::string log_text() {
    std::string res;
    for (const auto & line : t_lines) {
        res += line;
        if (res.back() != '\n') {
            res += '\n';
        }
    }
    return res;
}
