/* SGL Kernel in C: compute kernels for LLM serving. Includes the header of every family. */
#ifndef SGL_KERNEL_H
#define SGL_KERNEL_H
#include "sgl_kernel/base.h"
#include "sgl_kernel/convert.h"
#include "sgl_kernel/act.h"
#include "sgl_kernel/attention.h"
#include "sgl_kernel/copy.h"
#include "sgl_kernel/dsv4.h"
#include "sgl_kernel/gemm.h"
#include "sgl_kernel/gemm_packed.h"
#include "sgl_kernel/grammar.h"
#include "sgl_kernel/grouped.h"
#include "sgl_kernel/hadamard.h"
#include "sgl_kernel/kvcache.h"
#include "sgl_kernel/moe.h"
#include "sgl_kernel/norm.h"
#include "sgl_kernel/quant.h"
#include "sgl_kernel/rope.h"
#include "sgl_kernel/sampling.h"
#include "sgl_kernel/vision.h"
#endif
