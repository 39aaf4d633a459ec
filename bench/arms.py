"""The arms of a comparison: a plan or a peer, or one with other options or learning rates of its parts."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from orthoopt import plan_files, plans
from orthoopt.bench import peer_optimizers

_MULTIPLIER = re.compile(r"(embedding|matrices)_x(\d+(?:\.\d+)?)")
_OPTION = re.compile(r"(\w+)=([\w.+-]+)")
_PATTERNS = {"embedding": r"embed_tokens|word_embeddings|\bwte\b", "matrices": r"_proj\.weight$"}
"""Names of the parameters that a multiplier is for, in the recipe's models."""

_PEER_MULTIPLIER = "embedding_lr_multiplier"


@dataclass(frozen=True)
class Arm:
    """One side of a comparison."""

    name: str
    plan: str
    """A ready plan's name, or a plan file's path; of a peer, the plan of ours that is like it."""
    multipliers: dict[str, float] = field(default_factory=dict, hash=False)
    """Of the learning rate of the embedding, or of attention's and the mlps' matrices."""
    options: dict[str, Any] = field(default_factory=dict, hash=False)
    """Given to every entry of the plan whose rule has them."""
    plan_file: dict[str, Any] | None = field(default=None, hash=False)
    """What the plan file said when the bench began, as :func:`read_plan_file` has it."""
    peer: str | None = None
    """The name in :data:`orthoopt.bench.peer_optimizers.PEERS`, if it is not a plan."""

    @property
    def overrides(self) -> dict[str, dict[str, Any]]:
        """What the recipe is told beyond the plan."""
        return {_PATTERNS[part]: {"lr_multiplier": multiplier} for part, multiplier in self.multipliers.items()}

    def flags(self) -> list[str]:
        """The recipe's options."""
        if self.peer is not None:
            options = dict(self.options)
            if self.multipliers:
                options[_PEER_MULTIPLIER] = self.multipliers["embedding"]
            function = f"{peer_optimizers.__name__}:{peer_optimizers.PEERS[self.peer].function}"
            return ["--optimizer", function] + (["--optimizer_options", json.dumps(options)] if options else [])
        flags = ["--plan", self.plan]
        flags += ["--overrides", json.dumps(self.overrides)] if self.overrides else []
        return flags + (["--plan_options", json.dumps(self.options)] if self.options else [])


def parse_arms(text: str) -> list[Arm]:
    """Arms, comma separated, each once; ``all`` stands for every plan.

    Raises:
        ValueError: as :func:`parse_arm`.
    """
    specs: list[str] = []
    for spec in text.split(","):
        specs += plans.names() if spec == "all" else [spec]
    return [parse_arm(spec) for spec in dict.fromkeys(specs)]


def parse_arm(spec: str) -> Arm:
    """``PLAN``, a name, a plan file or a peer, and ``+embedding_x10``, ``+matrices_x10``, ``+option=value`` behind.

    Raises:
        ValueError: it is not of that form, or names an unknown plan or option; with the known ones.
    """
    plan, *more = spec.split("+")
    multipliers, options = _read(spec, more)
    if plan in peer_optimizers.PEERS:
        if "matrices" in multipliers:
            raise ValueError(f"{spec!r}: matrices_x is for plans; a peer has embedding_x alone")
        return Arm(spec, peer_optimizers.PEERS[plan].like, multipliers, options, peer=plan)
    if "." in plan and not plan_files.is_file(plan):
        raise ValueError(f"{spec!r}: {plan!r} is no plan file and not one of {list(peer_optimizers.PEERS)}")
    try:
        plan_files.resolve(plan, options)
        return Arm(spec, plan, multipliers, options, read_plan_file(plan))
    except (TypeError, ValueError, OSError) as error:
        raise ValueError(f"{spec!r}: {error}") from error


def read_plan_file(plan: str) -> dict[str, Any] | None:
    """What a plan file says, as JSON has it: its base, roles and patterns; None for a ready plan's name.

    Raises:
        TypeError, ValueError, OSError: as ``orthoopt.load_plan``.
    """
    if not plan_files.is_file(plan):
        return None
    read = plan_files.load_plan(plan)
    return json.loads(json.dumps({"base": read.base, "roles": read.plan, "patterns": read.overrides}))


def _read(spec: str, words: Sequence[str]) -> tuple[dict[str, float], dict[str, Any]]:
    multipliers: dict[str, float] = {}
    options: dict[str, Any] = {}
    for word in words:
        if match := _MULTIPLIER.fullmatch(word):
            multipliers[match[1]] = float(match[2])
        elif match := _OPTION.fullmatch(word):
            options[match[1]] = _value(match[2])
        else:
            raise ValueError(
                f"{spec!r} must be PLAN, PLAN+embedding_xNUMBER or PLAN+option=value, such as adamw+embedding_x10; "
                f"{word!r} is neither"
            )
    return multipliers, options


def _value(text: str) -> Any:
    """A number or a truth value where it reads as one, else the text."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
