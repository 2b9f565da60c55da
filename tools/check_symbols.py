#!/usr/bin/env python3
"""Checks what libsgl_kernel.so exports and what it asks of the system.

It may export only sgk_* functions, and may need only libc, libm, libdl and libpthread (which glibc >= 2.34 keeps in one file).
usage: [NM=nm] [READELF=readelf] check_symbols.py LIBRARY
"""
import os
import re
import subprocess
import sys

NM, READELF = os.environ.get("NM", "nm"), os.environ.get("READELF", "readelf")
ALLOWED_LIBRARIES = {"libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    library = sys.argv[1]
    problems = []
    for line in output(NM, "-D", "--defined-only", library).splitlines():
        name = line.split()[-1].split("@")[0]
        if not name.startswith("sgk_"):
            problems.append(f"exports {name}, expected only names that begin with sgk_")
    for line in output(NM, "-D", "--undefined-only", library).splitlines():
        kind, name = line.split()[-2:]
        if kind == "U" and "@GLIBC" not in name:
            problems.append(f"needs {name}, which is not glibc's")
    needed = re.findall(r"NEEDED.*\[(.*)\]", output(READELF, "-d", library))
    for name in needed:
        if name not in ALLOWED_LIBRARIES:
            problems.append(f"is linked to {name}, expected only {', '.join(sorted(ALLOWED_LIBRARIES))}")
    for problem in problems:
        print(f"{library} {problem}", file=sys.stderr)
    exported = len(output(NM, "-D", "--defined-only", library).splitlines())
    print(f"{library}: {exported} exported symbols, needs {', '.join(needed)}")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
