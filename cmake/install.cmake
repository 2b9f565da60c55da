# What a wheel (or a prefix) holds: the library, the headers, the packs and the check program, all below one folder.
install(TARGETS sgl_kernel LIBRARY DESTINATION sgl_kernel)
install(DIRECTORY include/ DESTINATION sgl_kernel/include)
if(SGL_KERNEL_CHECK)
    install(TARGETS sgk-check RUNTIME DESTINATION sgl_kernel/bin)
endif()
if(SGL_KERNEL_ENABLE_CUDA AND SGL_KERNEL_CUDA_ARCHS)
    install(DIRECTORY ${SGL_KERNEL_PACK_DIR}/ DESTINATION sgl_kernel/packs FILES_MATCHING PATTERN "*.pack")
endif()
