# Zig's C and C++ compiler, which has the C libraries of other systems with it: pip install ziglang
#   INFLLM_ZIG_TARGET  aarch64-macos, x86_64-linux-musl, aarch64-linux-musl

set(CMAKE_TRY_COMPILE_PLATFORM_VARIABLES INFLLM_ZIG_TARGET)
string(REPLACE "-" ";" target "${INFLLM_ZIG_TARGET}")
list(GET target 0 CMAKE_SYSTEM_PROCESSOR)
list(GET target 1 system)

if (system STREQUAL macos)
    set(CMAKE_SYSTEM_NAME Darwin)
    if (CMAKE_SYSTEM_PROCESSOR STREQUAL aarch64)
        set(CMAKE_SYSTEM_PROCESSOR arm64)
    endif()
    find_program(CMAKE_INSTALL_NAME_TOOL NAMES llvm-install-name-tool llvm-install-name-tool-14 REQUIRED)
else()
    set(CMAKE_SYSTEM_NAME Linux)
endif()

find_package(Python3 COMPONENTS Interpreter REQUIRED)
execute_process(COMMAND ${Python3_EXECUTABLE} -c "import ziglang; print(ziglang.__path__[0])"
    OUTPUT_VARIABLE zig_dir OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)

# cmake wants one program for each
foreach (tool cc c++ ar ranlib)
    set(program ${CMAKE_BINARY_DIR}/zig/${tool})
    set(arguments)
    if (tool MATCHES "^c")
        set(arguments "-target ${INFLLM_ZIG_TARGET}")
    endif()
    file(WRITE ${program} "#!/bin/sh\nexec ${zig_dir}/zig ${tool} ${arguments} \"$@\"\n")
    file(CHMOD ${program} PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE)
endforeach()
set(CMAKE_C_COMPILER   ${CMAKE_BINARY_DIR}/zig/cc)
set(CMAKE_CXX_COMPILER ${CMAKE_BINARY_DIR}/zig/c++)
set(CMAKE_AR           ${CMAKE_BINARY_DIR}/zig/ar)
set(CMAKE_RANLIB       ${CMAKE_BINARY_DIR}/zig/ranlib)

# nothing of this system
set(CMAKE_FIND_ROOT_PATH              ${zig_dir}/lib/libc)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)
