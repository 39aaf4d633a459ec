"""The launchers are executed, with two processes each; what starts them on a cluster is stood in for."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from orthoopt.recipes.launch import files, main

BASH = shutil.which("bash")
pytestmark = pytest.mark.skipif(BASH is None, reason="the launchers are bash scripts")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The launchers, copied out as a user does."""
    path = tmp_path_factory.mktemp("launch")
    for name in files():
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            assert main([name]) == 0
        (path / name).write_text(printed.getvalue())
    return path


def environment(**extra: str) -> dict[str, str]:
    """Two processes on this machine's CPU, with this Python's programs first on the path."""
    place = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return os.environ | {"PATH": place, "OMP_NUM_THREADS": "1", "PROCESSES": "2"} | extra


def short(sandbox, output: Path, *extra: str) -> list[str]:
    return sandbox.flags(output, "--generate_sample", "false", "--max_steps", "8", "--ddp_backend", "gloo", *extra)


def check(output: Path, done: subprocess.CompletedProcess[str], world_size: int = 2) -> None:
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((output / "results.json").read_text())
    assert result["world_size"] == world_size and result["steps"] == 8
    assert done.stdout.count("validation  ") == 1  # the first process alone speaks


def free_port() -> int:
    """One of those among which slurm.sh chooses."""
    for port in random.sample(range(20000, 40000), 100):
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("localhost", port))
            return port
    raise AssertionError("no port is free")


def test_the_launchers_are_listed_and_printed(capsys) -> None:
    assert main([]) == 0
    listed = capsys.readouterr().out
    assert all(f"  {name} " in listed for name in files()) and {"slurm.sh", "torchrun.sh"} <= files().keys()
    assert main(["slurm"]) == 2
    assert "did you mean 'slurm.sh'" in capsys.readouterr().err


def test_the_scripts_are_bash_and_say_what_they_lack(folder) -> None:
    assert BASH is not None
    for script in folder.glob("*.sh"):
        assert subprocess.run([BASH, "-n", str(script)]).returncode == 0, script.name
    done = subprocess.run([BASH, str(folder / "torchrun_nodes.sh")], capture_output=True, text=True)
    assert done.returncode != 0 and "HEAD: is not set: the name of one machine" in done.stderr


def stand_in(path: Path, name: str, text: str) -> None:
    file = path / name
    file.write_text("#!/usr/bin/env bash\n" + text)
    file.chmod(file.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def cluster(tmp_path) -> Path:
    """A folder with `scontrol` and an `srun` that starts its command once for each node, all of them here."""
    path = tmp_path / "bin"
    path.mkdir()
    stand_in(
        path, "scontrol", f'echo "$@" >> {tmp_path}/scontrol.log\n[ "$1" != show ] || printf "localhost\\nother\\n"\n'
    )
    stand_in(
        path,
        "srun",
        f'echo "$@" >> {tmp_path}/srun.log\nshift  # --kill-on-bad-exit\n'
        'for node in $(seq "$SLURM_JOB_NUM_NODES"); do "$@" & all="${all:-} $!"; done\n'
        "trap 'kill -TERM $all' TERM\n"
        "status=0; for one in $all; do wait $one || status=$?; done; exit $status\n",
    )
    return path


def job(cluster: Path, **extra: str) -> dict[str, str]:
    path = os.pathsep.join([str(cluster), environment()["PATH"]])
    given = {"SLURM_JOB_ID": str(free_port() - 20000), "SLURM_JOB_NODELIST": "node[0-1]", "SLURM_JOB_NUM_NODES": "2"}
    return environment(**given | {"PATH": path, "PROCESSES": "1"} | extra)


def test_slurm_ends_the_step_and_queues_the_job_again_before_its_time_is_up(folder, cluster, tmp_path) -> None:
    """With a torchrun that only waits; what it is told is what the recipe would be."""
    stand_in(
        cluster, "torchrun", f"trap 'kill $!; exit 1' TERM\necho \"$@\" >> {tmp_path}/torchrun.log\nsleep 60 & wait\n"
    )
    given = job(cluster, OUTPUT_DIR="/shared/run", SLURM_JOB_ID="77")
    assert BASH is not None
    process = subprocess.Popen(
        [BASH, str(folder / "slurm.sh"), "qwen3-0.6b", "--save_steps", "200"],
        env=given,
        stdout=subprocess.PIPE,
        text=True,
    )
    log = tmp_path / "torchrun.log"
    while process.poll() is None and (not log.exists() or log.read_text().count("\n") < 2):
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0 and "queueing job 77 again" in out
    assert (tmp_path / "scontrol.log").read_text().splitlines() == ["show hostnames node[0-1]", "requeue 77"]
    one, two = log.read_text().splitlines()
    assert one == two
    assert "--nnodes=2" in one and "--rdzv_endpoint=localhost:20077" in one and "--rdzv_id=77" in one
    recipe = "-m orthoopt.recipes.pretrain qwen3-0.6b --save_steps 200"
    assert one.endswith(f"{recipe} --output_dir /shared/run --resume_from_checkpoint auto")


def test_accelerates_config_asks_for_fsdp2(folder) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(folder / "accelerate_fsdp2.yaml"))
    assert str(config.distributed_type).endswith("FSDP") and config.fsdp_config["fsdp_version"] == 2
    assert yaml.safe_load((folder / "accelerate_fsdp2.yaml").read_text())["mixed_precision"] == "bf16"


@pytest.mark.slow  # two processes that import torch and train: half a minute
@pytest.mark.dist
def test_torchrun_on_one_machine(folder, sandbox, tmp_path) -> None:
    command = ["bash", str(folder / "torchrun.sh"), *short(sandbox, tmp_path / "run")]
    check(tmp_path / "run", subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=280))


@pytest.mark.slow  # as above
@pytest.mark.dist
def test_torchrun_fine_tunes_what_it_pretrained(folder, finished, sandbox, tmp_path) -> None:
    given = [str(finished.output), "--data", f"text:{sandbox.corpus}", "--cache_dir", str(sandbox.cache)]
    given += [
        "--block_size",
        "32",
        "--eval_blocks",
        "24",
        "--max_steps",
        "8",
        "--lora_rank",
        "4",
        "--ddp_backend",
        "gloo",
    ]
    given += ["--generate_sample", "false", "--output_dir", str(tmp_path / "run")]
    command = ["bash", str(folder / "torchrun.sh"), *given]
    done = subprocess.run(command, env=environment(RECIPE="finetune"), capture_output=True, text=True, timeout=280)
    check(tmp_path / "run", done)
    assert (tmp_path / "run" / "model" / "adapter_model.safetensors").is_file()


@pytest.mark.slow  # as above
@pytest.mark.dist
def test_torchrun_on_two_machines_that_are_this_one(folder, sandbox, tmp_path) -> None:
    given = environment(HEAD=f"localhost:{free_port()}", NODES="2", PROCESSES="1")
    command = ["bash", str(folder / "torchrun_nodes.sh"), *short(sandbox, tmp_path / "run")]
    nodes = [
        subprocess.Popen(command, env=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in "12"
    ]
    printed = [node.communicate(timeout=280)[0] for node in nodes]
    status = max(node.returncode for node in nodes)
    check(tmp_path / "run", subprocess.CompletedProcess(command, status, "".join(printed), ""))


@pytest.mark.slow  # as above, twice
@pytest.mark.dist
def test_slurm_trains_and_a_requeued_job_goes_on_from_its_checkpoint(folder, cluster, sandbox, tmp_path) -> None:
    output = tmp_path / "run"
    given = job(cluster, OUTPUT_DIR=str(output))
    command = ["bash", str(folder / "slurm.sh"), *short(sandbox, output)]
    first = subprocess.run(command, env=given, capture_output=True, text=True, timeout=280)
    check(output, first)
    assert "starting from the beginning" in first.stdout
    straight = json.loads((output / "results.json").read_text())
    shutil.rmtree(output / "checkpoint-8")  # as if the job had ended before it was written
    second = subprocess.run(command, env=given, capture_output=True, text=True, timeout=280)
    check(output, second)
    assert "after step 4" in second.stdout
    resumed = json.loads((output / "results.json").read_text())
    assert resumed["eval_loss"] == pytest.approx(straight["eval_loss"], abs=1e-6)


@pytest.mark.slow  # as above
@pytest.mark.dist
def test_accelerate_starts_the_recipe_with_the_config_for_fsdp2(folder, sandbox, tmp_path) -> None:
    """On CPUs, where Accelerate has no FSDP, the processes hold the whole model; the launch is the same."""
    given = ["accelerate", "launch", "--config_file", str(folder / "accelerate_fsdp2.yaml"), "--num_processes", "2"]
    given += ["--main_process_port", str(free_port()), "--mixed_precision", "no", "-m", "orthoopt.recipes.pretrain"]
    command = [*given, *short(sandbox, tmp_path / "run")]
    done = subprocess.run(command, env=environment(PYTHONSAFEPATH="1"), capture_output=True, text=True, timeout=280)
    check(tmp_path / "run", done)
