#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <random>
#include <stdexcept>
#include <string>

// a folder of a test's own, gone with it
class temp_folder {
public:
    temp_folder() : path(testing::TempDir() + "infllm-" + std::to_string(std::random_device()())) {
        if (!std::filesystem::create_directory(path)) {
            throw std::runtime_error("no folder in " + testing::TempDir());
        }
    }

    ~temp_folder() { std::filesystem::remove_all(path); }

    temp_folder(const temp_folder &)             = delete;
    temp_folder & operator=(const temp_folder &) = delete;

    std::string operator/(const std::string & name) const { return path + "/" + name; }

    size_t n_files() const {
        size_t res = 0;
        for (const auto & entry : std::filesystem::directory_iterator(path)) {
            res += entry.exists();
        }
        return res;
    }

private:
    const std::string path;
};
