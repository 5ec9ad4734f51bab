# Compilers, build type, warnings, ccache, sanitizers: what must be set before any target exists.

include(CheckLanguage)
foreach (lang C CXX)
    check_language(${lang})
    if (NOT CMAKE_${lang}_COMPILER)
        message(FATAL_ERROR "No ${lang} compiler found: install one (Debian, Ubuntu: apt install g++) or set CC and CXX.")
    endif()
    enable_language(${lang})
endforeach()

set(CMAKE_CXX_STANDARD          17)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS        OFF)

if (NOT CMAKE_BUILD_TYPE)
    set(CMAKE_BUILD_TYPE Release CACHE STRING "Build type" FORCE)
endif()

if (NOT MSVC)
    set(INFLLM_WARNINGS -Wall -Wextra -Wpedantic -Wcast-qual -Wmissing-declarations)
    # rotations are rounded alike on every host and device: no FMA
    set(INFLLM_EXACT -ffp-contract=off)
    # programs may be small: what computes is fast all the same
    set(INFLLM_FAST $<$<CONFIG:MinSizeRel>:-O3>)
    # what computes nothing is compiled faster: templates, HTTP, bindings, tests
    set(INFLLM_QUICK $<$<CONFIG:Release>:-O1>)
endif()

find_program(INFLLM_CCACHE ccache)
if (INFLLM_CCACHE)
    foreach (lang C CXX CUDA)
        if (NOT CMAKE_${lang}_COMPILER_LAUNCHER)
            set(CMAKE_${lang}_COMPILER_LAUNCHER ${INFLLM_CCACHE})
        endif()
    endforeach()
endif()

if (INFLLM_SANITIZE)
    # upstream's objects too: an overflow in a buffer of ours often shows in their code
    set(INFLLM_UNDEFINED -fsanitize=undefined -fno-sanitize-recover=undefined)
    add_compile_options(-O1 -g1 -fno-omit-frame-pointer -fsanitize=address ${INFLLM_UNDEFINED})
    add_link_options   (-fsanitize=address,undefined)
    if (INFLLM_LIBFUZZER)
        add_compile_options(-fsanitize=fuzzer-no-link) # coverage of all code
    endif()
endif()
