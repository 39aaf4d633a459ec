"""The arms of a comparison: a plan, or a plan with another learning-rate multiplier of its embedding."""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import dataclass
from typing import Any

from orthoopt import plans

_SPEC = re.compile(r"(?P<plan>\w+)(\+embedding_x(?P<multiplier>\d+(\.\d+)?))?")
_EMBEDDING = r"embed_tokens|word_embeddings|\bwte\b"


@dataclass(frozen=True)
class Arm:
    """One side of a comparison."""

    name: str
    plan: str
    embedding_multiplier: float | None = None

    @property
    def overrides(self) -> dict[str, dict[str, Any]]:
        """What the recipe is told beyond the plan."""
        if self.embedding_multiplier is None:
            return {}
        return {_EMBEDDING: {"lr_multiplier": self.embedding_multiplier}}

    def flags(self) -> list[str]:
        """The recipe's options."""
        flags = ["--plan", self.plan]
        return flags + (["--overrides", json.dumps(self.overrides)] if self.overrides else [])


def parse_arm(spec: str) -> Arm:
    """``PLAN`` or ``PLAN+embedding_x10``.

    Raises:
        ValueError: neither, or an unknown plan, with the known ones.
    """
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise ValueError(f"{spec!r} must be PLAN or PLAN+embedding_xNUMBER, such as adamw+embedding_x10")
    plan, multiplier = match["plan"], match["multiplier"]
    if plan not in plans.names():
        near = difflib.get_close_matches(plan, plans.names(), 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown plan {plan!r}{hint} Known plans: {', '.join(plans.names())}")
    return Arm(spec, plan, None if multiplier is None else float(multiplier))
