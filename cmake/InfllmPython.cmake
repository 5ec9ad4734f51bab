# The extension infllm_cpp._core and the install rules of the Python package:
#   infllm_cpp/_core.*.so           finds its libraries in $ORIGIN/lib
#   infllm_cpp/lib/libllama.so ...  find each other in $ORIGIN
#   infllm_cpp/include/             llama.h, llama-infllm.h, ggml*.h, for C and C++ programs

find_package(Python   REQUIRED COMPONENTS Interpreter Development.Module)
find_package(pybind11 REQUIRED CONFIG)

# pip builds in a throw-away environment: headers there are new, under a new path, in every build.
# A copy in the build tree keeps the second `pip install .` from compiling the extension again.
set(pybind11_copy ${CMAKE_BINARY_DIR}/pybind11-${pybind11_VERSION})
if (NOT EXISTS ${pybind11_copy}/pybind11)
    file(COPY ${pybind11_INCLUDE_DIR}/pybind11 DESTINATION ${pybind11_copy})
endif()
set_target_properties(pybind11::pybind11_headers PROPERTIES INTERFACE_INCLUDE_DIRECTORIES ${pybind11_copy})

file(GLOB sources CONFIGURE_DEPENDS python/*.cpp)
pybind11_add_module(_core NO_EXTRAS ${sources})
target_compile_options(_core PRIVATE ${INFLLM_WARNINGS} ${INFLLM_QUICK})
target_link_libraries(_core PRIVATE llama llama-common) # templates, sampling, grammars
target_include_directories(_core SYSTEM PRIVATE ${INFLLM_UPSTREAM_DIR}/common)
set_property(SOURCE python/module.cpp APPEND PROPERTY COMPILE_DEFINITIONS INFLLM_VERSION="${PROJECT_VERSION}")
set_target_properties(_core PROPERTIES
    INSTALL_RPATH            ${INFLLM_ORIGIN}/lib
    LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/python)

install(TARGETS _core LIBRARY DESTINATION infllm_cpp COMPONENT infllm)
install(TARGETS ${INFLLM_LIBRARIES} llama-common
    LIBRARY DESTINATION infllm_cpp/lib COMPONENT infllm
    RUNTIME DESTINATION infllm_cpp/lib COMPONENT infllm)
if (INFLLM_PORTABLE AND TARGET ggml-cuda)
    # CUDA's libraries out of NVIDIA's packages for pip, if they are installed
    set_target_properties(ggml-cuda PROPERTIES
        INSTALL_RPATH "$ORIGIN;$ORIGIN/../../nvidia/cuda_runtime/lib;$ORIGIN/../../nvidia/cublas/lib")
endif()

# licences of what is compiled in, and a list of it, for the wheel's dist-info
if (SKBUILD_METADATA_DIR)
    set(bundled_args ${INFLLM_UPSTREAM_DIR} ${PROJECT_VERSION} ${CMAKE_BINARY_DIR}/metadata)
    if (INFLLM_PORTABLE AND GGML_OPENMP_ENABLED AND CMAKE_SYSTEM_NAME STREQUAL Linux)
        list(APPEND bundled_args --openmp) # auditwheel will put it beside
    endif()
    file(REMOVE_RECURSE ${CMAKE_BINARY_DIR}/metadata)
    execute_process(
        COMMAND ${Python_EXECUTABLE} ${CMAKE_SOURCE_DIR}/scripts/bundled.py ${bundled_args}
        RESULT_VARIABLE bundled_result
        ERROR_VARIABLE  bundled_error
        ERROR_STRIP_TRAILING_WHITESPACE)
    if (NOT bundled_result EQUAL 0)
        message(FATAL_ERROR "${bundled_error}")
    endif()
    install(DIRECTORY ${CMAKE_BINARY_DIR}/metadata/ DESTINATION ${SKBUILD_METADATA_DIR} COMPONENT infllm)
endif()

if (INFLLM_BUILD_SERVER)
    install(TARGETS llama-server llama-server-impl mtmd
        LIBRARY DESTINATION infllm_cpp/lib COMPONENT infllm
        RUNTIME DESTINATION infllm_cpp/lib COMPONENT infllm)
endif()
infllm_install_headers(infllm_cpp/include infllm)
