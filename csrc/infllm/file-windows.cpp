#ifdef _WIN32

#include "file.h"
#include "temp-file.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <stdexcept>

#ifndef NOMINMAX
#define NOMINMAX
#endif
#include <windows.h>

namespace infllm {

static constexpr DWORD SHARE_ALL = FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE; // as elsewhere

// FileRenameInfoEx, and REPLACE_IF_EXISTS | POSIX_SEMANTICS: of Windows 10, and which macro brings them depends on the compiler
static constexpr auto  RENAME_EX      = static_cast<FILE_INFO_BY_HANDLE_CLASS>(22);
static constexpr DWORD RENAME_REPLACE = 3;

static std::wstring wide(const std::string & s) {
    std::wstring res(size_t(::MultiByteToWideChar(CP_UTF8, 0, s.data(), int(s.size()), nullptr, 0)), 0);
    ::MultiByteToWideChar(CP_UTF8, 0, s.data(), int(s.size()), &res[0], int(res.size()));
    return res;
}

static std::string error_text(DWORD error) {
    wchar_t text[512];
    DWORD n = ::FormatMessageW(FORMAT_MESSAGE_FROM_SYSTEM | FORMAT_MESSAGE_IGNORE_INSERTS, nullptr, error, 0, text, 512, nullptr);
    while (n > 0 && (text[n - 1] == L'\n' || text[n - 1] == L'\r' || text[n - 1] == L'.')) {
        n--;
    }
    std::string res(size_t(::WideCharToMultiByte(CP_UTF8, 0, text, int(n), nullptr, 0, nullptr, nullptr)), 0);
    ::WideCharToMultiByte(CP_UTF8, 0, text, int(n), &res[0], int(res.size()), nullptr, nullptr);
    return res.empty() ? "error " + std::to_string(error) : res;
}

static DWORD high(uint64_t x) { return DWORD(x >> 32); }
static DWORD low (uint64_t x) { return DWORD(x); }

// size bytes of a file from offset on, which grows if need be; nullptr: no room on the disk, or for the map
static uint8_t * map_file(HANDLE handle, uint64_t offset, size_t size, bool can_write) {
    const uint64_t end     = offset + size;
    const HANDLE   mapping = ::CreateFileMappingW(handle, nullptr, can_write ? PAGE_READWRITE : PAGE_READONLY, high(end), low(end), nullptr);
    if (!mapping) {
        return nullptr;
    }
    void * res = ::MapViewOfFile(mapping, can_write ? FILE_MAP_WRITE : FILE_MAP_READ, high(offset), low(offset), size);
    const DWORD error = ::GetLastError();
    ::CloseHandle(mapping); // the view keeps it
    ::SetLastError(error);
    return static_cast<uint8_t *>(res);
}

int64_t process_id() { return ::GetCurrentProcessId(); }

void prefetch(const void * data, size_t size) {
    WIN32_MEMORY_RANGE_ENTRY range = { const_cast<void *>(data), size };
    ::PrefetchVirtualMemory(::GetCurrentProcess(), 1, &range, 0);
}

file::file(const std::string & path, mode m) : path(path) {
    const std::wstring name    = wide(path);
    const auto         open_as = [&](DWORD access) {
        const DWORD how = m == CREATE ? CREATE_ALWAYS : OPEN_EXISTING;
        handle = ::CreateFileW(name.c_str(), access, SHARE_ALL, nullptr, how, FILE_ATTRIBUTE_NORMAL, nullptr);
        return handle != INVALID_HANDLE_VALUE;
    };
    can_write = open_as(GENERIC_READ | GENERIC_WRITE | (m == CREATE ? DELETE : 0)); // what is renamed is deleted elsewhere
    if (!can_write && m == READ && (::GetLastError() == ERROR_ACCESS_DENIED || ::GetLastError() == ERROR_WRITE_PROTECT)) {
        open_as(GENERIC_READ);
    }
    if (handle == INVALID_HANDLE_VALUE) {
        fail("cannot be opened");
    }
    LARGE_INTEGER size = {};
    if (::GetFileType(handle) != FILE_TYPE_DISK || !::GetFileSizeEx(handle, &size)) {
        ::CloseHandle(handle);
        throw std::runtime_error(path + " is not a file");
    }
    if (m == READ && size.QuadPart > 0) {
        n_map = size_t(size.QuadPart);
        ::SetLastError(ERROR_NOT_ENOUGH_MEMORY); // of an address space of 32 bits
        map   = uint64_t(size.QuadPart) > SIZE_MAX ? nullptr : map_file(handle, 0, n_map, false);
        if (!map) {
            const DWORD error = ::GetLastError();
            ::CloseHandle(handle);
            ::SetLastError(error);
            fail("cannot be mapped");
        }
    }
}

file::~file() {
    if (map) {
        ::UnmapViewOfFile(map);
    }
    ::CloseHandle(handle);
}

void file::fail(const std::string & what) const {
    const DWORD error = ::GetLastError();
    throw std::runtime_error(path + " " + what + ": " + error_text(error));
}

bool file::lock(bool alone) {
    if (alone && !can_write) {
        ::SetLastError(ERROR_ACCESS_DENIED);
        fail("cannot be written");
    }
    // a byte that no file has: nobody can read or write what is locked
    OVERLAPPED at = {};
    at.Offset     = 0xfffffffe;
    at.OffsetHigh = 0x7fffffff;
    ::UnlockFileEx(handle, 0, 1, 0, &at);
    if (::LockFileEx(handle, LOCKFILE_FAIL_IMMEDIATELY | (alone ? LOCKFILE_EXCLUSIVE_LOCK : 0), 0, 1, 0, &at)) {
        return true;
    }
    if (::GetLastError() != ERROR_LOCK_VIOLATION && ::GetLastError() != ERROR_IO_PENDING) {
        fail("cannot be locked");
    }
    return false;
}

bool file::is(const std::string & other) const {
    const HANDLE b = ::CreateFileW(wide(other).c_str(), 0, SHARE_ALL, nullptr, OPEN_EXISTING, FILE_ATTRIBUTE_NORMAL, nullptr);
    if (b == INVALID_HANDLE_VALUE) {
        return false;
    }
    BY_HANDLE_FILE_INFORMATION ia;
    BY_HANDLE_FILE_INFORMATION ib;
    const bool ok = ::GetFileInformationByHandle(handle, &ia) && ::GetFileInformationByHandle(b, &ib);
    ::CloseHandle(b);
    return ok && ia.dwVolumeSerialNumber == ib.dwVolumeSerialNumber &&
        ia.nFileIndexHigh == ib.nFileIndexHigh && ia.nFileIndexLow == ib.nFileIndexLow;
}

void file::write(uint64_t offset, const void * data, size_t size) {
    const auto * bytes = static_cast<const uint8_t *>(data);
    while (size > 0) {
        OVERLAPPED at = {};
        at.Offset     = low (offset);
        at.OffsetHigh = high(offset);
        DWORD n = 0;
        if (!::WriteFile(handle, bytes, DWORD(std::min<size_t>(size, 1 << 30)), &n, &at) || n == 0) {
            fail("cannot be written");
        }
        bytes  += n;
        offset += n;
        size   -= n;
    }
}

void file::sync() {
    if (!::FlushFileBuffers(handle)) {
        fail("cannot be written");
    }
}

void file::move_to(const std::string & to) {
    const std::wstring name = wide(to);
    std::wstring full(::GetFullPathNameW(name.c_str(), 0, nullptr, nullptr), 0); // with its end
    full.resize(::GetFullPathNameW(name.c_str(), DWORD(full.size()), &full[0], nullptr));

    // This way a file that others have open is replaced, too. Not all file systems can do that.
    std::string buffer(sizeof(FILE_RENAME_INFO) + full.size()*sizeof(wchar_t), 0);
    auto * info = reinterpret_cast<FILE_RENAME_INFO *>(&buffer[0]);
    std::memcpy(info, &RENAME_REPLACE, sizeof(DWORD)); // the first member, which older headers have as a BOOLEAN
    info->FileNameLength = DWORD(full.size()*sizeof(wchar_t));
    std::memcpy(info->FileName, full.data(), info->FileNameLength);
    if (!::SetFileInformationByHandle(handle, RENAME_EX, info, DWORD(buffer.size())) &&
        !::MoveFileExW(wide(path).c_str(), full.c_str(), MOVEFILE_REPLACE_EXISTING | MOVEFILE_WRITE_THROUGH)) {
        fail("cannot be renamed to " + to);
    }
    path = to;
}

void file::remove() {
    ::DeleteFileW(wide(path).c_str());
}

temp_file::temp_file(const std::string & folder) : folder(folder) {
    static std::atomic<uint32_t> n_created { 0 };
    const std::string path = folder + "/infllm-store-" + std::to_string(process_id()) + "-" + std::to_string(n_created++);
    handle = ::CreateFileW(wide(path).c_str(), GENERIC_READ | GENERIC_WRITE | DELETE, FILE_SHARE_DELETE, nullptr, CREATE_ALWAYS,
        FILE_ATTRIBUTE_TEMPORARY | FILE_FLAG_DELETE_ON_CLOSE, nullptr);
    if (handle == INVALID_HANDLE_VALUE) {
        throw std::runtime_error(error_text(::GetLastError()));
    }
}

temp_file::~temp_file() {
    for (const auto & m : maps) {
        ::UnmapViewOfFile(m.data);
    }
    ::CloseHandle(handle);
}

uint64_t temp_file::disk_free() const {
    ULARGE_INTEGER n = {};
    return ::GetDiskFreeSpaceExW(wide(folder).c_str(), &n, nullptr, nullptr) ? n.QuadPart : 0;
}

uint8_t * temp_file::grow(size_t size) {
    maps.reserve(maps.size() + 1);
    uint8_t * data = map_file(handle, n_bytes, size, true);
    if (data) {
        n_bytes += size;
        maps.push_back({ data, size });
    }
    return data;
}

} // namespace infllm

#endif
