"""What a result was made with: machine, versions, code, time. Every result file holds this block."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import platform
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "orthoopt", "torch", "triton", "transformers", "accelerate", "tokenizers", "numpy", "scipy", "pytorch_optimizer",
    "heavyball", "emerging-optimizers", "gram-newton-schulz", "quack-kernels",
)  # fmt: skip
"""Whose releases a result may depend on; those not installed are left out."""

_SOURCES = ("orthoopt", "orthoopt.kernels", "orthoopt.recipes")  # what decides a result; not the benches
_TRACKED = ("orthoopt", "kernels", "recipes", "bench", "pyproject.toml", ":(exclude)bench/results")


def describe(device: str | torch.device = "cpu") -> dict[str, Any]:
    """The block for a result file: plain data, without the machine's name or paths.

    Args:
        device: where the bench runs; for a CUDA device its properties are added.
    """
    device = torch.device(device)
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "bfloat16_in_hardware": bfloat16_in_hardware(),
        "torch_threads": torch.get_num_threads(),
        "memory_gib": _memory_gib(),
        "load_average": load_average(),
        "gpu": describe_gpu(device) if device.type == "cuda" else None,
        "versions": versions(),
        "git": git_state(),
        "sources": source_digest(),
    }


def versions() -> dict[str, str]:
    """Releases of Python and of the installed ones of :data:`PACKAGES`."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    found["torch"] = torch.__version__  # the metadata may lack the build, such as +cpu
    return found


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def bfloat16_in_hardware() -> bool:
    """Whether the processor multiplies bfloat16 matrices; elsewhere a product of them takes far longer than float32."""
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(bool(check()) for check in checks if check is not None)


def load_average() -> float | None:
    """Runnable processes over the last minute; a bench wants far fewer than there are cores."""
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        return None


def describe_gpu(device: torch.device) -> dict[str, Any]:
    """Name, memory, and what the driver says of clocks and power."""
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "multiprocessors": properties.multi_processor_count,
        "capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
        "driver": _driver_says(device),
    }


@functools.lru_cache
def git_state() -> dict[str, Any] | None:
    """Commit of the checkout this file is tracked in, and whether its sources have changes; None elsewhere."""
    folder, name = Path(__file__).resolve().parent, Path(__file__).name
    try:
        _git(folder, "ls-files", "--error-unmatch", name)
        root = Path(_git(folder, "rev-parse", "--show-toplevel"))
        changes = _git(root, "status", "--porcelain", "--untracked-files=no", "--", *_TRACKED)
        return {"commit": _git(folder, "rev-parse", "HEAD"), "dirty": bool(changes)}
    except (OSError, subprocess.SubprocessError):
        return None


def source_digest() -> str:
    """The sha256 of the sources of the package, its kernels and recipes: equal digests ran equal code.

    Unlike a commit it exists without git, sees uncommitted changes, and stays when only documents change.
    """
    digest = hashlib.sha256()
    for package in _SOURCES:
        for name, path in sorted(_source_files(package)):
            data = path.read_bytes()
            digest.update(f"{package}/{name}\0{len(data)}\0".encode())
            digest.update(data)
    return digest.hexdigest()


def _source_files(package: str) -> Iterator[tuple[str, Path]]:
    spec = importlib.util.find_spec(package)
    for location in (spec.submodule_search_locations or []) if spec else []:
        root = Path(location)
        # Not Path.rglob: it passes by folders that are links, as those of a tree of links are.
        for folder, _, files in os.walk(root, followlinks=True):
            for name in files:
                path = Path(folder) / name
                inside = path.relative_to(root)
                # A regular install has the kernels, recipes and benches inside the package; each is its own here.
                if inside.parts[0] in ("kernels", "recipes", "bench") and package == "orthoopt":
                    continue
                if path.suffix in (".py", ".yaml", ".json"):
                    yield inside.as_posix(), path


def _git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()


def _driver_says(device: torch.device) -> str | None:
    fields = "driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit"
    index = device.index if device.index is not None else torch.cuda.current_device()
    command = ["nvidia-smi", f"--id={index}", f"--query-gpu={fields}", "--format=csv"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None
