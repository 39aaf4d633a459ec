"""The compiled loops of ``native_steps`` and ``native_products``: built at first use, kept on disk, loaded.

torch has no fused step for these rules on a CPU, nor a product that computes one triangle, and wheels for every machine
are no option: the loops are worth having only when built for the very CPU. So the machine's own C compiler makes them,
as Triton's does its launchers. Without one, or where anything else goes wrong, one line is logged and the caller uses
plain torch.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

_HERE = Path(__file__).parent
# No -ffast-math: sums keep their order and NaNs are looked for.
_FLAGS = ("-std=gnu11", "-fPIC", "-shared", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math")


class Unit(NamedTuple):
    """What becomes one shared library."""

    name: str
    sources: tuple[Path, ...]
    """The last one is compiled; it includes the others."""
    flags: tuple[str, ...]


# Contraction would round differently in the vector part of a loop and in its tail, and so by position.
STEPS = Unit(
    "native",
    tuple(_HERE / f"native{part}" for part in (".h", "_task.h", "_rules.h", "_elementwise.h", ".c")),
    ("-O2", "-ftree-vectorize", "-ffp-contract=off", *_FLAGS),
)
# Products are made of fused multiply-adds, every element of the same ones.
PRODUCTS = Unit(
    "native_products", (_HERE / "native.h", _HERE / "native_products.c"), ("-O3", "-ffp-contract=fast", *_FLAGS)
)
TUNING = {"x86_64": "-march=native", "aarch64": "-mcpu=native"}
COMPILE_SECONDS = 120

logger = logging.getLogger("orthoopt")
_lock = threading.Lock()
_loaded: Library | None = None
_tried = False


class Library(NamedTuple):
    """The loaded functions, which run on the threads of torch's own OpenMP."""

    step: Any
    all_finite: Any
    product: Any
    tile: tuple[int, int]
    """Rows and columns of a tile of a product."""
    few: tuple[int, int]
    """Rows of A that are one panel, and lines up to which B may be read where it lies."""
    threads: tuple[int, int] | None
    """Addresses of ``GOMP_parallel`` and ``omp_get_thread_num``; None: there is one thread."""


def available() -> bool:
    """Whether the compiled loops can be used here; the first call builds them if need be, in a second or two.

    Not on machines other than Linux on x86-64 and AArch64, nor without a C compiler (``$CC``, ``cc``, ``gcc`` or
    ``clang``), nor where the environment says ``ORTHOOPT_NATIVE=0``.
    """
    return library() is not None


def library() -> Library | None:
    """The compiled loops, or None where there are none."""
    global _loaded, _tried
    if not _tried:
        with _lock:
            if not _tried:
                _loaded = _try_to_load()
                _tried = True
    return _loaded


def _try_to_load() -> Library | None:
    machine = platform.machine()
    if os.environ.get("ORTHOOPT_NATIVE") == "0" or sys.platform != "linux" or machine not in TUNING:
        return None
    try:
        return _load(*(_built(unit, TUNING[machine]) for unit in (STEPS, PRODUCTS)))
    except Exception as error:  # whatever it is, a step in plain torch is better than none
        logger.info("no compiled loops, steps on the CPU use torch operations: %s", error)
        return None


def _load(steps: Path, products: Path) -> Library:
    loops, multiply = ctypes.CDLL(str(steps)), ctypes.CDLL(str(products))
    pointer, many = ctypes.c_void_p, ctypes.c_int64
    loops.orthoopt_step.argtypes = (ctypes.c_int, ctypes.c_int, many, pointer, pointer, ctypes.c_int)
    loops.orthoopt_all_finite.argtypes = (many, pointer, ctypes.c_int)
    multiply.orthoopt_product.argtypes = (pointer, ctypes.c_int)
    tile = multiply.orthoopt_tile_rows(), multiply.orthoopt_tile_cols()
    few = multiply.orthoopt_few_rows(), multiply.orthoopt_few_lines()
    threads = _threads()
    if threads is not None:
        for unit in (loops, multiply):
            unit.orthoopt_threads.argtypes = (pointer, pointer)
            unit.orthoopt_threads(*threads)
    return Library(loops.orthoopt_step, loops.orthoopt_all_finite, multiply.orthoopt_product, tile, few, threads)


def _threads() -> tuple[int, int] | None:
    """The OpenMP entries that torch itself uses: a second pool of threads would compete with torch's for the cores."""
    try:
        torch_itself = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        # Looked up through torch's library, the symbols are those of the OpenMP library that torch depends on.
        found = [getattr(torch_itself, name) for name in ("GOMP_parallel", "omp_get_thread_num")]
        parallel, number = (ctypes.cast(entry, ctypes.c_void_p).value for entry in found)
    except (OSError, AttributeError):
        parallel = number = None
    if parallel is None or number is None:
        logger.info("torch has no GOMP_parallel here: compiled loops use one thread")
        return None
    return parallel, number


def _built(unit: Unit, tuning: str) -> Path:
    """The shared library for this source, compiler and CPU: from the cache, or made now."""
    source = b"".join(path.read_bytes() for path in unit.sources)
    compiler = _compiler()
    version = subprocess.run([*compiler, "--version"], capture_output=True, timeout=COMPILE_SECONDS, check=True).stdout
    command = [*compiler, *unit.flags, tuning]
    what = (source, " ".join(command).encode(), version, _cpu(), repr(platform.libc_ver()).encode())
    name = f"{unit.name}-{hashlib.sha256(b'|'.join(what)).hexdigest()[:20]}.so"
    problem: Exception | None = None
    for folder in _folders():
        path = folder / name
        try:
            _prepare(folder)
            if not path.exists():
                _compile([*command, str(unit.sources[-1])], path)
            _check_owner(path)
            return path
        except OSError as error:
            problem = error
    raise problem or OSError("no folder to build in")


def _compiler() -> list[str]:
    chosen = shlex.split(os.environ.get("CC", ""))
    if chosen and shutil.which(chosen[0]):
        return chosen
    for name in ("cc", "gcc", "clang"):
        if shutil.which(name):
            return [name]
    raise FileNotFoundError("no C compiler found; install one, or set CC")


def _cpu() -> bytes:
    """What ``-march=native`` depends on: a home may be shared by different machines."""
    lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    kept = (b"model name", b"flags", b"Features", b"CPU implementer", b"CPU part", b"CPU variant")
    return b"|".join(sorted({line for line in lines if line.startswith(kept)}))


def _folders() -> Iterator[Path]:
    """Where a library may be kept: the first one that can be written is used."""
    chosen = os.environ.get("ORTHOOPT_CACHE_DIR")
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    yield Path(chosen) if chosen else Path(home) / "orthoopt"
    yield Path(tempfile.gettempdir()) / f"orthoopt-{os.geteuid()}"
    yield Path(tempfile.mkdtemp(prefix="orthoopt-"))


def _prepare(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_owner(folder)


def _check_owner(path: Path) -> None:
    """Code is loaded only from where nobody else can write."""
    found = path.lstat()
    if found.st_uid != os.geteuid() or stat.S_ISLNK(found.st_mode) or found.st_mode & 0o022:
        raise PermissionError(f"{path} is a link, or others own it or may write to it")


def _compile(command: list[str], path: Path) -> None:
    """Build ``path``; it appears whole or not at all, however many processes build it at once."""
    handle, built = tempfile.mkstemp(suffix=".so", dir=path.parent)
    os.close(handle)
    try:
        done = subprocess.run([*command, "-o", built, "-lm"], capture_output=True, timeout=COMPILE_SECONDS)
        if done.returncode:
            raise RuntimeError(f"{command[0]} failed: {done.stderr.decode(errors='replace').strip()[-400:]}")
        os.chmod(built, 0o700)
        os.replace(built, path)
    finally:
        Path(built).unlink(missing_ok=True)
