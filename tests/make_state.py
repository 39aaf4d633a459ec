"""Write ``tests/data/state_N``, N the state format of this version: ``python tests/make_state.py``.

A file is written once for a format and never again: that old ones load is what tests/test_checkpoint_format.py shows.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from orthoopt import OrthoOpt, state_files
from orthoopt.state_format import STATE_FORMAT

DATA = Path(__file__).parent / "data"
GROUPS: dict[str, dict[str, Any]] = {
    "adamw": {"rule": "adamw", "betas": (0.8, 0.9)},
    "muon": {"rule": "spectral", "second_moment": "rows", "weight_decay_mode": "cautious"},
    "root": {"rule": "root"},
    "trion": {"rule": "trion", "rank": 2},
    "dct": {"rule": "dct_adamw", "rank": 2, "error_feedback": True, "view": "split(4,2)"},
    "scion": {"rule": "scion_vector"},
}
SHAPES = {"wide": (6, 8), "tall": (6, 3)}
BEFORE, AFTER = 3, 2


def parameters() -> dict[str, nn.Parameter]:
    source = torch.Generator().manual_seed(0)
    return {
        f"{group}.{name}": nn.Parameter(torch.randn(shape, generator=source))
        for group in GROUPS
        for name, shape in SHAPES.items()
    }


def optimizer_of(params: dict[str, nn.Parameter], **options: Any) -> OrthoOpt:
    groups = [
        {**group, "params": [(name, param) for name, param in params.items() if name.startswith(f"{key}.")]}
        for key, group in GROUPS.items()
    ]
    return OrthoOpt(groups, **{"lr": 0.01, **options})


def steps(optimizer: OrthoOpt, params: dict[str, nn.Parameter], first: int, last: int) -> None:
    for step in range(first, last):
        source = torch.Generator().manual_seed(100 + step)
        for param in params.values():
            param.grad = torch.randn(param.shape, generator=source).to(param.dtype)
        optimizer.step()


def main() -> None:
    path = DATA / f"state_{STATE_FORMAT}.pt"
    if path.exists():
        raise SystemExit(f"{path} is there; a new form of state needs a new STATE_FORMAT")
    params = parameters()
    optimizer = optimizer_of(params)
    steps(optimizer, params, 0, BEFORE)
    before = {name: param.detach().clone() for name, param in params.items()}
    state_dict = copy.deepcopy(optimizer.state_dict())
    state_files.save_state(optimizer, path.with_suffix(".safetensors"))
    steps(optimizer, params, BEFORE, BEFORE + AFTER)
    after = {name: param.detach().clone() for name, param in params.items()}
    torch.save({"params": before, "optimizer": state_dict, "later": after}, path)


if __name__ == "__main__":
    main()
