#ifndef _WIN32

#include "file.h"
#include "temp-file.h"

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <stdexcept>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

namespace infllm {

int64_t process_id() { return ::getpid(); }

void prefetch(const void * data, size_t size) {
    static const uintptr_t page = uintptr_t(::sysconf(_SC_PAGESIZE));
    const uintptr_t begin = reinterpret_cast<uintptr_t>(data)/page*page;
    ::madvise(reinterpret_cast<void *>(begin), reinterpret_cast<uintptr_t>(data) + size - begin, MADV_WILLNEED);
}

file::file(const std::string & path, mode m) : path(path) {
    if (m == CREATE) {
        fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
        can_write = true;
    } else {
        fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
        can_write = fd >= 0;
        if (fd < 0 && (errno == EACCES || errno == EROFS)) {
            fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
        }
    }
    if (fd < 0) {
        fail("cannot be opened");
    }
    struct stat st;
    if (m == READ && (::fstat(fd, &st) != 0 || !S_ISREG(st.st_mode))) {
        ::close(fd);
        throw std::runtime_error(path + " is not a file");
    }
    if (m == READ && uint64_t(st.st_size) > SIZE_MAX) {
        ::close(fd);
        errno = EFBIG;
        fail("cannot be mapped");
    }
    if (m == READ && st.st_size > 0) {
        void * res = ::mmap(nullptr, size_t(st.st_size), PROT_READ, MAP_SHARED, fd, 0);
        if (res == MAP_FAILED) {
            const int err = errno;
            ::close(fd);
            errno = err;
            fail("cannot be mapped");
        }
        map   = static_cast<uint8_t *>(res);
        n_map = size_t(st.st_size);
    }
}

file::~file() {
    if (map) {
        ::munmap(map, n_map);
    }
    ::close(fd);
}

void file::fail(const std::string & what) const {
    throw std::runtime_error(path + " " + what + ": " + std::strerror(errno));
}

bool file::lock(bool alone) {
    if (alone && !can_write) {
        errno = EACCES;
        fail("cannot be written");
    }
    if (::flock(fd, (alone ? LOCK_EX : LOCK_SH) | LOCK_NB) == 0) {
        return true;
    }
    if (errno != EWOULDBLOCK) {
        fail("cannot be locked");
    }
    return false;
}

bool file::is(const std::string & other) const {
    struct stat a;
    struct stat b;
    return ::fstat(fd, &a) == 0 && ::stat(other.c_str(), &b) == 0 && a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

void file::write(uint64_t offset, const void * data, size_t size) {
    const auto * bytes = static_cast<const uint8_t *>(data);
    while (size > 0) {
        const ssize_t n = ::pwrite(fd, bytes, size, off_t(offset));
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            fail("cannot be written");
        }
        bytes  += n;
        offset += uint64_t(n);
        size   -= size_t(n);
    }
}

void file::sync() {
    if (::fsync(fd) != 0) {
        fail("cannot be written");
    }
}

void file::move_to(const std::string & to) {
    if (std::rename(path.c_str(), to.c_str()) != 0) {
        fail("cannot be renamed to " + to);
    }
    path = to;

    // the name, too, is to be on the disk; not all file systems can do that
    const auto slash = to.rfind('/');
    const int  dir   = ::open(slash == std::string::npos ? "." : to.substr(0, slash + 1).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir >= 0) {
        ::fsync(dir);
        ::close(dir);
    }
}

void file::remove() {
    ::unlink(path.c_str());
}

#ifdef __APPLE__
static int posix_fallocate(int fd, off_t offset, off_t size) {
    fstore_t store = { F_ALLOCATEALL, F_PEOFPOSMODE, 0, size, 0 };
    return ::fcntl(fd, F_PREALLOCATE, &store) == 0 && ::ftruncate(fd, offset + size) == 0 ? 0 : errno;
}
#endif

temp_file::temp_file(const std::string & folder) {
    std::string path = folder + "/infllm-store-XXXXXX";
    fd = ::mkstemp(&path[0]);
    if (fd < 0) {
        throw std::runtime_error(std::strerror(errno));
    }
    ::unlink(path.c_str());
    ::fcntl(fd, F_SETFD, FD_CLOEXEC);
}

temp_file::~temp_file() {
    for (const auto & m : maps) {
        ::munmap(m.data, m.size);
    }
    ::close(fd);
}

uint64_t temp_file::disk_free() const {
    struct statvfs st;
    return ::fstatvfs(fd, &st) == 0 ? uint64_t(st.f_bavail)*st.f_frsize : 0;
}

uint8_t * temp_file::grow(size_t size) {
    maps.reserve(maps.size() + 1);
    if (posix_fallocate(fd, off_t(n_bytes), off_t(size)) != 0) {
        return nullptr;
    }
    void * data = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, off_t(n_bytes));
    if (data == MAP_FAILED) {
        return nullptr;
    }
    n_bytes += size;
    maps.push_back({ static_cast<uint8_t *>(data), size });
    return maps.back().data;
}

} // namespace infllm

#endif
