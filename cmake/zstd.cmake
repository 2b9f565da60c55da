# Target sgk_zstd: zstd as a static library. Its sources are a folder named by SGL_KERNEL_ZSTD_SOURCE (the one with zstd.h), or come from the
# source package of backports.zstd, whose version and hash zstd.requirements.txt pins.
set(SGL_KERNEL_ZSTD_SOURCE "" CACHE PATH "Folder lib/ of zstd's sources; empty: fetched with pip")

set(zstd_source ${SGL_KERNEL_ZSTD_SOURCE})
if(NOT zstd_source)
    set(zstd_folder ${SGL_KERNEL_DEPS}/zstd)
    file(SHA256 ${CMAKE_CURRENT_LIST_DIR}/zstd.requirements.txt wanted)
    string(SUBSTRING ${wanted} 0 16 wanted)
    if(NOT EXISTS ${zstd_folder}/${wanted}/lib/zstd.h)
        message(STATUS "zstd: fetching its sources (1 MB)")
        file(REMOVE_RECURSE ${zstd_folder})
        execute_process(COMMAND ${Python3_EXECUTABLE} -m pip download --quiet --disable-pip-version-check --no-deps --no-binary :all:
                --require-hashes -r ${CMAKE_CURRENT_LIST_DIR}/zstd.requirements.txt -d ${zstd_folder}/download
            RESULT_VARIABLE failed ERROR_VARIABLE why OUTPUT_VARIABLE why)
        file(GLOB archive ${zstd_folder}/download/*.tar.gz)
        if(failed OR NOT archive)
            message(FATAL_ERROR "zstd's sources could not be fetched with pip; name a copy with -DSGL_KERNEL_ZSTD_SOURCE=<zstd>/lib, "
                "or build without GPU code with -DSGL_KERNEL_ENABLE_CUDA=OFF.\n${why}")
        endif()
        file(ARCHIVE_EXTRACT INPUT ${archive} DESTINATION ${zstd_folder}/unpacked PATTERNS "*/src/c/zstd/lib/*")
        file(GLOB lib ${zstd_folder}/unpacked/*/src/c/zstd/lib)
        file(MAKE_DIRECTORY ${zstd_folder}/${wanted})
        file(RENAME ${lib} ${zstd_folder}/${wanted}/lib)
        file(REMOVE_RECURSE ${zstd_folder}/unpacked ${zstd_folder}/download)
    endif()
    set(zstd_source ${zstd_folder}/${wanted}/lib)
endif()
if(NOT EXISTS ${zstd_source}/zstd.h)
    message(FATAL_ERROR "SGL_KERNEL_ZSTD_SOURCE=${zstd_source} has no zstd.h")
endif()

# The library needs reading alone; sgk-pack also writes. The linker takes from the archive what each of them uses.
file(GLOB zstd_sources ${zstd_source}/common/*.c ${zstd_source}/compress/*.c ${zstd_source}/decompress/*.c ${zstd_source}/dictBuilder/*.c)
add_library(sgk_zstd STATIC ${zstd_sources})
target_compile_definitions(sgk_zstd PRIVATE ZSTD_DISABLE_ASM ZSTDLIB_VISIBLE= ZSTDERRORLIB_VISIBLE= ZDICTLIB_VISIBLE= ZSTD_LEGACY_SUPPORT=0 ZSTD_TRACE=0)
target_compile_options(sgk_zstd PRIVATE -w)
target_include_directories(sgk_zstd SYSTEM INTERFACE ${zstd_source} ${zstd_source}/common)
if(SGL_KERNEL_SANITIZE)
    target_compile_options(sgk_zstd PRIVATE -fsanitize=${SGL_KERNEL_SANITIZE})
endif()
