from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import pytest

from orthoopt.recipes import pretrain

# A model small enough for two seconds a run.
TINY_MODEL = (
    "hidden_size=32,intermediate_size=64,num_hidden_layers=2,num_attention_heads=2,num_key_value_heads=1,head_dim=16"
)
_WORDS = [
    "alpha",
    "beta",
    "gamma",
    "delta",
    "return",
    "value",
    "index",
    "=",
    "(",
    ")",
    ":",
    "+",
    "naïve",
    "東京",
    "self",
    "import",
    "from",
    "def",
    "class",
    "if",
    "else",
]


@dataclass(frozen=True)
class Sandbox:
    """A folder of small text files, a cache, and the flags of a tiny run on them."""

    corpus: Path
    cache: Path

    def flags(self, output: Path, *extra: str) -> list[str]:
        flags = f"""
            --data text:{self.corpus} --cache_dir {self.cache} --output_dir {output}
            --vocab_size 300 --block_size 32 --eval_blocks 24 --validation_fraction 0.2
            --model_overrides {TINY_MODEL} --per_device_train_batch_size 8 --max_steps 12
            --logging_steps 2 --eval_steps 4 --save_steps 4 --warmup_steps 2
        """
        return [*flags.split(), *extra]


@pytest.fixture(scope="session")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    root = tmp_path_factory.mktemp("sandbox")
    generator = random.Random(0)
    for number in range(24):
        folder = root / "corpus" / ("a" if number % 2 else "b")
        folder.mkdir(parents=True, exist_ok=True)
        lines = [" ".join(generator.choices(_WORDS, k=8)) for _ in range(40)]
        (folder / f"file{number:02}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Sandbox(root / "corpus", root / "cache")


@dataclass(frozen=True)
class FinishedRun:
    """A run that reached its end: its folder, what it printed, its flags."""

    output: Path
    printed: str
    flags: list[str]


@pytest.fixture(scope="session")
def finished(sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    import contextlib
    import io

    output = tmp_path_factory.mktemp("finished") / "run"
    flags = sandbox.flags(output)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        assert pretrain.main([*flags, "--sample_steps", "6"]) == 0, printed.getvalue()
    return FinishedRun(output, printed.getvalue(), flags)
