"""Runs in processes of their own: killed and resumed, two ranks, wandb, and without `datasets`."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from orthoopt.recipes.pretrain import main

# A small model on the whole standard library: under a minute a run on one core.
STDLIB = shlex.split("""
    --vocab_size 1024 --block_size 64 --eval_blocks 64 --per_device_train_batch_size 8
    --model_overrides hidden_size=64,intermediate_size=128,num_hidden_layers=2
    --max_steps 60 --logging_steps 5 --eval_steps 20 --save_steps 20
""")


def command(*flags: str) -> list[str]:
    return [sys.executable, "-P", "-m", "orthoopt.recipes.pretrain", *flags]


def environment(**extra: str) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | extra


def run(*flags: str, **extra: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command(*flags), env=environment(**extra), capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def result_of(output: Path) -> dict:
    return json.loads((output / "results.json").read_text())


def steps_of(output: Path) -> list[tuple[int, bool]]:
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], "eval_loss" in row) for row in rows]


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_validation_loss(tmp_path) -> None:
    common = (*STDLIB, "--cache_dir", str(tmp_path / "cache"))
    run(*common, "--output_dir", str(tmp_path / "straight"))
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        command(*common, "--output_dir", str(killed)), env=environment(), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:  # past the checkpoint of step 20, before that of step 40
        if line.startswith("step 30 "):
            process.send_signal(signal.SIGKILL)
            break
    assert process.wait(timeout=60) == -signal.SIGKILL
    process.stdout.close()
    assert not (killed / "results.json").exists()
    done = run(*common, "--output_dir", str(killed), "--resume_from_checkpoint", "auto")
    assert "after step 20" in done.stdout
    straight, resumed = result_of(tmp_path / "straight"), result_of(killed)
    assert resumed["eval_loss"] == pytest.approx(straight["eval_loss"], abs=1e-6)
    assert steps_of(killed) == steps_of(tmp_path / "straight")
    assert resumed["tokens"] == straight["tokens"]


@pytest.mark.slow
def test_the_builtin_corpus_trains_without_datasets_and_wandb(tmp_path) -> None:
    """Modules that cannot be found or imported stand for an installation without them."""
    code = (
        "import importlib.util, sys\n"
        "absent = lambda name: name.partition('.')[0] in ('datasets', 'wandb', 'matplotlib')\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if absent(name):\n"
        "            raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if absent(name) else find(name, *rest)\n"
        "from orthoopt.recipes.pretrain import main\n"
        "raise SystemExit(main(sys.argv[1:]))\n"
    )
    flags = (
        *STDLIB,
        "--max_steps",
        "4",
        "--cache_dir",
        str(tmp_path / "cache"),
        "--output_dir",
        str(tmp_path / "o"),
    )
    done = subprocess.run([sys.executable, "-P", "-c", code, *flags], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "matplotlib is not installed" in done.stdout
    assert result_of(tmp_path / "o")["corpus"]["name"] == "builtin:stdlib"


def run_on_two(*flags: str) -> subprocess.CompletedProcess[str]:
    launch = [sys.executable, "-P", *["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]]
    launch += ["-m", "orthoopt.recipes.pretrain", *flags]
    return subprocess.run(
        [*launch, "--ddp_backend", "gloo", "--per_device_train_batch_size", "4"],
        env=environment(PYTHONSAFEPATH="1"),
        capture_output=True,
        text=True,
        timeout=280,
    )


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize("shard", ["false", "true"], ids=["DDP", "FSDP2"])
def test_two_ranks_train_as_one_with_twice_the_batch(shard: str, sandbox, finished, tmp_path) -> None:
    extra = ["--generate_sample", "false", "--shard", shard, "--cache_dir", str(tmp_path / "cache")]
    done = run_on_two(*sandbox.flags(tmp_path / "two", *extra))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("validation  ") == 1  # the first rank alone speaks
    assert "find_unused_parameters" not in done.stderr
    one, two = result_of(finished.output), result_of(tmp_path / "two")
    assert two["world_size"] == 2 and two["tokens"] == one["tokens"]
    # The same blocks in the same steps; fp32 gradients summed in another order, through 12 steps.
    assert two["eval_loss"] == pytest.approx(one["eval_loss"], abs=1e-3)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "two" / "model").num_parameters() == one["parameters"]


@pytest.mark.slow
@pytest.mark.dist
def test_a_sharded_run_resumes_from_the_checkpoint_of_every_rank(tmp_path) -> None:
    common = (*STDLIB, "--max_steps", "20", "--save_steps", "10", "--generate_sample", "false")
    common += ("--shard", "true", "--cache_dir", str(tmp_path / "cache"))
    assert run_on_two(*common, "--output_dir", str(tmp_path / "run")).returncode == 0
    straight = result_of(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint-20")
    done = run_on_two(*common, "--output_dir", str(tmp_path / "run"), "--resume_from_checkpoint", "auto")
    assert done.returncode == 0 and "after step 10" in done.stdout, done.stdout + done.stderr
    assert result_of(tmp_path / "run")["eval_loss"] == pytest.approx(straight["eval_loss"], abs=1e-6)


@pytest.mark.slow  # four times two processes
@pytest.mark.dist
@pytest.mark.parametrize("files", [1, 3])
def test_a_stream_on_two_ranks_resumes_at_the_place_of_each(files: int, sandbox, tmp_path) -> None:
    """Shards of their own where there are enough, else every second document: no document twice in an epoch."""
    (tmp_path / "rows").mkdir()
    texts = [path.read_text()[:300] for path in sorted(sandbox.corpus.rglob("*.txt"))] * 8
    for number in range(files):
        rows = (json.dumps({"text": f"{number} {i} {text}"}) + "\n" for i, text in enumerate(texts))
        (tmp_path / "rows" / f"{number}.jsonl").write_text("".join(rows))
    common = ["--data", str(tmp_path / "rows"), "--streaming", "true", "--shuffle_window", "20", "--logging_steps", "1"]
    common += ["--generate_sample", "false", "--save_total_limit", "30", "--save_steps", "3", "--max_steps", "7"]
    flags = sandbox.flags(tmp_path / "straight", *common)
    done = run_on_two(*flags)
    assert done.returncode == 0, done.stdout + done.stderr
    checkpoint = tmp_path / "straight" / "checkpoint-3"
    places = [json.loads((checkpoint / f"data-{rank}.json").read_text())["stream"] for rank in range(2)]
    assert [place["process"] for place in places] == [0, 1]
    again = [*flags, "--output_dir", str(tmp_path / "again"), "--resume_from_checkpoint", str(checkpoint)]
    done = run_on_two(*again)
    assert done.returncode == 0, done.stdout + done.stderr
    rows_of = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("straight", "again")
    ]
    losses = [{row["step"]: row["loss"] for row in rows if "loss" in row} for rows in rows_of]
    assert losses[0].keys() == losses[1].keys() == set(range(1, 8))
    assert all(losses[1][step] == pytest.approx(losses[0][step], abs=1e-6) for step in losses[0])
    assert result_of(tmp_path / "again")["tokens"] == result_of(tmp_path / "straight")["tokens"] == 7 * 8 * 32
    alone = subprocess.run(command(*again), env=environment(), capture_output=True, text=True, timeout=280)
    assert alone.returncode == 2 and "processes 2, this run has 1" in alone.stderr and alone.stderr.count("\n") == 1


def test_sharding_needs_processes_and_fsdp_an_accelerator(sandbox, tmp_path, capsys) -> None:
    assert main(sandbox.flags(tmp_path / "one", "--shard", "true")) == 2
    assert "--shard needs several processes: torchrun" in capsys.readouterr().err
    if not torch.accelerator.is_available():
        assert main(sandbox.flags(tmp_path / "two", "--fsdp")) == 2
        assert "--shard true works on CPUs too" in capsys.readouterr().err


@pytest.mark.slow
def test_wandb_offline_gets_the_roles(sandbox, tmp_path) -> None:
    flags = sandbox.flags(tmp_path / "run", "--report_to", "wandb", "--generate_sample", "false")
    run(*flags, WANDB_MODE="offline", WANDB_DIR=str(tmp_path))
    (log,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    written = log.read_bytes()
    for key in (b"lr/attention", b"update_norm/embedding", b"bits_per_byte"):
        assert key in written
