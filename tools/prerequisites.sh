#!/bin/sh
# What has to be there before anything can be installed: a C compiler and Python 3.10 with venv. One sentence for what is missing.
python=${1:-python3}
say() { echo "$1" >&2; exit 1; }
command -v cc >/dev/null || command -v gcc >/dev/null || say "No C compiler found; install one with: apt-get install gcc libc6-dev"
echo '#include <stdio.h>' | cc -E - >/dev/null 2>&1 || say "The C compiler has no headers; install them with: apt-get install libc6-dev"
command -v "$python" >/dev/null || say "$python not found; install Python with: apt-get install python3 python3-venv"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || say "$python is older than 3.10; name a newer one with: make PYTHON=python3.12"
"$python" -c 'import venv, ensurepip' 2>/dev/null || say "$python has no venv module; install it with: apt-get install python3-venv"
