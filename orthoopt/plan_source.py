"""The text of a plan file, and what YAML or TOML make of it."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from orthoopt import plans
from orthoopt.spelling import near

SUFFIXES = (".yaml", ".yml", ".toml")


def read(name: str) -> str:
    """The text of a plan file.

    Raises:
        ValueError: it is not UTF-8.
        OSError: it cannot be read; where it is not there, with the nearest name that is.
    """
    path = Path(name)
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        try:
            beside = [file.name for file in path.parent.iterdir() if file.name.lower().endswith(SUFFIXES)]
        except OSError:
            raise FileNotFoundError(f"no plan file {name}: there is no folder {path.parent}") from None
        hint = near(path.name, beside)
        if path.stem in plans.PLANS:
            hint = f"; the ready plan is {path.stem!r}, without {path.suffix}"
        raise FileNotFoundError(f"no plan file {name}{hint}") from None
    except UnicodeDecodeError as error:
        raise ValueError(
            f"plan file {name} is not UTF-8 text: byte 0x{error.object[error.start]:02x} at position {error.start}"
        ) from None
    except OSError as error:
        raise type(error)(f"plan file {name} cannot be read: {error.strerror}") from error


def parse(text: str, suffix: str, name: str) -> Any:
    """What the text says: mappings, lists, strings, numbers, truth values.

    Raises:
        ValueError: it is not the language that the suffix names.
        ModuleNotFoundError: YAML without PyYAML.
    """
    kind = "TOML" if suffix == ".toml" else "YAML"
    try:
        if kind == "TOML":
            return tomllib.loads(text)
        from orthoopt import plan_yaml

        return plan_yaml.loads(text)
    except ModuleNotFoundError as error:
        if error.name != "yaml":
            raise
        raise ModuleNotFoundError(
            f"plan file {name}: YAML needs PyYAML; pip install pyyaml, or write the plan as TOML", name="yaml"
        ) from None
    except ValueError as error:
        raise ValueError(f"plan file {name} is not {kind}: {error}") from None
    except RecursionError:
        raise ValueError(f"plan file {name} is nested too deeply") from None
