"""Orthogonalizing and symmetry-compatible optimizers for PyTorch.

``orthoopt.Symmetry(model, lr=3e-4, weight_decay=0.1)`` stands where ``torch.optim.AdamW(...)`` stood;
``print(orthoopt.explain(model))`` shows which parameter gets which rule, and why.
"""

from orthoopt import hf, plans, rules
from orthoopt.diagnostics import recording
from orthoopt.dispatch import param_groups
from orthoopt.explain import explain
from orthoopt.named import (
    SSD,
    AuON,
    DCTAdamW,
    Dion2,
    HybridAuON,
    Muon,
    PolarGrad,
    Root,
    RowNorm,
    Scion,
    Symmetry,
    Trion,
)
from orthoopt.optimizer import OrthoOpt
from orthoopt.plan_files import load_plan
from orthoopt.polar import orthogonalize
from orthoopt.qk_clip import QKClip, max_logits
from orthoopt.roles import roles
from orthoopt.torch_state import load_torch_state, to_torch_state

__version__ = "0.1.0"

__all__ = [
    "SSD",
    "AuON",
    "DCTAdamW",
    "Dion2",
    "HybridAuON",
    "Muon",
    "OrthoOpt",
    "PolarGrad",
    "QKClip",
    "Root",
    "RowNorm",
    "Scion",
    "Symmetry",
    "Trion",
    "explain",
    "hf",
    "load_plan",
    "load_torch_state",
    "max_logits",
    "orthogonalize",
    "param_groups",
    "plans",
    "recording",
    "roles",
    "rules",
    "to_torch_state",
]
