# SGL_KERNEL_NVRTC: the compiler of the kernels, libnvrtc.so.12 of CUDA 12.9. Looked for in the Python that runs this build; fetched with
# pip where that has none. Its version and hashes are in nvrtc.requirements.txt.
set(SGL_KERNEL_NVRTC "" CACHE FILEPATH "libnvrtc.so.12; empty: from Python, or fetched with pip")

set(nvrtc ${SGL_KERNEL_NVRTC})
if(NOT nvrtc)
    file(STRINGS ${CMAKE_CURRENT_LIST_DIR}/nvrtc.requirements.txt pin REGEX "^nvidia-cuda-nvrtc")
    string(REGEX MATCH "==([0-9.]+)" unused "${pin}")
    set(nvrtc_version ${CMAKE_MATCH_1})
    execute_process(COMMAND ${Python3_EXECUTABLE} -c "
import importlib.metadata
d = importlib.metadata.distribution('nvidia-cuda-nvrtc-cu12')
if d.version == '${nvrtc_version}':
    print(next(str(f.locate()) for f in d.files if f.name == 'libnvrtc.so.12'), end='')"
        OUTPUT_VARIABLE nvrtc ERROR_QUIET)
endif()
if(NOT nvrtc)
    set(nvrtc_folder ${SGL_KERNEL_DEPS}/nvrtc-${nvrtc_version})
    set(nvrtc ${nvrtc_folder}/nvidia/cuda_nvrtc/lib/libnvrtc.so.12)
    if(NOT EXISTS ${nvrtc})
        message(STATUS "NVRTC: fetching ${nvrtc_version} (90 MB)")
        file(REMOVE_RECURSE ${nvrtc_folder})
        execute_process(COMMAND ${Python3_EXECUTABLE} -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all:
                --require-hashes -r ${CMAKE_CURRENT_LIST_DIR}/nvrtc.requirements.txt --target ${nvrtc_folder}
            RESULT_VARIABLE failed ERROR_VARIABLE why OUTPUT_VARIABLE why)
        if(failed)
            message(FATAL_ERROR "NVRTC could not be fetched with pip; name a copy with -DSGL_KERNEL_NVRTC=<path>/libnvrtc.so.12, "
                "or build without GPU code with -DSGL_KERNEL_ENABLE_CUDA=OFF.\n${why}")
        endif()
    endif()
endif()
if(NOT EXISTS ${nvrtc})
    message(FATAL_ERROR "SGL_KERNEL_NVRTC=${nvrtc} does not exist")
endif()
