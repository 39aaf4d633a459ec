"""Building, keeping and loading the compiled loops: a step must never fail for want of a compiler."""

from __future__ import annotations

import logging
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from orthoopt.kernels import native

pytestmark = pytest.mark.skipif(not native.available(), reason="no C compiler here, or not Linux")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, for this test alone."""
    chosen = tmp_path / "cache"
    monkeypatch.setenv("ORTHOOPT_CACHE_DIR", str(chosen))
    monkeypatch.setattr(native.tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    # What is built matters little here, and optimizing takes most of the time.
    for name in ("STEPS", "PRODUCTS"):
        unit = getattr(native, name)
        monkeypatch.setattr(native, name, unit._replace(flags=("-O0", *unit.flags[1:])))
    return chosen


def compiler(tmp_path: Path, script: str) -> str:
    """A compiler that does what ``script`` says."""
    path = tmp_path / "fake-cc"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def libraries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*")) if folder.exists() else []


def test_built_once_and_then_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert native._try_to_load() is not None
    assert len(libraries(folder)) == 2
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not any(built.stat().st_mode & 0o077 for built in libraries(folder))
    monkeypatch.setattr(native, "_compile", lambda command, path: pytest.fail("compiled again"))
    assert native._try_to_load() is not None


def test_another_compiler_source_or_cpu_is_another_library(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    tuning = native.TUNING[native.platform.machine()]
    native._built(native.STEPS, tuning)
    monkeypatch.setattr(native, "_cpu", lambda: b"another")
    native._built(native.STEPS, tuning)
    newer = compiler(tmp_path, f'[ "$1" = --version ] && echo 99 && exit\nexec {real} "$@"')
    monkeypatch.setenv("CC", newer)
    native._built(native.STEPS, tuning)
    changed = tmp_path / "native.c"
    *headers, source = native.STEPS.sources
    changed.write_text(source.read_text() + "\n")
    for header in headers:
        shutil.copy(header, tmp_path)
    monkeypatch.setattr(native, "STEPS", native.STEPS._replace(sources=(*headers, changed)))
    native._built(native.STEPS, tuning)
    assert len(libraries(folder)) == 4


def test_the_compiler_may_come_with_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    monkeypatch.setenv("CC", f"{real} -g0")
    assert native._compiler() == [real, "-g0"]
    assert native._try_to_load() is not None


@pytest.mark.parametrize(
    ("script", "said"),
    [("exit 1", "exit status 1"), ('[ "$1" = --version ] || { echo no such flag >&2; exit 1; }', "no such flag"),
     ('[ "$1" = --version ] || exit 0', "no compiled loops")],
    ids=["no version", "cannot compile", "writes nothing"],
)  # fmt: skip
def test_a_broken_compiler_is_one_line_in_the_log(
    script: str,
    said: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("CC", compiler(tmp_path, script))
    with caplog.at_level(logging.INFO, "orthoopt"):
        assert native._try_to_load() is None
    (record,) = caplog.records
    assert said in record.getMessage()
    assert {path.suffix for path in libraries(folder)} <= {".so"}  # no half-made file is left


def test_no_compiler_at_all(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    with caplog.at_level(logging.INFO, "orthoopt"):
        assert native._try_to_load() is None
    assert "no C compiler found" in caplog.text


def test_turned_off(folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("ORTHOOPT_NATIVE", "0")
    assert native._try_to_load() is None
    assert not libraries(folder) and not caplog.records


def test_other_systems_are_not_tried(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native.platform, "machine", lambda: "riscv64")
    assert native._try_to_load() is None
    assert not libraries(folder)


@pytest.mark.parametrize("spoil", ["a file", "others may write", "a link"])
def test_a_folder_that_is_not_safe_is_passed_over(
    spoil: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if spoil == "a file":
        folder.write_text("")
    elif spoil == "a link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "elsewhere")
    else:
        folder.mkdir()
        folder.chmod(0o777)
    path = native._built(native.STEPS, native.TUNING[native.platform.machine()])
    assert path.parent == tmp_path / "temporary" / f"orthoopt-{os.geteuid()}"
    assert native._load(path, native._built(native.PRODUCTS, native.TUNING[native.platform.machine()])).step is not None


def test_a_library_that_others_could_have_written_is_not_loaded(folder: Path, tmp_path: Path) -> None:
    tuning = native.TUNING[native.platform.machine()]
    path = native._built(native.STEPS, tuning)
    path.chmod(0o722)
    assert native._built(native.STEPS, tuning).parent != folder


def test_two_processes_at_once(folder: Path) -> None:
    """Both build or find the library, whole, whoever is first."""
    code = (
        "from orthoopt.kernels import native, native_steps; assert native.available() and native_steps.all_finite([])"
    )
    runs = [subprocess.Popen([sys.executable, "-P", "-c", code]) for _ in range(2)]
    assert [run.wait(timeout=120) for run in runs] == [0, 0]
    assert len(libraries(folder)) == 2


def test_threads_are_those_of_torch() -> None:
    """One OpenMP library is loaded, before and after."""
    loaded = native.library()
    assert loaded is not None
    if loaded.threads is None:
        pytest.skip("torch was built without GOMP_parallel here")
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    for entry in loaded.threads:
        inside = [x[-1] for x in lines if int(x[0].split("-")[0], 16) <= entry < int(x[0].split("-")[1], 16)]
        assert len(inside) == 1 and "omp" in Path(inside[0]).name
