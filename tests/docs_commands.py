"""Documented commands held against what would run them: real parsers, real targets, real output where it is cheap."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import io
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from docs_blocks import ROOT, WORDS, Command

PLACEHOLDERS = {
    "MODEL": "gpt2", "PLAN": "muon", "NAME": "muon", "BENCH": "step", "COMMAND": "explain", "CONFIG": "default",
    "FILE": "file.html", "PATTERN": "mlp", "ROLE": "attention", "ROWS": "64", "COLS": "128", "N": "2",
}  # fmt: skip
"""What stands for a word in capitals."""
ELSEWHERE = {
    "git", "cd", "cp", "rm", "export", "mkdir", "ls", "cat", "echo", "wait", "wandb", "tensorboard", "source", "open",
    "nvidia-smi", "for", "done", "if", "fi",
}  # fmt: skip
"""Commands that are not ours to check."""
BEFORE = {"do", "then", "srun", "nohup", "time", "exec", "env"}
"""What stands before a command, with options of its own."""
SCRIPTS = {"train.py", "my_job.sh"}
"""The reader's own."""
LAUNCH = {file.name for file in (ROOT / "recipes" / "launch").iterdir()}
"""What `orthoopt launch` gives the reader."""
_CHAINS = {"&&", "||", ";", "|", "&"}


class Parsed(BaseException):
    """A command's arguments were accepted; what it would do with them is not done."""

    def __init__(self, rest: list[str]) -> None:
        self.rest = rest


@contextlib.contextmanager
def stopping_after_parsing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Within it a parser that has read its arguments ends the command with `Parsed`."""
    parse, depth = argparse.ArgumentParser.parse_known_args, 0

    def parse_known_args(self: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> Any:
        nonlocal depth
        depth += 1  # subcommands have parsers within parsers
        try:
            result = parse(self, *args, **kwargs)
        finally:
            depth -= 1
        if depth == 0:
            raise Parsed(list(result[1] or ()))
        return result

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_known_args", parse_known_args)
        yield


def check(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise AssertionError, with the command, for what would not work; run in a folder that may be written to."""
    try:
        for words in _simple_commands(command.text):
            _check_words(words, command, monkeypatch)
    except (AssertionError, SystemExit, Exception) as error:
        raise AssertionError(f"{command.place}: `{command.text}`: {error or type(error).__name__}") from error


def _simple_commands(text: str) -> list[list[str]]:
    """The words of each command of a line; what follows two blanks is a description, as is what follows a #."""
    text = re.split(r"\s{2,}", text.strip())[0]
    if loop := re.match(r"for (\w+) in ([^\s;]+)", text):
        text = text.replace(f"${loop[1]}", loop[2])
    lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    found: list[list[str]] = [[]]
    for word in lexer:
        if word in _CHAINS:
            found.append([])
        else:
            found[-1].append(PLACEHOLDERS.get(word, word))
    return [words for words in found if words]


def _check_words(words: list[str], command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [word for word in words if word != "..."]
    while words and re.fullmatch(r"[A-Z_][A-Z0-9_]*=.*", words[0]):
        words = words[1:]
    if not words or words[0] in ELSEWHERE:
        return
    if words[0] in BEFORE:
        rest = [number for number, word in enumerate(words) if number and word in WORDS]
        words = words[rest[0] :] if rest else ["done"]
    name, arguments = words[0], words[1:]
    if name in ELSEWHERE:
        return
    checks: dict[str, Callable[[], None]] = {
        "orthoopt": lambda: _orthoopt(arguments, command, monkeypatch),
        "make": lambda: _make(arguments),
        "pip": lambda: _pip(arguments),
        "python": lambda: _python(arguments, command, monkeypatch),
        "python3": lambda: _python(arguments, command, monkeypatch),
        "torchrun": lambda: _torchrun(arguments, command, monkeypatch),
        "accelerate": lambda: _accelerate(arguments, command, monkeypatch),
        "sbatch": lambda: _is_ours(next(word for word in arguments if not word.startswith("-"))),
        "bash": lambda: _is_ours(arguments[0]),
        "pytest": lambda: _pytest(arguments),
        "mkdocs": lambda: _mkdocs(arguments),
    }
    assert name in checks, f"nothing here knows the command {name!r}"
    checks[name]()


def _orthoopt(arguments: list[str], command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from orthoopt.cli import main

    arguments = _without_synopsis(arguments)
    if ">" in arguments:
        arguments, target = arguments[: arguments.index(">")], arguments[arguments.index(">") + 1]
        Path(target).write_text(_run(main, arguments), encoding="utf-8")
        return
    if command.inline and len(arguments) == 1 + (arguments[0] == "bench"):
        arguments = [*arguments, "--help"]  # it is only named
    _provide_files(arguments)
    if command.output is not None:
        assert_shows(command.output, _run(main, arguments), command.shortened)
    elif not arguments or arguments[0] in ("plan", "--help", "--version") or arguments == ["bench"]:
        _run(main, arguments)
    elif arguments[0] == "pretrain" and not {"-h", "--help"} & set(arguments):
        from orthoopt.recipes.arguments import parse

        parse(arguments[1:])
    else:
        _parse(main, arguments, monkeypatch)


def _without_synopsis(arguments: list[str]) -> list[str]:
    """Arguments without what a synopsis leaves open: ``[CONFIG]``, ``[--key value]``, ``--key value``."""
    text = re.sub(r"\x00\[[^\]]*\]|\x00--key\x00value", "", "".join(f"\x00{word}" for word in arguments))
    return text.split("\x00")[1:]


def _provide_files(arguments: list[str]) -> None:
    """Files that the reader is assumed to have: a plan after --plan or plan, an optimizer's module, else a config."""
    for before, word in zip(["", *arguments], arguments, strict=False):
        if before == "--optimizer" and "." not in word:
            module, _, function = word.partition(":")
            Path(f"{module}.py").write_text(f"def {function}(model, **options): ...\n", encoding="utf-8")
        for name in word.split(","):
            if name.endswith((".yaml", ".yml")) and not Path(name).exists():
                Path(name).parent.mkdir(parents=True, exist_ok=True)
                is_plan = before in ("--plan", "--plans", "plan", "--compare")
                Path(name).write_text("base: symmetry\n" if is_plan else "learning_rate: 1.0e-3\n", encoding="utf-8")


def _run(main: Callable[[list[str]], int], arguments: list[str]) -> str:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(arguments)
    assert status == (0 if arguments and arguments != ["bench"] else 2), err.getvalue()
    return out.getvalue()


def _parse(main: Callable[[list[str]], int], arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the command's own parser read its arguments, and no more."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            with stopping_after_parsing(monkeypatch):
                status = main(arguments)
        except Parsed as parsed:
            rest = parsed.rest
        except SystemExit as done:  # --help
            status, rest = done.code or 0, []
            assert status == 0, out.getvalue()
        else:
            assert status == 0, out.getvalue()
            rest = []
    if rest and (arguments[:2] == ["bench", "pretrain"] or arguments[0] == "tokenize"):
        from orthoopt.recipes.arguments import parse

        parse([*rest, "--learning_rate", "1e-3"])  # what these commands do not have is the recipe's
    else:
        assert not rest, f"unknown arguments {rest}"


def _python(arguments: list[str], command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = arguments[next(i for i, word in enumerate(arguments) if word == "-m" or not word.startswith("-")) :]
    if arguments[0] == "-m":
        _module(arguments[1], arguments[2:], command, monkeypatch)
    elif arguments[0] not in SCRIPTS:
        _is_ours(arguments[0])


def _module(name: str, arguments: list[str], command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    assert importlib.util.find_spec(name) is not None, f"no module {name}"
    if name == "orthoopt.recipes.pretrain":
        _orthoopt(["pretrain", *arguments], command, monkeypatch)
    elif name.startswith("orthoopt."):
        _provide_files(arguments)
        _parse(importlib.import_module(name).main, arguments, monkeypatch)


def _script(script: str, is_module: bool, arguments: list[str], command: Command, patch: pytest.MonkeyPatch) -> None:
    if is_module:
        _module(script, arguments, command, patch)
    elif script not in SCRIPTS:
        _is_ours(script)


def _torchrun(arguments: list[str], command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed.run import get_args_parser

    options = get_args_parser().parse_args(arguments)
    _script(options.training_script, options.module, options.training_script_args, command, monkeypatch)


def _accelerate(arguments: list[str], command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    if arguments[:1] != ["launch"]:
        assert arguments[:1] in (["config"], ["test"], ["env"]), arguments
        return
    if len(arguments) == 1:
        return
    from accelerate.commands.launch import launch_command_parser

    options = launch_command_parser().parse_args(arguments[1:])
    if options.config_file is not None:
        _is_ours(options.config_file)
    _script(options.training_script, options.module, options.training_script_args, command, monkeypatch)


def _make(arguments: list[str]) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    missing = [word for word in arguments if "=" not in word and word not in targets]
    assert not missing, f"the Makefile has no {missing}"


def _pip(arguments: list[str]) -> None:
    assert arguments[0] == "install", arguments
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for word in arguments[1:]:
        asked = re.fullmatch(r"(?:orthoopt|\.)\[([\w,-]+)\]", word)
        assert asked is None or set(asked[1].split(",")) <= extras.keys(), f"no such extra: {word}"


def _pytest(arguments: list[str]) -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]["ini_options"]
    markers = {line.partition(":")[0] for line in settings["markers"]}
    for before, word in zip(arguments, arguments[1:], strict=False):
        assert before != "-m" or set(re.findall(r"\w+", word)) - {"not", "and", "or"} <= markers, word
    for word in arguments:
        if word.endswith(".py") or "/" in word:
            _is_ours(word.partition("::")[0])


def _mkdocs(arguments: list[str]) -> None:
    from mkdocs.__main__ import cli

    known = cli.commands[arguments[0]]
    known.make_context(arguments[0], list(arguments[1:]), resilient_parsing=False).close()


def _is_ours(path: str) -> None:
    assert path in LAUNCH | SCRIPTS or (ROOT / path).exists(), f"no file {path}"


def assert_shows(shown: str, printed: str, shortened: bool) -> None:
    """The page's lines are those printed, in their order; a shortened page leaves lines out and wraps others."""
    if not shortened:
        given, real = ([line.rstrip() for line in text.strip("\n").splitlines()] for text in (shown, printed))
        assert given == real, "\n".join(["prints something else:", *real])
        return
    printed, position = " ".join(printed.split()), 0
    for line in shown.splitlines():
        words = " ".join(line.split())
        if words != "...":
            found = printed.find(words, position)
            assert found >= 0, f"does not print {line!r} there"
            position = found + len(words)
