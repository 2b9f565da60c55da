"""What the benchmarks share: a library in a process of its own, since two packages named `sgl_kernel` cannot be imported into one; clocks; names.

The process runs the same script with --worker. Requests and answers are lines of JSON; whatever else it prints is no answer.
"""
import json
import os
import platform
import re
import subprocess
import sys


def processor(threads):
    """This machine and so many threads, as results name them."""
    try:
        name = re.search(r"model name\s*: (.*)", open("/proc/cpuinfo").read()).group(1)
    except (OSError, AttributeError):
        name = platform.processor() or platform.machine()
    return f"{name}, {threads} threads"


class Refused(Exception):
    """The library lacks what was asked for, or does not take the case."""


class Library:
    def __init__(self, name, folder="", *options, **variables):
        """The package in `folder`, with these options and environment variables. SGK_LIBRARY belongs to this checkout's package alone."""
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))}
        if folder and os.path.abspath(folder) != os.path.abspath("python"):
            environment.pop("SGK_LIBRARY", None)
        self.name = name
        self.process = subprocess.Popen([sys.executable, os.path.abspath(sys.argv[0]), "--worker", *options],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment | variables)

    @classmethod
    def given(cls, text, *options):
        """What an option --library says: NAME=FOLDER[,VARIABLE=VALUE...]."""
        name, place = text.split("=", 1)
        folder, *variables = place.split(",")
        return cls(name, folder, *options, **dict(variable.split("=", 1) for variable in variables))

    def ask(self, *request):
        """What that method of the worker returns: ask("time", 3) is `worker.time(3)`. Some libraries end their process where a call fails."""
        if self.process.poll() is None:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("ANSWER "):
                return json.loads(line.removeprefix("ANSWER "))
            if line.startswith("REFUSED "):
                raise Refused(json.loads(line.removeprefix("REFUSED ")))
        raise Refused(f"its process ended with code {self.process.wait()}")


def serve(worker):
    """The other end of `ask`."""
    for line in sys.stdin:
        method, *arguments = json.loads(line)
        try:
            answer = "ANSWER " + json.dumps(getattr(worker, method)(*arguments))
        except Exception as error:
            answer = "REFUSED " + json.dumps(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")
        print(answer, flush=True)


def microseconds(work, calls=1):
    """Of one of the `calls` that `work` makes on the GPU."""
    import torch
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e3 / calls
