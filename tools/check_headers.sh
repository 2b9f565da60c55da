#!/bin/sh
# Every public header compiles alone, as C11 and as C++17, without a warning; so do the initialisers, and all next to a dlpack.h that came first.
set -eu
cd "$(dirname "$0")/.."
for header in include/sgl_kernel.h include/sgl_kernel/*.h; do
    name=${header#include/}
    echo "#include \"$name\"" | ${CC:-cc} -std=c11 -Wall -Wextra -Wpedantic -Werror -Iinclude -fsyntax-only -x c -
    echo "#include \"$name\"" | ${CXX:-c++} -std=c++17 -Wall -Wextra -Wpedantic -Werror -Iinclude -fsyntax-only -x c++ -
done
{
    echo '#include "sgl_kernel.h"'
    sed -n 's/^#define SGK_\([A-Z_]*\)_INIT .*/SGK_\1_INIT/p' include/sgl_kernel/*.h | while read -r initialiser; do
        type=$(echo "${initialiser%_INIT}" | tr A-Z a-z)
        echo "$type use_$type(void) { $type x = $initialiser; return x; }"
    done
} >"${TMPDIR:-/tmp}/sgk_initialisers.$$"
trap 'rm -f "${TMPDIR:-/tmp}/sgk_initialisers.$$"' EXIT
${CC:-cc} -std=c11 -Wall -Wextra -Wpedantic -Werror -Iinclude -fsyntax-only -x c "${TMPDIR:-/tmp}/sgk_initialisers.$$"
${CXX:-c++} -std=c++17 -Wall -Wextra -Wpedantic -Werror -Iinclude -fsyntax-only -x c++ "${TMPDIR:-/tmp}/sgk_initialisers.$$"
{
    # what dlpack.h declares, behind its guard
    echo '#define DLPACK_DLPACK_H_'
    sed '/^#/d' include/sgl_kernel/dlpack_compat.h | sed '1i #include <stdint.h>'
    echo '#include "sgl_kernel.h"'
} | ${CC:-cc} -std=c11 -Wall -Wextra -Werror -Iinclude -fsyntax-only -x c -
echo "headers: each compiles alone as C11 and C++17"
