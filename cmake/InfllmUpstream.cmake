# The patched llama.cpp tree and its targets, all of them shared libraries under their plain names.

find_package(Python REQUIRED COMPONENTS Interpreter)

set(INFLLM_UPSTREAM_DIR ${CMAKE_CURRENT_SOURCE_DIR}/third_party/llama.cpp)

if (INFLLM_PATCH)
    set(fetch_args ${INFLLM_UPSTREAM_DIR})
    if (INFLLM_LLAMA_CPP_DIR)
        # the checkout belongs to the user: a copy in the build tree is patched
        set(INFLLM_UPSTREAM_DIR ${CMAKE_BINARY_DIR}/llama.cpp)
        get_filename_component(checkout "${INFLLM_LLAMA_CPP_DIR}" ABSOLUTE BASE_DIR ${CMAKE_CURRENT_SOURCE_DIR})
        set(fetch_args --from ${checkout} ${INFLLM_UPSTREAM_DIR})
    endif()
    execute_process(
        COMMAND ${Python_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/scripts/fetch_llama_cpp.py ${fetch_args}
        RESULT_VARIABLE fetch_result
        ERROR_VARIABLE  fetch_error
        ERROR_STRIP_TRAILING_WHITESPACE)
    if (NOT fetch_result EQUAL 0)
        message(FATAL_ERROR "${fetch_error}")
    endif()
    # a changed patch must reach the tree before the next build
    file(GLOB INFLLM_PATCHES CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/csrc/patches/*.patch)
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS
        ${INFLLM_PATCHES} ${CMAKE_CURRENT_SOURCE_DIR}/scripts/fetch_llama_cpp.py)
elseif (INFLLM_LLAMA_CPP_DIR)
    get_filename_component(INFLLM_UPSTREAM_DIR "${INFLLM_LLAMA_CPP_DIR}" ABSOLUTE BASE_DIR ${CMAKE_CURRENT_SOURCE_DIR})
endif()

if (NOT EXISTS ${INFLLM_UPSTREAM_DIR}/include/llama.h)
    message(FATAL_ERROR "${INFLLM_UPSTREAM_DIR} is not a llama.cpp tree: set INFLLM_LLAMA_CPP_DIR to one that has include/llama.h.")
endif()

# defaults only: all of these can be given on the command line or in CMAKE_ARGS
option(BUILD_SHARED_LIBS  "Build shared libraries"              ON)
if (INFLLM_BUILD_PYTHON OR INFLLM_BUILD_TOOLS OR INFLLM_BUILD_SERVER OR INFLLM_BUILD_APP)
    set(common ON)
else()
    set(common OFF)
endif()
option(LLAMA_BUILD_COMMON "llama: build common utils library"   ${common})
option(LLAMA_USE_PREBUILT_UI "llama: use prebuilt UI"           OFF) # it would be fetched
option(LLAMA_OPENSSL      "llama: use openssl to support HTTPS" OFF)
option(GGML_CCACHE        "ggml: use ccache if available"       OFF) # set up by us for all targets

# variables, not cache entries: the same build folder can be used for the other kind of build
if (INFLLM_PORTABLE)
    set(GGML_NATIVE           OFF)
    set(GGML_BACKEND_DL       ON) # backends are modules beside libggml, see backend-folder.patch
    set(GGML_CPU_ALL_VARIANTS ON)
endif()

# upstream would take both from the git repository around it, and rebuild after every commit of ours
set(LLAMA_BUILD_NUMBER 0)
set(LLAMA_BUILD_COMMIT "infllm-${PROJECT_VERSION}")
set(GIT_EXE            false CACHE INTERNAL "")

# libllama.so, not libllama.so.0.5.0 with two links: a wheel has no links, it would hold three copies
set(CMAKE_PLATFORM_NO_VERSIONED_SONAME ON)

# one folder for libraries and programs; next to each other they find each other wherever they are moved
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
set(CMAKE_LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
set(CMAKE_BUILD_WITH_INSTALL_RPATH ON)
if (APPLE)
    set(INFLLM_ORIGIN @loader_path)
else()
    set(INFLLM_ORIGIN $ORIGIN)
endif()
set(CMAKE_INSTALL_RPATH ${INFLLM_ORIGIN})

add_subdirectory(${INFLLM_UPSTREAM_DIR} ${CMAKE_BINARY_DIR}/upstream EXCLUDE_FROM_ALL)

foreach (target ggml-base ggml-cpu)
    if (TARGET ${target})
        target_compile_options(${target} PRIVATE ${INFLLM_FAST})
    endif()
endforeach()

if (INFLLM_SANITIZE)
    # in what is upstream's alone UBSan has nothing of ours to find, and triples the time to compile it; see csrc/CMakeLists.txt
    target_compile_options(llama PRIVATE -fno-sanitize=undefined)
    # fuzzed K and V are any numbers: assertions of debug builds, which end the process at a NaN, are not what is looked for
    target_compile_definitions(ggml-cpu PRIVATE NDEBUG)
    # values of quantised types are loaded from where they lie, which need not be aligned
    set_property(SOURCE ${INFLLM_UPSTREAM_DIR}/ggml/src/ggml-cpu/amx/mmq.cpp TARGET_DIRECTORY ggml-cpu
        APPEND PROPERTY COMPILE_OPTIONS -fno-sanitize=alignment)
endif()
