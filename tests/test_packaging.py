"""A wheel and an editable install both give ``orthoopt.kernels``, and neither a top-level ``kernels``."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

PROBE = """
import importlib.util, importlib.resources
for name in ("kernels", "recipes", "bench"):
    assert importlib.util.find_spec(name) is None, f"{name} is importable"
import orthoopt, orthoopt.kernels
for name in ("orthoopt.recipes", "orthoopt.bench", "orthoopt.rules.spectral"):
    assert importlib.util.find_spec(name) is not None, name
assert importlib.resources.files("orthoopt").joinpath("py.typed").is_file()
assert orthoopt.rules.get("root").note(128, 352, orthoopt.rules.get("root").defaults)  # reads adanewton.json
assert importlib.resources.files("orthoopt.recipes.configs").joinpath("default.yaml").is_file()
assert importlib.resources.files("orthoopt.recipes.architectures").joinpath("qwen3-0.6b.json").is_file()
print(orthoopt.kernels.__file__)
"""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout's packages, so that building leaves nothing behind in it."""
    target = tmp_path_factory.mktemp("sources")
    for name in ("orthoopt", "kernels", "recipes", "bench"):
        for file in (ROOT / name).rglob("*"):
            if file.suffix in (".py", ".yaml", ".json", ".typed"):
                copy = target / file.relative_to(ROOT)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(file.read_bytes())
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (target / name).write_bytes((ROOT / name).read_bytes())
    (target / "orthoopt" / "py.typed").touch()
    return target


def _install(sources: Path, where: Path, *arguments: str) -> Path:
    """A virtual environment with orthoopt alone, seeing this one's torch and setuptools; nothing is downloaded."""
    venv.create(where, with_pip=False)
    python = where / "bin" / "python"
    site = Path(sysconfig.get_path("purelib", vars={"base": str(where), "platbase": str(where)}))
    # Through a .pth file: this environment's packages, but not its own installation of orthoopt.
    bare = where / "shared"
    bare.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "orthoopt" not in entry.name and entry.suffix != ".pth":
            (bare / entry.name).symlink_to(entry)
    (site / "shared.pth").write_text(f"{bare}\n")
    command = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
    ]
    command += ["--no-build-isolation", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True, cwd=sources, timeout=200)
    return python


def _probe(python: Path, where: Path) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-c", PROBE], cwd=where, capture_output=True, text=True, timeout=200, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_wheel_holds_all_packages_and_works(sources: Path, tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), "."]
    subprocess.run(build, check=True, cwd=sources, capture_output=True, timeout=200)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"orthoopt"}
    for folder in ("orthoopt", "kernels", "recipes", "bench"):
        for file in (sources / folder).rglob("*.py"):
            inside = file.relative_to(sources) if folder == "orthoopt" else "orthoopt" / file.relative_to(sources)
            assert inside.as_posix() in names, f"{inside} is missing from the wheel"
    metadata = zipfile.ZipFile(wheel).read(next(n for n in names if n.endswith("METADATA"))).decode()
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra" not in line]
    assert required == ["Requires-Dist: torch>=2.9"]
    assert "License-Expression: Apache-2.0" in metadata and "Requires-Python: >=3.11" in metadata
    python = _install(sources, tmp_path / "venv", str(wheel))
    assert "site-packages" in _probe(python, tmp_path)


def test_the_editable_install_works(sources: Path, tmp_path: Path) -> None:
    python = _install(sources, tmp_path / "venv", "--editable", ".")
    assert _probe(python, tmp_path) == str(sources / "kernels" / "__init__.py")


def test_every_package_folder_is_listed() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = set()
    for top, prefix in {
        "orthoopt": "",
        "kernels": "orthoopt.",
        "recipes": "orthoopt.",
        "bench": "orthoopt.",
    }.items():
        for init in (ROOT / top).rglob("__init__.py"):
            found.add(prefix + ".".join(init.parent.relative_to(ROOT).parts))
    assert found == listed


def test_the_development_set_is_pinned() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    assert all(line.count("==") == 1 for line in lines)
    assert "torch==2.13.0" in lines
