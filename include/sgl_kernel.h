/* SGL Kernel in C: compute kernels for LLM serving. Includes the header of every family. */
#ifndef SGL_KERNEL_H
#define SGL_KERNEL_H
#include "sgl_kernel/base.h"
#include "sgl_kernel/norm.h"
#endif
