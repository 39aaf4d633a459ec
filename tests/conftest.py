import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from ranks import Ranks

try:
    import hypothesis
except ModuleNotFoundError:  # a GPU machine without it runs test_gpu*.py, which draw nothing
    pass
else:
    # Timings differ on shared machines, so no test has a deadline; failures print what reproduces them. Draws are the
    # same at every run, so that a test fails for what was changed; `make explore` draws others.
    hypothesis.settings.register_profile("default", deadline=None, derandomize=True, max_examples=20)
    hypothesis.settings.register_profile("explore", deadline=None, print_blob=True, max_examples=40)
    hypothesis.settings.register_profile("thorough", deadline=None, print_blob=True, max_examples=1000)
    # For suites that run within a test: a mistake shows as well without being made small.
    quick = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
    hypothesis.settings.register_profile("quick", deadline=None, derandomize=True, max_examples=15, phases=quick)
    # Triton's interpreter takes thousands of times as long as a kernel: making a mistake small would take minutes.
    hypothesis.settings.register_profile("interpreted", deadline=None, derandomize=True, max_examples=12, phases=quick)
    hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def ranks() -> Iterator["Ranks"]:
    """Processes that make up worlds, see tests/ranks.py."""
    from ranks import started

    with started() as processes:
        yield processes


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write a plan file into the folder that the test runs in; messages then have its bare name."""
    monkeypatch.chdir(tmp_path)

    def write_text(text: str | bytes, name: str = "mine.yaml") -> Path:
        path = Path(name)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write_text
