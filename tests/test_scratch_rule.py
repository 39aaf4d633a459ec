"""A rule is one file: dropped into the folder it is registered, has options, and the conformance suite holds it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import orthoopt

TESTS = Path(__file__).parent
GOOD = """
\"\"\"Sign rule (Signum): keep only the sign of the momentum. Source: Bernstein et al., arXiv 1802.04434.\"\"\"

from torch import Tensor

from orthoopt.rules._base import Equivariance, register
from orthoopt.rules._momentum import momentum_rule


def sign_direction(momentum: Tensor) -> Tensor:
    \"\"\"Sign of the momentum (Signum).\"\"\"
    return momentum.sign()


register(
    momentum_rule(
        "scratch_sign",
        sign_direction,
        rms=lambda rows, cols, options: 1.0,
        equivariance=Equivariance("signed_permutation", "signed_permutation", breaks=(("left", "orthogonal"),)),
        transposable=True,
    )
)
"""
# Each breaks one promise.
BAD = {
    "writes_its_input": GOOD.replace("return momentum.sign()", "return momentum.sign_()"),
    "claims_rotations": GOOD.replace('Equivariance("signed_permutation"', 'Equivariance("orthogonal"'),
    "not_zero_at_zero": GOOD.replace("momentum.sign()", "momentum.sign() + 1"),
    "absolute_floor": GOOD.replace("momentum.sign()", "momentum / (momentum.abs() + 1e-3)"),
    "looks_at_neighbours": GOOD.replace("momentum.sign()", "momentum / momentum.abs().amax().clamp(min=1e-30)"),
}


def conformance(tmp_path: Path, source: str) -> subprocess.CompletedProcess[str]:
    """The suite in a process of its own, on a copy of the package with one more file among the rules."""
    package = tmp_path / "orthoopt"
    shutil.copytree(Path(orthoopt.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(Path(orthoopt.kernels.__file__).parent, package / "kernels", dirs_exist_ok=True)
    (package / "rules" / "scratch.py").write_text(source)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(TESTS)]),
        "HYPOTHESIS_PROFILE": "quick",
    }
    command = [sys.executable, "-m", "pytest", "-v", "-x", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]
    return subprocess.run(
        [*command, "-k", "scratch_sign", str(TESTS / "test_rules.py")],
        capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=250,
    )  # fmt: skip


def test_a_file_dropped_into_the_folder_is_held_to_every_promise(tmp_path: Path) -> None:
    done = conformance(tmp_path, GOOD)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    # All but the tests of what it does not promise: invariance to shifts.
    assert done.stdout.count("[scratch_sign] PASSED") >= 12


# Each is a process that imports torch and collects the suite: two are enough to see that it can fail.
QUICK = ("writes_its_input", "claims_rotations")


@pytest.mark.parametrize(
    "mistake", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in BAD]
)
def test_a_file_that_breaks_a_promise_fails(mistake: str, tmp_path: Path) -> None:
    done = conformance(tmp_path, BAD[mistake])
    assert done.returncode == 1 and "scratch_sign" in done.stdout, done.stdout[-3000:]
