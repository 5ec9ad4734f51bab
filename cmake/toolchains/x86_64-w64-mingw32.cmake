# MinGW-w64 for Windows on x86-64, and Wine to run what it makes: apt install g++-mingw-w64-x86-64-posix wine64

set(CMAKE_SYSTEM_NAME      Windows)
set(CMAKE_SYSTEM_PROCESSOR x86_64)

set(CMAKE_C_COMPILER   x86_64-w64-mingw32-gcc-posix)
set(CMAKE_CXX_COMPILER x86_64-w64-mingw32-g++-posix)
set(CMAKE_RC_COMPILER  x86_64-w64-mingw32-windres)

set(CMAKE_FIND_ROOT_PATH              /usr/x86_64-w64-mingw32)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)

# MinGW-w64 10 does not declare THREAD_POWER_THROTTLING_STATE, which ggml-cpu.c asks for from Windows 8 on
set(CMAKE_C_FLAGS_INIT -D_WIN32_WINNT=0x0601)

# programs that need no DLLs of the compiler's
set(CMAKE_EXE_LINKER_FLAGS_INIT    -static)
set(CMAKE_SHARED_LINKER_FLAGS_INIT -static)

find_program(INFLLM_WINE NAMES wine64 wine PATHS /usr/lib/wine)
set(CMAKE_CROSSCOMPILING_EMULATOR ${INFLLM_WINE})
