#!/bin/sh
# What has to be there before anything can be installed: a C compiler and Python 3.10 with venv. One sentence for what is missing.
# usage: prerequisites.sh PYTHON [none]      none: nothing is installed, so CMake and Ninja have to be there too, and venv need not
python=${1:-python3}
say() { echo "$1" >&2; exit 1; }
compiler=${CC:-$(command -v cc || command -v gcc)}
compiler=${compiler%% *}                    # CC may hold options
command -v "$compiler" >/dev/null || say "No C compiler found; install one with: apt-get install gcc libc6-dev"
echo '#include <stdio.h>' | "$compiler" -E - >/dev/null 2>&1 || say "The C compiler has no headers; install them with: apt-get install libc6-dev"
command -v "$python" >/dev/null || say "$python not found; install Python with: apt-get install python3 python3-venv"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || say "$python is older than 3.10; name a newer one with: make PYTHON=python3.12"
if [ "${2:-}" = none ]; then
    for tool in cmake ninja; do
        command -v $tool >/dev/null || say "$tool not found, and VENV=none installs nothing; install it with: $python -m pip install cmake ninja"
    done
else
    "$python" -c 'import venv, ensurepip' 2>/dev/null || say "$python has no venv module; install it with: apt-get install python3-venv"
fi
