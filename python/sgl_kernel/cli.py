"""sgl-kernel: what this machine runs (info), whether it is right (check), how fast it is (bench).

All three ask sgk-check, the program that compares every operator with its reference; it needs neither Python nor torch.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from sgl_kernel import _library


def check_program():
    program = _library.find("bin/sgk-check", "sgk-check")
    if not program.exists():
        sys.exit(f"sgl-kernel: {program} does not exist; this build was configured with SGL_KERNEL_CHECK=OFF")
    return str(program)


def run_check(arguments, on_line):
    """Runs sgk-check; `on_line` hears its output. Returns its exit code and its results."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.json"
        process = subprocess.Popen([check_program(), f"--json={results}", *arguments], stdout=subprocess.PIPE, text=True)
        for line in process.stdout:
            on_line(line.rstrip())
        code = process.wait()
        return code, json.loads(results.read_text()) if results.exists() else {}


class Progress:
    """One line that tells what is under way: rich's spinner where rich is installed and there is a terminal."""

    def __init__(self, title):
        self.title, self.status = title, None

    def __enter__(self):
        try:
            from rich.console import Console
            console = Console(stderr=True)
            if console.is_terminal:
                self.status = console.status(self.title)
                self.status.start()
        except ImportError:
            pass
        return self

    def __exit__(self, *_):
        if self.status:
            self.status.stop()

    def __call__(self, line):
        if self.status and line.strip():
            from rich.markup import escape
            self.status.update(f"{self.title}: {escape(line.strip()[:100])}")


def print_table(columns, rows, title=None):
    """`columns` are (heading, justification)."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        widths = [max(len(str(row[i])) for row in [[c[0] for c in columns], *rows]) for i in range(len(columns))]
        if title:
            print(title)
        for row in [[c[0] for c in columns], *rows]:
            print("  ".join(str(x).rjust(w) if c[1] == "right" else str(x).ljust(w) for x, w, c in zip(row, widths, columns)).rstrip())
        return
    table = Table(title=title, title_justify="left", header_style="bold")
    for heading, justify in columns:
        table.add_column(heading, justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*map(str, row))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


# ---- info ------------------------------------------------------------------------------------------------------------------------

def packs():
    folder = _library.find("packs", "packs")
    found = sorted(folder.glob("*.pack"))
    if not found:
        return f"none in {folder}: this build has no GPU code"
    return ", ".join(f"{pack.stem} ({pack.stat().st_size / 1e6:.1f} MB)" for pack in found)


def torch_found():
    from sgl_kernel import _ops
    if _ops.torch is None:
        return f"{_ops.reason}; torch 2.10 or newer is needed for torch.ops.sgl_kernel"
    operators = len({name for name, _ in _library.torch_operators()})
    cuda = _ops.torch.version.cuda
    return f"{_ops.torch.__version__} ({f'CUDA {cuda}' if cuda else 'CPU only'}), {operators} operators registered"


def info(arguments):
    if not arguments.json:
        print(f"sgl-kernel {_library.version}, {_library.path}", flush=True)
    failures = []
    with Progress("asking every operator which version it would run") as progress:
        options = ["--versions", "--small", "--seed=1611", *[f"--only={name}" for name in arguments.only]]
        if arguments.shape:
            options += [f"--shape={arguments.shape}"]

        def on_line(line):
            progress(line)
            if line.startswith(("seed ", "FAILURE: ", "no case ")):
                failures.append(line)

        code, found = run_check(options, on_line)
    if code != 0 and any(line.startswith("no case ") for line in failures):
        asked = ", ".join(arguments.only) or "no operator"
        sys.exit(f"sgl-kernel: nothing to ask: {asked} with --shape {arguments.shape}; linear takes three sizes, rows, columns and depth" if arguments.shape else
                 f"sgl-kernel: no case of an operator has {asked} in its name; `sgl-kernel info` names all operators")
    if code != 0:
        if code == 2:           # a wrong option, about which sgk-check has said a sentence
            sys.exit(code)
        sys.exit("\n".join([f"sgl-kernel: sgk-check ended with code {code}; run `sgl-kernel check` for its report", *failures]))
    facts = {
        "CPU level": f"{found['cpu']}, {found['threads']} threads",
        "GPU": found["gpu"] or "none",
        "packs": packs(),
        "torch": torch_found(),
        "left out": ", ".join(sorted(_library.families_left_out)) or "nothing",
    }
    if arguments.json:
        print(json.dumps({"version": _library.version, "library": str(_library.path), **facts, "versions": found["versions"]}, indent=2))
        return 0
    for name, text in facts.items():
        print(f"  {name:<10} {text}")
    rows = sorted((v["operator"], v["level"], v["version"], v["example"]) for v in found["versions"])
    print_table([("operator", "left"), ("on", "left"), ("version that runs, and why", "left"), ("for example", "left")], rows)
    return 0


# ---- bench -----------------------------------------------------------------------------------------------------------------------

COLUMNS = {     # of a row of sgk-check's results: heading, and how to print it
    "case": ("case", str), "level": ("on", str), "microseconds": ("us", "{:.2f}".format),
    "microseconds_graph": ("in a graph", "{:.2f}".format), "gigabytes_per_second": ("GB/s", "{:.1f}".format), "gigaflops": ("GFLOP/s", "{:.1f}".format), "share": ("of limit", "{:.0%}".format), "spread": ("+/-", "{:.0%}".format),
    "times_reference": ("x ref", "{:.1f}".format),
}


def plot(rows, path):
    """Each case as its share of the limit where that is known, otherwise as its bandwidth."""
    try:
        import matplotlib
    except ImportError:
        print("no plot: matplotlib is not installed (pip install matplotlib)", file=sys.stderr)
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot
    shares = all(row.get("share") is not None for row in rows)
    key, label = ("share", "share of the limit time") if shares else ("gigabytes_per_second", "GB/s")
    rows = [row for row in rows if row.get(key) is not None]
    figure, axes = pyplot.subplots(figsize=(9, max(2.0, 0.22 * len(rows) + 1)))
    axes.barh([f"{row['case']} {row['level']}" for row in rows], [row[key] for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel(label)
    axes.tick_params(axis="y", labelsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120, bbox_inches="tight")
    print(f"wrote {path}")


def torch_ceilings(device):
    """What torch reaches on this machine: a copy and a sum of a large tensor in bytes a second, a bf16 matrix product in operations a second."""
    from time import perf_counter

    from sgl_kernel import _ops
    torch = _ops.torch
    if torch is None or (device == "cuda" and not torch.cuda.is_available()):
        return None

    def seconds(call, rounds=9):
        figures = []
        for i in range(rounds + 2):
            start = perf_counter()
            call()
            if device == "cuda":
                torch.cuda.synchronize()
            figures.append(perf_counter() - start)
        return sorted(figures[2:])[rounds // 2]

    elements = (2 << 30 if device == "cuda" else 1 << 30) // 4
    while device == "cuda" and 8 * elements > torch.cuda.mem_get_info()[0] // 2:
        elements //= 2
    source = torch.full((elements,), 0x3c3c3c3c, dtype=torch.int32, device=device)
    target = torch.empty_like(source)
    copy = 8 * elements / seconds(lambda: target.copy_(source))
    read = 4 * elements / seconds(lambda: torch.sum(source.view(torch.float32)))
    del source, target
    n = 8192 if device == "cuda" else 2048
    a, b = torch.randn(n, n, device=device).bfloat16(), torch.randn(n, n, device=device).bfloat16()
    matrix = 2 * n**3 / seconds(lambda: torch.mm(a, b.t()))
    del a, b
    if device == "cuda":
        torch.cuda.empty_cache()
    return f"--ceilings={device}:{copy:.6g},{read:.6g},{matrix:.6g}"


def writable(path):
    """Asked before minutes of timing, not after them."""
    folder = Path(path).resolve().parent
    if Path(path).is_dir() or not os.access(path if os.path.exists(path) else folder, os.W_OK):
        sys.exit(f"sgl-kernel: {path} cannot be written")


def bench(arguments):
    for path in filter(None, (arguments.json, arguments.plot)):
        writable(path)
    with Progress("timing") as progress:
        options = ["--bench", *[f"--only={name}" for name in arguments.only], *[f"--level={level}" for level in arguments.level]]
        devices = {"cuda" if level == "cuda" else "cpu" for level in arguments.level} or {"cpu", "cuda"}
        if arguments.least:
            options.append(f"--bench-from={arguments.least}")
        if arguments.level and devices == {"cuda"}:         # which takes turns; the references are the CPU's work
            options.append(f"--jobs={arguments.jobs}")
        options += filter(None, map(torch_ceilings, sorted(devices)))
        code, found = run_check(options, progress)
    rows = found.get("rows", [])
    if not found:               # sgk-check has said why
        return code
    if not rows and not found["failures"]:
        asked = [*arguments.only, *[f"--level {level}" for level in arguments.level], *([f"--from {arguments.least}"] if arguments.least else [])]
        sys.exit(f"sgl-kernel: no case to time on this machine: {', '.join(asked)}; `sgl-kernel info` names all operators")
    keys = [key for key in COLUMNS if any(row.get(key) is not None for row in rows)]
    columns = [(COLUMNS[key][0], "left" if COLUMNS[key][1] is str else "right") for key in keys]
    print_table(columns, [["" if row.get(key) is None else COLUMNS[key][1](row[key]) for key in keys] for row in rows],
                title=f"{found.get('gpu') or 'no GPU'}, CPU level {found.get('cpu')}, {found.get('threads')} threads")
    for device, ceiling in found.get("ceilings", {}).items():
        if ceiling:
            print(f"ceilings of the {device.upper()} at {ceiling['bytes'] / 1e9:.1f} GB: copy {ceiling['copy_gigabytes_per_second']:.0f} GB/s, "
                  f"read {ceiling['read_gigabytes_per_second']:.0f} GB/s, bf16 matrices {ceiling['matrix_teraflops'] or 0:.1f} TFLOP/s, "
                  f"nothing {ceiling['empty_microseconds']:.2f} us")
    for failure in found.get("failures", []):
        print(f"failed: {failure['case']} on {failure['level']}: {failure['text']}", file=sys.stderr)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(found, indent=2) + "\n")
        print(f"wrote {arguments.json}")
    if arguments.plot and rows:
        plot(rows, arguments.plot)
    return code


# ---- the command -----------------------------------------------------------------------------------------------------------------

def main(argv=None):
    parser = argparse.ArgumentParser(prog="sgl-kernel", description="Compute kernels for LLM serving: what this machine runs, whether it is right, how fast it is.")
    parser.add_argument("--version", action="version", version=f"sgl-kernel {_library.version}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="info | check | bench")
    command = commands.add_parser("info", help="devices, packs, torch, and which version of each operator would run and why")
    command.add_argument("--only", "--op", action="append", default=[], metavar="TEXT", help="cases whose name contains TEXT")
    command.add_argument("--shape", metavar="A,B,...", help="what would run for this shape: rows, columns, depth of linear")
    command.add_argument("--json", action="store_true", help="as JSON")
    command.set_defaults(run=info)
    commands.add_parser("check", help="compare every operator with its reference on this machine; options as sgk-check has them", add_help=False)
    command = commands.add_parser("bench", help="time every operator on this machine")
    command.add_argument("--only", action="append", default=[], metavar="TEXT", help="cases whose name contains TEXT")
    command.add_argument("--level", action="append", default=[], metavar="LEVEL", help="ref, avx2, avx512, avx512bf16, amx, neon or cuda")
    command.add_argument("--from", dest="least", type=int, metavar="MB", help="time only cases whose tensors take at least so much")
    command.add_argument("--jobs", type=int, default=max(1, min(14, len(os.sched_getaffinity(0)) - 2)), metavar="N", help="processes with --level=cuda; one at a time has the GPU")
    command.add_argument("--json", metavar="FILE", help="write the results")
    command.add_argument("--plot", metavar="FILE", help="write a picture of them (needs matplotlib)")
    command.set_defaults(run=bench)
    arguments, rest = parser.parse_known_args(argv)
    if arguments.command == "check":
        program = check_program()
        sys.stdout.flush()
        os.execv(program, [program, *rest])
    if rest:
        parser.error(f"unknown arguments: {' '.join(rest)}")
    return arguments.run(arguments)
