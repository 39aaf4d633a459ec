"""Every block and command of the documents does what the page says."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import models
import pytest
import yaml
from docs_blocks import PAGES, PLAIN, SHELL, Block, Command, blocks, commands, name_of
from docs_commands import assert_shows, check

import orthoopt

PLAN_KEYS = {"base", "options", "roles", "patterns"}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands may write files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


def check_plan(block: Block, suffix: str) -> None:
    """The plan file loads, and does for a model what it says: a pattern that matches nothing would raise."""
    path = Path(f"plan{suffix}")
    path.write_text(block.text, encoding="utf-8")
    orthoopt.param_groups(models.qwen3(), path, lr=1e-3)


def check_yaml(block: Block) -> None:
    content = yaml.safe_load(block.text)
    if not isinstance(content, dict):
        raise AssertionError(f"{block.place}: no mapping")
    if content.keys() <= PLAN_KEYS:
        check_plan(block, ".yaml")
    elif "distributed_type" in content:
        from accelerate.commands.config.config_args import load_config_from_file

        Path("accelerate.yaml").write_text(block.text, encoding="utf-8")
        load_config_from_file("accelerate.yaml")
    else:
        from orthoopt.recipes.arguments import parse

        Path("run.yaml").write_text(block.text, encoding="utf-8")
        # A part of a config may leave the rate to the rest.
        parse(["run.yaml", *([] if "learning_rate" in content else ["--learning_rate", "1e-3"])])


def check_toml(block: Block) -> None:
    if tomllib.loads(block.text).keys() <= PLAN_KEYS:
        check_plan(block, ".toml")


CHECKS = {
    "python": lambda block: compile(block.text, block.place, "exec"),  # test_docs.py runs it
    "yaml": check_yaml,
    "toml": check_toml,
    "json": lambda block: json.loads(block.text),
    **dict.fromkeys((*SHELL, *PLAIN), lambda block: None),  # their commands are checked one by one
}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_of_a_page_is_what_its_language_says(page: Path) -> None:
    for block in blocks(page):
        assert block.language in CHECKS, f"{block.place}: nothing checks blocks of {block.language!r}"
        CHECKS[block.language](block)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_of_a_page_would_work(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, command in enumerate(commands(page)):
        if command.inline:
            Path(str(number)).mkdir()
            with monkeypatch.context() as patch:
                patch.chdir(str(number))
                check(command, monkeypatch)
        else:
            check(command, monkeypatch)


@pytest.mark.parametrize(
    "text",
    [
        "orthoopt pretrian",
        "orthoopt pretrain no_such_config",
        "orthoopt pretrain --no_such_option 1",
        "orthoopt explain gpt2 --no-such-option",
        "orthoopt bench stepp",
        "orthoopt bench step --no-such-option",
        "orthoopt bench pretrain --quick --no_such_option 1",
        "orthoopt plan no_such_plan",
        "torchrun --no_such_option 2 -m orthoopt.recipes.pretrain",
        "torchrun --standalone -m orthoopt.recipes.pretrain --no_such_option 1",
        "python -m orthoopt.no_such_module",
        "accelerate launch --no_such_option train.py",
        "make no-such-target",
        "pip install '.[no_such_extra]'",
        "pytest -m no_such_marker",
        "sbatch no_such_file.sh",
        "no-such-command",
    ],
)
def test_a_command_that_would_not_work_is_found(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError, match="page:1"):
        check(Command("page:1", text), monkeypatch)


@pytest.mark.parametrize(
    "text",
    [
        "orthoopt pretrain [CONFIG] [--key value ...]",
        "OMP_NUM_THREADS=1 orthoopt plan symmetry > mine.yaml && orthoopt plan mine.yaml",
        "for plan in adamw muon; do orthoopt pretrain --plan $plan; done",
        "srun --ntasks 2 torchrun --nproc_per_node 2 -m orthoopt.recipes.pretrain --plan muon",
        "accelerate launch --num_processes 2 train.py",
        "orthoopt plan MODEL.yaml   # a file of the reader's",
    ],
)
def test_a_command_that_works_is_let_pass(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check(Command("page:1", text), monkeypatch)


def test_output_that_is_not_printed_is_found() -> None:
    assert_shows("a  b\n...\nd", "a b\nc\nd\n", shortened=True)
    for shown, shortened in (("a b", False), ("b\na", True), ("a\n...\ne", True)):
        with pytest.raises(AssertionError):
            assert_shows(shown, "a\nb\nc\nd\n", shortened)


def test_the_pages_have_commands_of_every_kind() -> None:
    """So that a change of the documents' form does not leave the tests above with nothing to do."""
    found = [command for page in PAGES for command in commands(page)]
    assert {"orthoopt", "torchrun", "make", "pip"} <= {command.text.split()[0] for command in found}
    assert sum(command.output is not None for command in found) >= 3
