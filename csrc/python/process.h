#pragma once

#include <cstdint>

// What a fork leaves behind in the child: handles of devices and servers that belong to the parent, and a pool of compute
// threads (OpenMP's) of which only the records were copied, so that the next computation would wait for them for good.

// once, when the module is loaded
void process_init();

// throws std::runtime_error in a process that was forked from one in which such threads or handles may have existed
void process_check();

// a model is about to be loaded: they may exist from now on
void process_set_used();

// forks between the process that loaded the module and this one: what was made at another count belongs to an ancestor
uint32_t process_n_forks();
