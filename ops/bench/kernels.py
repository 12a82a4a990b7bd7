#!/usr/bin/env python3
"""Prints registers, shared memory and spills of every kernel, per architecture, as a table.

Needs no GPU, only NVRTC: `pip install -r ops/requirements-cuda.txt`, or libnvrtc in LD_LIBRARY_PATH. Instances of one
kernel for several types are one row; where they differ, the row has the least and the most. A dash is for what an
architecture can't do.
"""

import ctypes
import pathlib
import re
import sys

ARCHS = ["sm_80", "sm_90a", "sm_100a"]
ROOT = pathlib.Path(__file__).resolve().parents[2]
HEADER = ROOT / "crates/aha-cuda/src/aha.cuh"
# As in crates/aha-cuda/src/nvrtc.rs.
OPTIONS = ["--std=c++17", "--extra-device-vectorization", "-default-device", "--fmad=true"]


def load():
    """libnvrtc of the system, or of this Python's packages."""
    bases = map(pathlib.Path, sys.path)
    here = [path for base in bases for path in base.glob("nvidia/cu*/lib/libnvrtc.so.*") if "alt" not in path.name]
    for path in ["libnvrtc.so", "libnvrtc.so.13", *map(str, here)]:
        for builtins in pathlib.Path(path).parent.glob("libnvrtc-builtins.so.*"):
            ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
        try:
            return ctypes.CDLL(path)
        except OSError:
            continue
    sys.exit("error: libnvrtc was not found\nhint: pip install -r ops/requirements-cuda.txt")


def text(path):
    """A source, behind the files beside it that it says it follows."""
    own = path.read_text()
    first = re.search(r"Compiled behind .*", own)
    before = re.findall(r"\w+\.cuh", first[0]) if first else []
    return "".join((path.parent / name).read_text() for name in before) + own


def compile_log(nvrtc, path, arch):
    """What the assembler says of the kernels of a source."""
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    strings = ctypes.c_char_p * 1
    headers, names = strings(HEADER.read_bytes()), strings(b"aha.cuh")
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), text(path).encode(), path.name.encode(), 1, headers, names)
    options = [option.encode() for option in [f"--gpu-architecture={arch}", "--ptxas-options=-v", *OPTIONS]]
    failed = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value + 1)
    nvrtc.nvrtcGetProgramLog(program, log)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    if failed and "need a device of compute capability" in log.value.decode():
        return ""
    if failed:
        sys.exit(f"error: {path} does not compile for {arch}\n{log.value.decode()}")
    return log.value.decode()


def figures(log):
    """(registers, shared bytes, spilled bytes) by kernel."""
    found = {}
    for part in log.split("Compiling entry function '")[1:]:
        name = part.split("'")[0]
        number = lambda pattern: int((re.search(pattern, part) or [0, 0])[1])
        spills = number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads")
        found[name] = (number(r"Used (\d+) registers"), number(r"(\d+) bytes smem"), spills)
    return found


def family(name):
    """A kernel's name without what it was instantiated for."""
    return re.sub(r"(_(f32|bf16|u32|true|false|\d+))+$", "", name)


def shown(values):
    """The least and the most of several numbers."""
    return str(min(values)) if min(values) == max(values) else f"{min(values)}–{max(values)}"


def main():
    nvrtc = load()
    heads = [f"{arch}: registers, shared bytes, spilled bytes" for arch in ARCHS]
    print("| kernel | instances | " + " | ".join(heads) + " |")
    print("| --- |" + " --- |" * (1 + len(ARCHS)))
    for path in sorted((ROOT / "crates/aha-compute/src/ops").rglob("*.cu")):
        of_archs = [figures(compile_log(nvrtc, path, arch)) for arch in ARCHS]
        for name in dict.fromkeys(map(family, sorted(of_archs[-1]))):
            rows = [[of[kernel] for kernel in of if family(kernel) == name] for of in of_archs]
            cells = [", ".join(shown(column) for column in zip(*row)) or "–" for row in rows]
            print(f"| `{name}` | {len(rows[-1])} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
