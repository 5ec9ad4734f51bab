#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace infllm {

int64_t process_id();

// bytes of a mapped file will be read soon: the system may begin with it, of several ranges at a time
void prefetch(const void * data, size_t size);

// A file of this machine, named in UTF-8: read through a map, written in place. What fails throws std::runtime_error, a sentence with its
// name. See file-posix.cpp and file-windows.cpp.
class file {
public:
    enum mode { READ, CREATE }; // what is there already is emptied by CREATE

    file(const std::string & path, mode m);
    ~file();

    file(const file &)             = delete;
    file & operator=(const file &) = delete;

    // the bytes that it had when it was opened, nullptr if there were none; only with READ
    const uint8_t * data() const { return map; }
    size_t          size() const { return n_map; }

    // Others that have it open share it, or one has it alone; false: somebody else stands in the way. The lock that there was goes.
    bool lock(bool alone);

    // whether path names this very file
    bool is(const std::string & path) const;

    void write(uint64_t offset, const void * data, size_t size);
    void sync(); // what was written is on the disk

    // path names it from now on, instead of whatever it named before
    void move_to(const std::string & path);

    void remove(); // the name goes now, the bytes when it is closed

    const std::string & get_path() const { return path; }

private:
    std::string path;
#ifdef _WIN32
    void      * handle = nullptr;
#else
    int         fd    = -1;
#endif
    uint8_t   * map   = nullptr;
    size_t      n_map = 0;
    bool        can_write = false;

    [[noreturn]] void fail(const std::string & what) const;
};

} // namespace infllm
