#!/usr/bin/env python3
"""Everything that needs a GPU, on the build at hand: checks, sanitizers, the Python tests; and a result file.

usage: test_gpu.py [--build DIR] [--out DIR] [--jobs N] [--only STAGE ...]      stages: check large memcheck racecheck c pytest cost bench
"""
import argparse
import datetime
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def device():
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, check=True, capture_output=True, text=True).stdout.splitlines()[0].split(", ")
    except (OSError, subprocess.CalledProcessError, IndexError):
        sys.exit("test_gpu: no NVIDIA GPU answers nvidia-smi; these checks need one")


def commit():
    """SGK_COMMIT, where a build was carried to this machine; else what is checked out."""
    done = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"], capture_output=True, text=True)
    return os.environ.get("SGK_COMMIT") or done.stdout.strip() or "unknown"


def sanitizer(tool, check, jobs, *more):
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    return [program, "--tool", tool, "--target-processes", "all", "--error-exitcode", "9", "--print-limit", "500", "--report-api-errors", "no", check, "--small", "--level=cuda", "--keep-arguments", jobs, *more]


# Kernels in which racecheck reports accesses that are in order all the same (HACKING.md says which and why).
RACES_EXPLAINED = {"grouped_wgmma", "grouped_wide"}


def races(lines):
    """The kernels of a racecheck that was not clean, and whether all of it is explained."""
    kernels = [name for line in lines for name in re.findall(r"Race reported between .* access at (\w+)", line)]
    errors = re.search(r"RACECHECK SUMMARY: .*\((\d+) errors, (\d+) warnings\)", "".join(lines))
    failed = re.search(r"^[1-9]\d* cases, 0 failed$", "".join(lines), re.MULTILINE) is None
    return set(kernels), not failed and bool(errors) and sum(map(int, errors.groups())) == len(kernels) and set(kernels) <= RACES_EXPLAINED


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", default="build")
    parser.add_argument("--out", default=None, help="where logs and results go; default: BUILD/gpu")
    parser.add_argument("--jobs", type=int, default=min(14, os.cpu_count()), help="processes at once; the references are the CPU's work")
    parser.add_argument("--only", nargs="*", default=["check", "large", "memcheck", "racecheck", "c", "pytest", "cost", "bench"])
    arguments = parser.parse_args()
    build = os.path.abspath(arguments.build)
    out = os.path.abspath(arguments.out or os.path.join(build, "gpu"))
    os.makedirs(out, exist_ok=True)
    name, driver = device()
    check = os.path.join(build, "sgk-check")
    example = os.path.join(build, "example-c")
    environment = dict(os.environ, SGK_LIBRARY=os.path.join(build, "libsgl_kernel.so"), PYTHONUNBUFFERED="1",
                       PYTHONPATH=os.pathsep.join(filter(None, [os.path.join(ROOT, "python"), os.environ.get("PYTHONPATH")])))
    jobs = f"--jobs={arguments.jobs}"
    parallel = ["-n", str(arguments.jobs), "--dist", "worksteal"] if importlib.util.find_spec("xdist") else []
    commands = {
        "check": [check, "--level=cuda", jobs],
        "large": [check, "--large"],
        "memcheck": sanitizer("memcheck", check, jobs),
        "racecheck": sanitizer("racecheck", check, jobs, "--once"),
        "c": ["sh", "-c", f"cc -std=c11 -I{ROOT}/include {ROOT}/examples/c/rmsnorm.c -L{build} -lsgl_kernel -Wl,-rpath,{build} -ldl -lm -o {example} && {example}"],
        "pytest": [sys.executable, "-m", "pytest", *parallel, "-rf", "--tb=short", "--durations=20", "-o", "faulthandler_timeout=100", "-p", "no:cacheprovider", f"--ignore={ROOT}/tests/test_call_cost.py",
                   os.path.join(ROOT, "tests")],
        "cost": [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", os.path.join(ROOT, "tests/test_call_cost.py")],      # alone: it is a matter of microseconds
        "bench": [sys.executable, "-m", "sgl_kernel", "bench", "--level=cuda", "--from=8", f"--json={out}/bench.json"],
    }
    result = {"date": datetime.date.today().isoformat(), "device": name, "driver": driver, "commit": commit(), "stages": []}
    for stage in arguments.only:
        start = time.time()
        print(f"=== {stage}", flush=True)
        with open(os.path.join(out, f"{stage}.log"), "w", buffering=1) as log:     # a run that is cut leaves what it said
            own = {"OMP_NUM_THREADS": "1"} if stage == "pytest" and parallel else {}       # each worker would start a thread a processor
            process = subprocess.Popen(commands[stage], cwd=ROOT, env=environment | own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            lines = []
            for line in process.stdout:
                log.write(line)
                lines.append(line)
            code = process.wait()
        if stage == "racecheck" and code:
            kernels, explained = races(lines)
            print(f"reports in {', '.join(sorted(kernels)) or 'no kernel'}: {'explained in HACKING.md' if explained else 'not all explained'}")
            code = 0 if explained else code
        tail = lines[-40:] if code else lines[-6:]
        print("".join(tail), end="")
        seconds = round(time.time() - start, 1)
        print(f"=== {stage}: {'passed' if code == 0 else f'FAILED with exit code {code}'}, {seconds} s", flush=True)
        result["stages"].append({"stage": stage, "passed": code == 0, "seconds": seconds, "last_line": lines[-1].strip() if lines else ""})
    with open(os.path.join(out, "test_gpu.json"), "w") as file:
        json.dump(result, file, indent=1)
    sys.exit(not all(stage["passed"] for stage in result["stages"]))


if __name__ == "__main__":
    main()
