"""Routing: role and view of every parameter of transformers' architectures against the frozen expectations.

``data/routing/README.md`` says how the expectations are made, and how to add one for a new architecture.
"""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

import architectures
import make_routing
import pytest
import routing_files
import transformers
from routing_rules import Expected, expected_routing
from torch import Tensor, nn

import orthoopt
from orthoopt.roles import ROLES
from orthoopt.views import parse_view

NEVER_SPECTRAL = {"embedding", "tied_embedding", "lm_head", "router", "vector"}
STATE_SPACE = {"A_log", "D", "dt_bias", "time_decay", "time_first"}


class Case(NamedTuple):
    """A family and a model type of it."""

    family: str
    name: str


def _cases() -> list[Case]:
    """What the installed transformers has, and what files stand for."""
    cases = {
        Case(family, name): None
        for family in architectures.FAMILIES
        for name in architectures.names(family) + architectures.variants(family)
    }
    cases |= {Case(path.parent.name, path.stem): None for path in sorted(routing_files.FOLDER.glob("*/*.txt"))}
    return list(cases)


@functools.cache
def _built(case: Case) -> nn.Module:
    family, name = case
    if name.partition("@")[0] not in architectures.names(family):
        pytest.skip(f"transformers {transformers.__version__} has no {name} among its {family} models")
    return architectures.build(name, family=family)


def _file(case: Case) -> list[routing_files.Line]:
    path = routing_files.file_of(*case)
    if not path.exists():
        pytest.fail(
            f"no routing is expected for {case.name}, new in transformers {transformers.__version__}: read its "
            f"modelling file, add what is fused or raw to tests/routing_table.py, then run "
            f"`python tests/make_routing.py {case.family} {case.name}` and read what it wrote"
        )
    return routing_files.read(path)


@functools.cache
def _expected(case: Case) -> dict[str, Expected]:
    """The file's line for every parameter; each has one, and each line has one."""
    model, lines = _built(case), _file(case)
    found: dict[str, Expected] = {}
    used = set()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        fitting = [line for line in lines if line.matches(name)]
        assert len(fitting) == 1, f"{name} has {len(fitting)} lines in {routing_files.file_of(*case).name}: {fitting}"
        used.add(fitting[0])
        found[name] = Expected(name, fitting[0].role, fitting[0].view)
    idle = [line.pattern for line in lines if line not in used]
    assert not idle, f"no parameter has these names: {idle}"
    return found


def _name(case: Case) -> str:
    return f"{case.family}-{case.name}"


every_case = pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=() if architectures.is_quick(case.name, case.family) else pytest.mark.slow)
        for case in _cases()
    ],
    ids=_name,
)


# Names show the parts of language models; heads of images and of speech are too often layers like others.
every_language_model = pytest.mark.parametrize(
    "case", [case for case in _cases() if case.family in ("causal_lm", "seq2seq", "masked_lm")], ids=_name
)


@every_case
def test_routing_is_as_expected(case: Case) -> None:
    model = _built(case)
    expected = _expected(case)
    wrong = [
        f"{name}: expected {expected[name].role}, {expected[name].view!r}; got {role}, {view!r}: {reason}"
        for name, role, view, reason in orthoopt.roles(model)
        if (role, view) != expected[name][1:]
    ]
    assert not wrong, f"{type(model).__name__}:\n" + "\n".join(wrong)


@every_case
def test_routing_files_are_what_the_rules_say(case: Case) -> None:
    model = _built(case)
    _file(case)
    class_name = architectures.class_name(case.name, case.family)
    assert routing_files.file_of(*case).read_text() == routing_files.write(class_name, expected_routing(model)), (
        f"the file is not what the rules make: `python tests/make_routing.py {case.family} {case.name}`"
    )


@every_case
def test_routing_files_have_views_that_fit(case: Case) -> None:
    model = _built(case)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    for name, role, view in _expected(case).values():
        assert role in ROLES
        seen = parse_view(view)
        assert seen.is_matrix == (role != "vector"), f"{name}: {role}, {view!r}"
        if seen.is_matrix:
            pieces = seen.piece_shapes(shapes[name])
            assert all(min(piece[-2:]) >= 2 for piece in pieces), f"{name}: {view!r} of {shapes[name]} is {pieces}"


@every_case
def test_routing_puts_no_table_norm_or_scalar_under_a_spectral_rule(case: Case) -> None:
    model = _built(case)
    expected = _expected(case)
    kept_off = {name: f"it is {role}" for name, role, _ in expected.values() if role in NEVER_SPECTRAL}
    kept_off |= _kept_off_by_structure(model)
    for plan in ("muon", "symmetry"):
        groups = orthoopt.param_groups(model, plan=plan)
        routed = {name: group for group in groups for name, _ in group["params"]}
        assert set(routed) == set(expected)
        wrong = [f"{name}: {why}" for name, why in kept_off.items() if routed[name]["rule"] == "spectral"]
        wrong += [
            f"{name}: 3-D in experts, but {routed[name]['role']}"
            for name in _stacks_of_experts(model)
            if routed[name]["role"] not in ("expert_in", "expert_out")
        ]
        assert not wrong, f"under {plan}:\n" + "\n".join(wrong)


# What names alone cannot show: tables and heads whose names say nothing of the kind, raw parameters.
NAMELESS = re.compile(
    r"transformer\.w\.weight|encoder\.out\.weight|predictions\.dense\.weight|rel_logits_proj\.proj|attention_input\.query|"
    r"[kv]_sconv\.static_weight"
)


@every_language_model
def test_routing_by_names_alone_keeps_tables_heads_and_routers_from_matrix_rules(case: Case) -> None:
    model = _built(case)
    expected = _expected(case)
    groups = orthoopt.param_groups(model.named_parameters(), plan="muon")
    routed = {name: group for group in groups for name, _ in group["params"]}
    wrong = [
        f"{name} is {expected[name].role}"
        for name, group in routed.items()
        if group["rule"] == "spectral" and expected[name].role in NEVER_SPECTRAL and not NAMELESS.search(name)
    ]
    assert not wrong, "\n".join(wrong)


def _owners(model: nn.Module) -> dict[str, tuple[nn.Module, Tensor]]:
    """Every place a trainable tensor is held in, by its name, with tied ones under all their names."""
    return {
        name: (model.get_submodule(name.rpartition(".")[0]), parameter)
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if parameter.requires_grad
    }


def _kept_off_by_structure(model: nn.Module) -> dict[str, str]:
    """What blunt facts alone keep off a spectral rule: no file and no table is asked."""
    first_name = {id(parameter): name for name, parameter in model.named_parameters()}
    head = getattr(model.get_output_embeddings(), "weight", None)
    classes = 11 if getattr(model.config, "num_labels", 0) == 11 else -1  # unlike any width of the small configs
    found = {}
    for name, (owner, parameter) in _owners(model).items():
        leaf = name.rpartition(".")[2]
        facts = {
            "its owner is an nn.Embedding": isinstance(owner, nn.Embedding),
            "its owner is a norm": "Norm" in type(owner).__name__,
            "its owner is a router": re.search(r"Router|Gating", type(owner).__name__) is not None,
            "a state-space scalar": leaf in STATE_SPACE,
            "a bias": leaf == "bias" or leaf.endswith("_bias"),
            "it has one dimension": parameter.ndim < 2,
            "get_output_embeddings() returns it": parameter is head,
            "a table of positions": re.search(r"(^|\.)(wpe|\w*positions?(_embeddings?)?)(\.weight)?$", name)
            is not None,
            "a table of distances": leaf == "relative_position_bias_table",
            "learned tokens": re.search(r"_tokens?$", leaf) is not None,
            "as many outputs as classes": parameter.ndim > 1 and parameter.shape[0] == classes,
        }
        why = next((fact for fact, holds in facts.items() if holds), None)
        if why is not None:
            found[first_name[id(parameter)]] = why
    return found


def _stacks_of_experts(model: nn.Module) -> list[str]:
    first_name = {id(parameter): name for name, parameter in model.named_parameters()}
    return [
        first_name[id(parameter)]
        for owner, parameter in _owners(model).values()
        if parameter.ndim == 3 and type(owner).__name__.endswith("Experts")
    ]


def test_routing_covers_the_causal_language_models() -> None:
    names = architectures.names("causal_lm")
    built = [name for name in names if isinstance(_built(Case("causal_lm", name)), nn.Module)]
    classes = {architectures.class_name(name) for name in built}
    assert len(built) == len(names)
    assert len(built) >= 180 and len(classes) >= 170


@pytest.mark.slow
def test_routing_covers_models_of_images_and_speech() -> None:
    families = architectures.QUICK.keys()
    built = [_built(Case(family, name)) for family in families for name in architectures.names(family)]
    assert len(built) >= 200 and len({type(model) for model in built}) >= 200


def test_routing_quick_models_are_among_their_families() -> None:
    for family, quick in architectures.QUICK.items():
        known = architectures.names(family) + architectures.variants(family)
        assert set(quick.split()) <= set(known), family


def test_routing_builds_no_model_of_a_family_twice_in_the_families_that_only_add() -> None:
    seen: dict[tuple[str, str], str] = {}
    for family in architectures.FAMILIES:
        for name in architectures.names(family):
            built = (name, architectures.class_name(name, family))
            assert family not in architectures.REST or built not in seen, f"{built}: {family}, {seen.get(built)}"
            seen.setdefault(built, family)


def test_routing_lines_stand_for_like_layers() -> None:
    said = [
        Expected(f"layers.{i}.w.{j}.weight", "mlp_in" if j else "mlp_out", "matrix") for i in (0, 1) for j in (0, 1)
    ]
    said += [Expected(f"layers.{i}.v", "vector" if i == 1 else "hidden", "matrix") for i in (0, 1, 10)]
    lines = routing_files.collapse(said)
    assert lines == [
        ("layers.#.w.0.weight", "mlp_out", "matrix"),
        ("layers.#.w.1.weight", "mlp_in", "matrix"),
        ("layers.{0,10}.v", "hidden", "matrix"),
        ("layers.1.v", "vector", "matrix"),
    ]
    for entry in said:
        assert [line for line in lines if line.matches(entry.name)] == [
            line for line in lines if line[1:] == entry[1:] and line.pattern.endswith(entry.name[-2:])
        ]


def test_routing_text_reads_back(tmp_path: pytest.TempPathFactory) -> None:
    text = make_routing.text_of("causal_lm", "gpt2")
    path = tmp_path / "gpt2.txt"
    path.write_text(text)
    assert text.startswith("# GPT2LMHeadModel\n")
    assert routing_files.read(path) == routing_files.collapse(expected_routing(_built(Case("causal_lm", "gpt2"))))
    path.write_text("wte.weight embedding\n")
    with pytest.raises(ValueError, match=r"gpt2.txt, line 1: 'wte.weight embedding' is not"):
        routing_files.read(path)
