# What programs in C and C++ build on, component infllm-dev:
#   include/                  llama.h, llama-infllm.h, ggml*.h, gguf.h
#   lib/libllama.so ...       find each other in $ORIGIN; or archives, by BUILD_SHARED_LIBS
#   lib/cmake/infllm_cpp/     find_package(infllm_cpp CONFIG), target infllm::llama
#   lib/pkgconfig/infllm.pc
# No file holds a path of this machine: the folder can be moved.

include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

# in an order in which an archive finds what it needs in those that follow
set(INFLLM_LIBRARIES llama ggml ${GGML_AVAILABLE_BACKENDS} ggml-base)
foreach (library ${INFLLM_LIBRARIES})
    if (NOT TARGET ${library}) # the list of backends is cached: it keeps those that have been switched off
        list(REMOVE_ITEM INFLLM_LIBRARIES ${library})
    endif()
endforeach()
set_target_properties(llama ggml PROPERTIES PUBLIC_HEADER "") # upstream lists them relative to its own folder

# the same headers go into the wheel
function(infllm_install_headers destination component)
    install(
        FILES ${INFLLM_UPSTREAM_DIR}/include/llama.h ${CMAKE_CURRENT_SOURCE_DIR}/llama/llama-infllm.h
        DESTINATION ${destination} COMPONENT ${component})
    install(
        DIRECTORY ${INFLLM_UPSTREAM_DIR}/ggml/include/
        DESTINATION ${destination} COMPONENT ${component})
endfunction()
infllm_install_headers(${CMAKE_INSTALL_INCLUDEDIR} infllm-dev)

get_target_property(include_dirs llama INTERFACE_INCLUDE_DIRECTORIES)
set_target_properties(llama PROPERTIES INTERFACE_INCLUDE_DIRECTORIES
    "$<BUILD_INTERFACE:${include_dirs}>;$<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>")

install(TARGETS ${INFLLM_LIBRARIES} EXPORT infllm_cpp
    LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT infllm-dev
    ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT infllm-dev
    RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR} COMPONENT infllm-dev)

set(config_dir ${CMAKE_INSTALL_LIBDIR}/cmake/infllm_cpp)
install(EXPORT infllm_cpp NAMESPACE infllm:: FILE infllm_cpp-targets.cmake DESTINATION ${config_dir} COMPONENT infllm-dev)
configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/infllm_cpp-config.cmake.in
    ${CMAKE_BINARY_DIR}/infllm_cpp-config.cmake INSTALL_DESTINATION ${config_dir})
write_basic_package_version_file(${CMAKE_BINARY_DIR}/infllm_cpp-config-version.cmake
    VERSION ${PROJECT_VERSION} COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_BINARY_DIR}/infllm_cpp-config.cmake ${CMAKE_BINARY_DIR}/infllm_cpp-config-version.cmake
    DESTINATION ${config_dir} COMPONENT infllm-dev)

set(pc_libs ${INFLLM_LIBRARIES})
if (GGML_BACKEND_DL)
    list(REMOVE_ITEM pc_libs ${GGML_AVAILABLE_BACKENDS}) # loaded, not linked
endif()
list(TRANSFORM pc_libs PREPEND -l)
if (NOT BUILD_SHARED_LIBS)
    list(APPEND pc_libs ${OpenMP_CXX_FLAGS} -lstdc++ -lm -pthread -ldl)
endif()
list(JOIN pc_libs " " pc_libs)
string(REGEX REPLACE "[^/]+" ".." pc_prefix ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
configure_file(${PROJECT_SOURCE_DIR}/cmake/infllm.pc.in ${CMAKE_BINARY_DIR}/infllm.pc @ONLY)
install(FILES ${CMAKE_BINARY_DIR}/infllm.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig COMPONENT infllm-dev)

if (TARGET llama-app AND NOT BUILD_SHARED_LIBS) # nothing has to be beside it
    install(TARGETS llama-app RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR} COMPONENT infllm-app)
endif()
