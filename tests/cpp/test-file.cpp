// files: names in UTF-8, locks, places beyond 4 GiB, a file that others read is replaced

#include "file.h"
#include "temp-folder.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <memory>
#include <stdexcept>
#include <string>

using infllm::file;

namespace {

const std::string NAME = "\xc3\xa9\xe2\x82\xac.bin"; // outside of any code page of 8 bits

void write_file(const std::string & path, const std::string & text) {
    file(path, file::CREATE).write(0, text.data(), text.size());
}

std::string text_of(const file & f) { return { reinterpret_cast<const char *>(f.data()), f.size() }; }

} // namespace

TEST(File, IsNamedInUtf8) {
    const temp_folder folder;
    const std::string path = folder/NAME;
    write_file(path, "text");
    EXPECT_TRUE(std::filesystem::exists(std::filesystem::u8path(path)));

    const file f(path, file::READ);
    EXPECT_EQ(text_of(f), "text");
    EXPECT_TRUE(f.is(path));
    write_file(folder/"other", "text");
    EXPECT_FALSE(f.is(folder/"other"));
    EXPECT_FALSE(f.is(folder/"none"));

    file(path + ".new", file::CREATE).remove();
    EXPECT_EQ(folder.n_files(), 2u);
}

TEST(File, IsLockedByManyOrByOne) {
    const temp_folder folder;
    const std::string path = folder/"a";
    write_file(path, "text");
    file one(path, file::READ);
    auto two = std::make_unique<file>(path, file::READ);
    EXPECT_TRUE (one.lock(false));
    EXPECT_TRUE (two->lock(false));
    EXPECT_FALSE(one.lock(true)); // and its own is gone
    EXPECT_TRUE (two->lock(true));
    EXPECT_FALSE(one.lock(false));
    two.reset();
    EXPECT_TRUE (one.lock(true));

    // who has it alone writes, and others see it
    const file three(path, file::READ);
    one.write(1, "E", 1);
    EXPECT_EQ(text_of(three), "tExt");
}

TEST(File, TakesTheNameOfAnother) {
    const temp_folder folder;
    write_file(folder/"old", "old");
    file f(folder/"new", file::CREATE);
    f.write(0, "newest", 6);
    f.sync();
    f.move_to(folder/"old");
    EXPECT_EQ(f.get_path(), folder/"old");
    EXPECT_EQ(text_of(file(folder/"old", file::READ)), "newest");
    EXPECT_EQ(folder.n_files(), 1u);
}

#ifndef _WIN32 // Windows 10 does this, too, but Wine does not, nor are files there sparse
TEST(File, IsReplacedWhileItIsRead) {
    const temp_folder folder;
    write_file(folder/"a", "old");
    const file reader(folder/"a", file::READ);
    file f(folder/"b", file::CREATE);
    f.write(0, "new", 3);
    f.move_to(folder/"a");
    EXPECT_EQ(text_of(reader), "old");
    EXPECT_EQ(text_of(file(folder/"a", file::READ)), "new");
}

TEST(File, IsWrittenBeyond4GiB) {
    const temp_folder folder;
    const std::string path = folder/"a";
    file(path, file::CREATE).write(uint64_t(5) << 30, "end", 3);
    EXPECT_EQ(std::filesystem::file_size(path), (uint64_t(5) << 30) + 3);
    if (sizeof(size_t) > 4) {
        const file f(path, file::READ);
        EXPECT_EQ(std::string(reinterpret_cast<const char *>(f.data()) + (uint64_t(5) << 30), 3), "end");
    } else {
        EXPECT_THROW(file(path, file::READ), std::runtime_error); // not a part of it
    }
}
#endif
