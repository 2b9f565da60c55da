# Target packs: sgk-pack compiles every row of every build table and writes one pack an architecture. It compiles only what changed; its
# cache folder may be shared by several build folders.
set(SGL_KERNEL_PACK_DIR ${CMAKE_BINARY_DIR}/packs)
set(SGL_KERNEL_OBJECT_CACHE ${CMAKE_BINARY_DIR}/kernels CACHE PATH "Folder of compiled kernels, by the hash of what they were made from")
set(SGL_KERNEL_DEPS ${CMAKE_BINARY_DIR}/deps CACHE PATH "Folder for what is fetched")
option(SGL_KERNEL_STRICT_TIME "A kernel that takes more than 8 seconds to compile fails the build" OFF)

find_package(Python3 REQUIRED COMPONENTS Interpreter)
include(${CMAKE_CURRENT_LIST_DIR}/zstd.cmake)

target_link_libraries(sgk_objects PRIVATE sgk_zstd)
target_link_libraries(sgl_kernel PRIVATE sgk_zstd)

# No architecture: the library reads packs that were made elsewhere (they are the same for every processor).
if(NOT SGL_KERNEL_CUDA_ARCHS)
    return()
endif()
include(${CMAKE_CURRENT_LIST_DIR}/nvrtc.cmake)

file(GLOB pack_tool_sources CONFIGURE_DEPENDS tools/pack/*.c)
add_executable(sgk-pack ${pack_tool_sources} ${objects})
target_link_libraries(sgk-pack PRIVATE sgk_system sgk_zstd)

set(packs "")
foreach(arch IN LISTS SGL_KERNEL_CUDA_ARCHS)
    if(NOT arch MATCHES "^(80|89|90a|100f|120f|ptx80)$")
        message(FATAL_ERROR "SGL_KERNEL_CUDA_ARCHS has ${arch}, expected 80, 89, 90a, 100f, 120f or ptx80")
    endif()
    if(arch MATCHES "^ptx")
        list(APPEND packs ${SGL_KERNEL_PACK_DIR}/${arch}.pack)
    else()
        list(APPEND packs ${SGL_KERNEL_PACK_DIR}/sm${arch}.pack)
    endif()
endforeach()
list(JOIN SGL_KERNEL_CUDA_ARCHS "," archs)

# A pack of an earlier configuration would be installed, and used, without being kept up to date.
file(GLOB stale ${SGL_KERNEL_PACK_DIR}/*.pack)
list(REMOVE_ITEM stale ${packs})
if(stale)
    file(REMOVE ${stale})
endif()

# Which header a kernel includes is sgk-pack's to find out: any change asks it, and it compiles what the change reaches.
file(GLOB_RECURSE device_sources CONFIGURE_DEPENDS csrc/*.cu csrc/*.cuh csrc/*.h)
add_custom_command(OUTPUT ${packs}
    COMMAND ${CMAKE_COMMAND} -E env ASAN_OPTIONS=detect_leaks=0
            $<TARGET_FILE:sgk-pack> --arch=${archs} --out=${SGL_KERNEL_PACK_DIR} --cache=${SGL_KERNEL_OBJECT_CACHE} --nvrtc=${nvrtc}
            --source=${CMAKE_SOURCE_DIR} --allow=${CMAKE_SOURCE_DIR}/tools/pack_allow.txt $<$<BOOL:${SGL_KERNEL_STRICT_TIME}>:--strict-time>
    DEPENDS sgk-pack ${device_sources} tools/pack_allow.txt
    COMMENT "Compiling kernels for ${archs}"
    USES_TERMINAL VERBATIM COMMAND_EXPAND_LISTS)
add_custom_target(packs ALL DEPENDS ${packs})
