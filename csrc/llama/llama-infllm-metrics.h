#pragma once

#include "llama-infllm.h"

#include <sstream>
#include <string>

// What GET /metrics of llama-server says of the InfLLM memory, in the text format of Prometheus; "" without the method
inline std::string llama_infllm_metrics() {
    llama_infllm_stats stats;
    if (!llama_infllm_get_all_stats(&stats)) {
        return "";
    }
    std::ostringstream out;
    out.precision(15);
    const auto add = [&](const char * type, const char * name, const char * help, double value) {
        out << "# HELP infllm:" << name << " " << help << "\n# TYPE infllm:" << name << " " << type << "\ninfllm:" << name << " "
            << value << "\n";
    };
    const auto gauge   = [&](const char * name, const char * help, double value) { add("gauge",   name, help, value); };
    const auto counter = [&](const char * name, const char * help, double value) { add("counter", name, help, value); };

    gauge("sequences",            "Sequences that hold tokens",             double(stats.n_seq));
    gauge("tokens",               "Tokens held, of all sequences",          double(stats.n_tokens));
    gauge("tokens_resident",      "Tokens that attention sees as they are", double(stats.n_tokens_resident));
    gauge("blocks",               "Blocks in the store, times layers",      double(stats.n_blocks));
    gauge("resident_bytes",       "K and V of the resident buffers",        double(stats.bytes_resident));
    gauge("representative_bytes", "Representative keys",                    double(stats.bytes_repr));
    gauge("store_memory_bytes",   "Blocks in memory",                       double(stats.bytes_store - stats.bytes_store_file));
    gauge("store_file_bytes",     "Blocks in files",                        double(stats.bytes_store_file));

    counter("selected_total",               "Blocks selected",                            double(stats.n_selected));
    counter("hits_total",                   "Selected blocks that were resident",         double(stats.n_hit));
    counter("page_ins_total",               "Selected blocks that were paged in",         double(stats.n_page_in));
    counter("file_page_ins_total",          "Blocks copied into slots from files",        double(stats.n_page_in_file));
    counter("paged_in_bytes_total",         "K and V copied into slots",                  double(stats.bytes_paged_in));
    counter("memory_page_in_seconds_total", "Time of page-ins from memory, by the host",  double(stats.us_page_in)*1e-6);
    counter("file_page_in_seconds_total",   "Time of page-ins from files, by the host",   double(stats.us_page_in_file)*1e-6);
    return out.str();
}

// a handler of llama-server's that says this, too
template <typename Handler>
Handler llama_infllm_with_metrics(Handler handler) {
    return [handler](const auto & req) {
        auto res = handler(req);
        if (res && res->status == 200) {
            res->data += llama_infllm_metrics();
        }
        return res;
    };
}
