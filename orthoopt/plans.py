"""Plans: role -> entry, as ``entries.py`` has it; plain data."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, TypeAlias

from orthoopt import rules
from orthoopt.entries import Entry, check_entry, check_role
from orthoopt.roles import ROLES
from orthoopt.spelling import near
from orthoopt.step_options import DEFAULTS

Plan: TypeAlias = dict[str, Entry]

MATRIX_ROLES = ("attention", "mlp_in", "mlp_out", "expert_in", "expert_out", "conv", "hidden")
"""Roles whose gradient is a linear map between two feature spaces: orthogonal on both sides."""

_ADAMW: Entry = {"rule": "adamw"}
# Norms, biases and scalars are not decayed: their scale means something.
_VECTOR: Entry = {"rule": "adamw", "weight_decay": 0.0}
_SPECTRAL: Entry = {"rule": "spectral"}
# Updates as long as the gradient's nuclear norm, below one. The multipliers bring them to the size of AdamW's in
# the default recipe, clipped to a gradient norm of one: a place to search from, for no factor fits every problem. No
# decay, as published: in W ← (1 − lr·λ)W it would grow by the same factor.
_POLARGRAD: Entry = {"rule": "polargrad", "lr_multiplier": 30.0, "weight_decay": 0.0}
_SSD: Entry = {"rule": "ssd", "lr_multiplier": 10.0, "weight_decay": 0.0}
_SCION: Entry = {"rule": "scion", "radius": 50.0, "weight_decay": 1.0}
# From scratch an embedding wants a larger rate than matrices; bench/results/pretrain_cpu.json shows it for AdamW too.
_EMBEDDING_RATE: Entry = {"lr_multiplier": 10.0}
# Neurons are the rows of the way into an mlp and the columns of the way out.
_HYBRID: Entry = {"rule": "hybrid"}
_HYBRID_MLP: Plan = {
    "mlp_in": _HYBRID,
    "expert_in": _HYBRID,
    "mlp_out": _HYBRID | {"axis": "cols"},
    "expert_out": _HYBRID | {"axis": "cols"},
}


def _everywhere(entry: Entry, **exceptions: Entry) -> Plan:
    plan = {role: entry for role in ROLES}
    plan |= {"vector": _VECTOR, "unknown": _ADAMW}
    return plan | exceptions


def _on_linear_maps(entry: Entry) -> Plan:
    """The entry on the linear maps; AdamW elsewhere, on an embedding at ten times the rate."""
    return _everywhere(_ADAMW, **dict.fromkeys(MATRIX_ROLES, entry), embedding=_ADAMW | _EMBEDDING_RATE)


PLANS: dict[str, Plan] = {
    # torch.optim.AdamW, except that vectors are not decayed.
    "adamw": _everywhere(_ADAMW),
    # Muon on the linear maps, AdamW elsewhere, as its authors use it.
    "muon": _on_linear_maps(_SPECTRAL),
    # Muon on the linear maps after clipping at a quantile, with coefficients fitted to shapes (arXiv 2511.20626).
    "root": _on_linear_maps({"rule": "root"}),
    # The linear maps' momentum divided by a bound on its spectral norm; linear time.
    "auon": _on_linear_maps({"rule": "auon"}),
    "hybrid_auon": _on_linear_maps({"rule": "hybrid_auon"}),
    # A norm ball for every role (arXiv 2502.07529); weight decay 1 makes the steps Frank and Wolfe's, which stay in it.
    # The radii are those published for nanoGPT, 50 in the blocks and 3000 on the head, to go with a learning rate of
    # about 2^-12. As in the authors' examples one radius serves all but the head. An embedding is stored (vocabulary,
    # features), so its ball is that of the transpose.
    "scion": _everywhere(
        _SCION,
        embedding=_SCION | {"norm": "col_norm", "transposed": True},
        tied_embedding=_SCION | {"norm": "sign", "radius": 3000.0},
        lm_head=_SCION | {"norm": "sign", "radius": 3000.0},
        conv=_SCION | {"norm": "spectral_conv"},
        vector={"rule": "scion_vector", "radius": 50.0, "weight_decay": 1.0},
        unknown=_ADAMW | {"weight_decay": 1.0},
    ),
    # Steps in proportion to the gradient on the linear maps, with momentum (arXiv 2505.21799) and without.
    "polargrad": _on_linear_maps(_POLARGRAD),
    "ssd": _on_linear_maps(_SSD),
    # One rule per symmetry (arXiv 2605.18106). Embedding and head have exchangeable rows (tokens) and a rotation-
    # invariant feature space. A softmax head's logits may all shift together, hence the centring; a tied embedding is
    # looked up too, and lookup is not shift-invariant. A router's scores may pass a sigmoid: not centred.
    "symmetry": _everywhere(
        _SPECTRAL,
        embedding={"rule": "row_norm", "weight_decay": 0.0} | _EMBEDDING_RATE,
        tied_embedding={"rule": "row_norm", "weight_decay": 0.0},
        lm_head={"rule": "row_norm", "centre": "both", "weight_decay": 0.0},
        router={"rule": "row_norm", "weight_decay": 0.0},
    ),
    # The same with its hybrid rule for exchangeable neurons, and for tokens.
    "symmetry_hybrid": _everywhere(
        _SPECTRAL,
        **_HYBRID_MLP,
        embedding=_HYBRID | {"weight_decay": 0.0} | _EMBEDDING_RATE,
        tied_embedding=_HYBRID | {"weight_decay": 0.0},
        lm_head=_HYBRID | {"centre": "both", "weight_decay": 0.0},
        router={"rule": "row_norm", "weight_decay": 0.0},
    ),
    # A quarter of every linear map's columns (or rows) a step; AdamW where muon has it (arXiv 2505.17967, 2512.16928).
    "trion": _on_linear_maps({"rule": "trion"}),
    "dion2": _on_linear_maps({"rule": "dion2"}),
    "dct_adamw": _on_linear_maps({"rule": "dct_adamw"}),
    # Every matrix by rows: linear time, no matrix products.
    "row_norm": _everywhere(
        {"rule": "row_norm"},
        embedding={"rule": "row_norm", "weight_decay": 0.0} | _EMBEDDING_RATE,
        tied_embedding={"rule": "row_norm", "weight_decay": 0.0},
        lm_head={"rule": "row_norm", "weight_decay": 0.0},
        router={"rule": "row_norm", "weight_decay": 0.0},
    ),
}


def _symmetry_paper(mlp: Plan) -> Plan:
    """The published assignment of arXiv 2605.18106 with its numbers, for lr=2e-2: Muon's in its Qwen3-0.6B runs.

    Its learning rates go with its scales, so they do not compare with AdamW's. Read in its authors' code
    (timlautk/equivariant_optimizers); what that code does not say is marked (I), inferred here.
    """
    ema: Entry = {"momentum": 0.95, "momentum_form": "ema", "nesterov": False, "scale": "none"}
    rows: Entry = {"rule": "row_norm", "eps_mode": "add", "weight_decay": 0.0, **ema}
    # Its code multiplies by the nuclear norm, but its float32 Gram matrices are normalized in place first (I).
    nu: Entry = {"nu_mode": "nuclear_over_frobenius", "nu_power": 1.0, "ns_coefficients": "polar_express_a_1.05"}
    muon: Entry = {
        "rule": "spectral", "momentum": 0.95, "momentum_form": "heavy_ball", "nesterov": True,
        "ns_coefficients": "polar_express", "scale": "shape_scaling", "weight_decay": 1e-3,
    }  # fmt: skip
    hybrid = {role: {**entry, "eps_mode": "add", "weight_decay": 1e-3, **ema, **nu} for role, entry in mlp.items()}
    return {
        **dict.fromkeys(MATRIX_ROLES, muon),
        "attention": muon | {"per_head": True},
        **hybrid,
        "embedding": rows | {"lr_multiplier": 25.0},  # 0.5
        "lm_head": rows | {"centre": "both", "lr_multiplier": 0.25},  # 5e-3; centred since its second release
        # Its models are untied. Lookup is not shift-invariant: not centred, at the head's rate (I).
        "tied_embedding": rows | {"lr_multiplier": 0.25},
        # 7.5e-4 where Muon has 5e-3 (OLMoE); for a router with a softmax over its experts.
        "router": {
            "rule": "left_spectral", "centre": "both", "weight_decay": 0.0, "lr_multiplier": 0.15, **ema, **nu,
        },
        "vector": {"rule": "adamw", "betas": (0.9, 0.95), "weight_decay": 1e-3, "lr_multiplier": 2.5},  # 5e-2
        # Not in its models; 1e-3, its AdamW's on heads (I).
        "unknown": {"rule": "adamw", "betas": (0.9, 0.95), "weight_decay": 0.0, "lr_multiplier": 0.05},
    }  # fmt: skip


# Its two choices for SwiGLU and experts.
PLANS["symmetry_paper"] = _symmetry_paper({})
PLANS["symmetry_paper_hybrid"] = _symmetry_paper(_HYBRID_MLP)


def names() -> list[str]:
    """The names of the ready plans."""
    return sorted(PLANS)


def get(plan: str | Mapping[str, Mapping[str, Any]]) -> Plan:
    """A plan by name, or the user's own completed and checked; always a copy.

    Args:
        plan: a name, or role -> entry. Roles that the user's plan leaves out get ``adamw``, vectors undecayed.

    Raises:
        TypeError: an option that an entry's rule does not know, or something that is no plan.
        ValueError: an unknown plan, role or rule, or a bad value.
    """
    if isinstance(plan, str):
        if plan not in PLANS:
            raise ValueError(
                f"unknown plan {plan!r}{near(plan, PLANS)} Known plans: {', '.join(names())}. "
                "The name of a plan file ends in .yaml, .yml or .toml, and orthoopt.load_plan reads it"
            )
        return copy.deepcopy(PLANS[plan])
    if not isinstance(plan, Mapping):
        raise TypeError(f"a plan must be a name, a plan file or a mapping of role to entry, got {plan!r}")
    complete = copy.deepcopy(PLANS["adamw"])
    for role, entry in plan.items():
        check_role(role, "the plan")
        complete[role] = check_entry(entry, f"role {role!r} of the plan")
    return complete


def with_options(
    plan: Plan,
    options: Mapping[str, Any],
    of: str = "the plan",
    own: Mapping[str, Mapping[str, Any]] | None = None,
) -> Plan:
    """The plan with each option given to every entry whose rule has it.

    ``scale`` goes to matrix rules, ``weight_decay_mode`` and the options of any step to all.

    Args:
        plan: role -> entry.
        options: option -> value.
        of: whose entries these are, for messages.
        own: role -> what that role keeps, whatever the options say.

    Raises:
        TypeError: an option that no rule of the plan knows.
    """
    changed = {role: dict(entry) for role, entry in plan.items()}
    taken: set[str] = set()
    for role, entry in changed.items():
        rule = rules.get(entry["rule"])
        known = {*rule.defaults, "weight_decay_mode", *DEFAULTS} | ({"scale"} if rule.is_matrix else set())
        mine = {name: value for name, value in options.items() if name in known}
        taken |= mine.keys()
        mine |= {} if own is None else own.get(role, {})
        changed[role] = check_entry({**entry, **mine}, f"options and role {role!r} of {of}")
    for name in options:
        if name not in taken:
            known = {o for entry in plan.values() for o in rules.get(entry["rule"]).defaults}
            known |= {"scale", "weight_decay_mode", *DEFAULTS}
            raise TypeError(f"no rule of {of} has an option {name!r}{near(name, known)} Options: {sorted(known)}")
    return changed
