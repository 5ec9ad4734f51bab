#pragma once

#include <string>

// llama.cpp's log lines: kept for error messages, printed to stderr only when verbose

void log_install();
void log_set_verbose(bool verbose);

// forget the errors of this thread
void log_clear();

// errors logged on this thread since log_clear(), a line each, oldest first
std::string log_text();
