"""Plan files: what is written is what groups get, whatever the format, and every mistake is named with its place."""

from __future__ import annotations

import dataclasses
import json
import pickle
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import pytest
import strategies
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plan_texts import TOML, YAML
from torch import nn

import orthoopt
from orthoopt import OrthoOpt, Symmetry, load_plan, param_groups, plans, rules
from orthoopt.dispatch import assign
from orthoopt.hf import OptimizerFactory
from orthoopt.plan_text import to_toml, to_yaml
from orthoopt.roles import ROLES

Write = Callable[..., Path]


def by_name(groups: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        name: {key: value for key, value in group.items() if key != "params"}
        for group in groups
        for name, _ in group["params"]
    }


def routed(model: nn.Module, plan: Any, **arguments: Any) -> dict[str, dict[str, Any]]:
    return by_name(param_groups(model, plan, **arguments))


@pytest.mark.parametrize(("name", "text"), [("mine.yaml", YAML), ("mine.YML", YAML), ("mine.toml", TOML)])
def test_a_file_does_what_arguments_do(write: Write, name: str, text: str) -> None:
    """A base, options, roles and patterns, beside the same written as Python."""
    path = write(text, name)
    model = models.olmoe()
    entries = plans.with_options(plans.get("symmetry"), {"momentum": 0.9})
    entries["embedding"] |= {"lr_multiplier": 5}
    entries["router"] = {"rule": "adamw"}
    overrides = [("lm_head", {"rule": "adamw", "lr": 1e-4}), (r"\.0\.self_attn\.._proj", {"ns_steps": 8})]
    path.write_text(text.replace(r"mlp\.", r"self_attn\.._proj"))
    expected = routed(model, entries, lr=0.01, weight_decay=0.2, overrides=overrides)
    assert routed(model, str(path), lr=0.01, weight_decay=0.2) == expected
    assert routed(model, path, lr=0.01, weight_decay=0.2) == expected
    assert routed(model, load_plan(path), lr=0.01, weight_decay=0.2) == expected
    assert expected["lm_head.weight"]["lr"] == 1e-4 and expected["lm_head.weight"]["rule"] == "adamw"
    first, second = (expected[f"model.layers.{i}.self_attn.q_proj.weight"] for i in (0, 1))
    assert (first["ns_steps"], second["ns_steps"], first["momentum"]) == (8, 5, 0.9)
    assert expected["model.embed_tokens.weight"]["lr"] == 0.05


def test_a_file_is_taken_wherever_a_plan_is(write: Write) -> None:
    path = write(YAML)
    model = models.qwen3(device="cpu")
    expected = OrthoOpt(param_groups(model, path, lr=3e-4, weight_decay=0.2), 3e-4, 0.2).state_dict()
    assert Symmetry(model, lr=3e-4, weight_decay=0.2, plan=path).state_dict() == expected
    assert Symmetry(model, lr=3e-4, weight_decay=0.2, plan="mine.yaml").state_dict() == expected
    assert OptimizerFactory()(model, plan="mine.yaml", lr=3e-4, weight_decay=0.2).state_dict() == expected
    explanation = orthoopt.explain(model, path, lr=3e-4)
    assert explanation.plan == "mine.yaml" and "plan mine.yaml" in str(explanation)
    (head,) = [row for row in explanation.rows if row.name == "lm_head.weight"]
    assert "pattern 1 'lm_head' of mine.yaml; by itself: nn.Linear" in head.reason


def test_groups_stay_plain_and_checkpoints_load_without_the_file(write: Write) -> None:
    model = models.qwen3(device="cpu")
    path = write(YAML + "  - match: norm\n    betas: [0.8, 0.9]\n")
    optimizer = Symmetry(model, plan=path)
    for param in model.parameters():
        param.grad = torch.randn_like(param)
    optimizer.step()
    plain = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    assert json.loads(json.dumps(plain)) == json.loads(json.dumps(plain, default=repr))
    path.unlink()
    restored = pickle.loads(pickle.dumps(optimizer))
    assert restored.param_groups[0]["momentum"] == 0.9
    assert {group["betas"] for group in plain if group["role"] == "vector"} == {(0.8, 0.9)}


def test_the_callers_overrides_and_options_come_first(write: Write) -> None:
    path = write(YAML)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a pattern of the file that the caller puts aside is no mistake
        found = routed(models.qwen3(), path, overrides={"lm_head": {"rule": "row_norm"}}, options={"momentum": 0.8})
    assert found["lm_head.weight"]["rule"] == "row_norm"
    assert found["model.layers.1.mlp.up_proj.weight"]["momentum"] == 0.8
    model = models.qwen3(device="cpu")
    own = {group["rule"]: group for group in Symmetry(model, plan=path).param_groups}
    assert own["spectral"]["momentum"] == 0.9
    given = {group["rule"]: group for group in Symmetry(model, plan=path, momentum=0.5).param_groups}
    assert given["spectral"]["momentum"] == 0.5


def test_a_roles_own_value_beats_the_files_options(write: Write) -> None:
    path = write("base: muon\noptions: {momentum: 0.9, ns_steps: 3, betas: [0.5, 0.6]}\nroles: {mlp_in: {ns_steps: 7}}")
    plan = load_plan(path).plan
    assert (plan["mlp_in"]["ns_steps"], plan["attention"]["ns_steps"]) == (7, 3)
    assert plan["mlp_in"]["momentum"] == 0.9 and plan["vector"]["betas"] == (0.5, 0.6)


def test_what_a_role_leaves_out_is_the_bases_while_the_rule_is(write: Write) -> None:
    plan = load_plan(write("base: symmetry\nroles: {embedding: {eps_mode: add}, lm_head: {rule: spectral}}")).plan
    assert plan["embedding"] == {"rule": "row_norm", "weight_decay": 0.0, "lr_multiplier": 10.0, "eps_mode": "add"}
    assert plan["lm_head"] == {"rule": "spectral"}


@pytest.mark.parametrize("suffix", ["yaml", "toml"])
@pytest.mark.parametrize("name", plans.names())
def test_every_ready_plan_survives_being_written(write: Write, name: str, suffix: str) -> None:
    text = {"yaml": to_yaml, "toml": to_toml}[suffix](plans.get(name), comments=["a comment", "of\ntwo lines"])
    read = load_plan(write(text, f"plan.{suffix}"))
    assert read.plan == plans.get(name) and read.overrides == () and read.base is None
    assert read.text == text
    assert routed(models.olmoe(), read, lr=0.5) == routed(models.olmoe(), name, lr=0.5)
    if suffix == "yaml":  # and by YAML 1.1 as PyYAML has it, for other readers
        import yaml

        assert json.dumps(yaml.safe_load(text)["roles"]) == json.dumps(plans.get(name))


NUMBERS = st.floats(0, 1e30) | st.integers(0, 10**12)


@st.composite
def entries(draw: st.DrawFn) -> dict[str, Any]:
    """Any rule with any options that may stand together, and what a plan adds."""
    rule = rules.get(draw(st.sampled_from(rules.names())))
    options = draw(strategies.options_of(rule))
    kept = {key: options[key] for key in draw(st.sets(st.sampled_from(sorted(options))))} if options else {}
    shell = draw(st.fixed_dictionaries({}, optional={"lr_multiplier": NUMBERS, "lr": NUMBERS, "weight_decay": NUMBERS}))
    entry = {"rule": rule.name, **kept, **shell}
    if rule.is_matrix:
        entry |= draw(st.fixed_dictionaries({}, optional={"per_head": st.booleans(), "scale": st.just("none")}))
    return entry if strategies.is_valid(rule, {**rule.defaults, **entry}) else {"rule": rule.name, **shell}


# Quotes, backslashes, line ends, characters outside of Latin: whatever a text can hold, as a pattern that matches.
PATTERNS = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12).map(lambda text: f"(?:{re.escape(text)})?weight"),
    max_size=3,
    unique=True,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plan=st.fixed_dictionaries({role: entries() for role in ROLES}), patterns=PATTERNS, data=st.data())
def test_any_plan_survives_being_written(plan: Any, patterns: list[str], data: st.DataObject, tmp_path: Path) -> None:
    overrides = [(pattern, data.draw(entries())) for pattern in patterns]
    for suffix, write_text in (("yaml", to_yaml), ("toml", to_toml)):
        values = [value for _, entry in [*plan.items(), *overrides] for value in entry.values()]
        if suffix == "toml" and None in values:
            with pytest.raises(ValueError, match="is None, which TOML cannot say"):
                to_toml(plan, overrides)
            continue
        path = tmp_path / f"plan.{suffix}"
        path.write_bytes(write_text(plan, overrides).encode())
        read = load_plan(path)
        assert read.plan == plan and list(read.overrides) == overrides
        kinds = [type(value) for entry in read.plan.values() for value in entry.values()]
        assert kinds == [type(value) for role in read.plan for value in plan[role].values()]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # patterns that all match everything: the first wins
            model = models.qwen3()
            assert routed(model, read, lr=0.5) == routed(model, plan, lr=0.5, overrides=overrides)


@pytest.mark.parametrize(
    ("written", "value"),
    [("1e-3", 1e-3), ("1E5", 1e5), ("2.", 2.0), (".5", 0.5), ("+1.5e+2", 150.0), ("010", 10), ("3", 3), ("0", 0)],
)
def test_numbers_are_numbers_however_they_are_written(write: Write, written: str, value: float) -> None:
    entry = load_plan(write(f"base: muon\nroles: {{attention: {{lr_multiplier: {written}}}}}")).plan["attention"]
    assert entry["lr_multiplier"] == value and type(entry["lr_multiplier"]) is type(value)


def test_anchors_and_merge_keys_work_and_a_merged_key_may_be_given_again(write: Write) -> None:
    text = """
base: muon
roles:
  attention: &fast {rule: spectral, ns_steps: 3, momentum: 0.9}
  mlp_in: *fast
  mlp_out: {<<: *fast, ns_steps: 4}
"""
    plan = load_plan(write(text)).plan
    assert plan["mlp_in"] == plan["attention"] == {"rule": "spectral", "ns_steps": 3, "momentum": 0.9}
    assert plan["mlp_out"] == {**plan["attention"], "ns_steps": 4}


def test_a_byte_order_mark_and_other_line_ends_are_read(write: Write) -> None:
    expected = load_plan(write(YAML)).plan
    assert load_plan(write(b"\xef\xbb\xbf" + YAML.replace("\n", "\r\n").encode())).plan == expected
    assert load_plan(write(b"\xef\xbb\xbf" + TOML.replace("\n", "\r\n").encode(), "mine.toml")).plan == expected


def test_a_role_that_the_model_has_not_is_no_mistake(write: Write) -> None:
    path = write("base: muon\nroles: {router: {rule: row_norm}, conv: {ns_steps: 3}}")
    assert {group["rule"] for group in param_groups(models.qwen3(), path)} == {"spectral", "adamw"}


def test_a_pattern_of_a_file_that_matches_nothing_is_an_error(write: Write) -> None:
    path = write("base: muon\npatterns: [{match: embed, lr: 1}, {match: 'lm_haed\\.weight$', lr: 1}]")
    message = r"pattern 2 'lm_haed.*' of mine.yaml matches no parameter; did you mean 'lm_head.*'; names: model.embed"
    with pytest.raises(ValueError, match=message):
        param_groups(models.qwen3(), path)
    bare = [nn.Parameter(torch.zeros(3, 3))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=r"the patterns of mine.yaml match names, and these parameters have none"):
            param_groups(bare, path)


def test_an_option_that_the_matched_rule_has_not_is_named(write: Write) -> None:
    path = write("base: muon\npatterns: [{match: lm_head, ns_steps: 3}]")
    with pytest.raises(TypeError, match=r"rule 'adamw' \(pattern 1 'lm_head' of mine.yaml\) has no option 'ns_steps'"):
        param_groups(models.qwen3(), path)


def test_a_pattern_that_never_wins_warns_and_wins_nothing(write: Write) -> None:
    path = write("base: muon\npatterns: [{match: mlp, ns_steps: 3}, {match: gate_proj, ns_steps: 4}]")
    message = "pattern 2 'gate_proj' of mine.yaml never wins: all that it matches, .* by pattern 1 'mlp' of mine.yaml"
    with pytest.warns(UserWarning, match=message):
        found = routed(models.qwen3(), path)
    assert found["model.layers.0.mlp.gate_proj.weight"]["ns_steps"] == 3
    # Two patterns together can take everything; and what the caller gives is held to the same.
    own = [("q_proj", {"ns_steps": 3}), ("k_proj", {"ns_steps": 4}), ("[qk]_proj", {"ns_steps": 6})]
    with pytest.warns(UserWarning, match="override '.*' never wins.*by override 'q_proj', override 'k_proj'; put it"):
        param_groups(models.qwen3(), overrides=own)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        param_groups(models.qwen3(), overrides=[own[0], own[2]])  # takes part of it alone


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        ({"lm_head": "adamw"}, TypeError, "override 'lm_head' must map options to values.*got 'adamw'"),
        ({"a(b": {"lr": 1}}, ValueError, r"override 'a\(b' is not a regular expression: .* at position 1"),
        ([("x", {"lr": 1}), ("x", {"lr": 2})], ValueError, "override 'x' never wins: pattern 1 of the same list"),
        ({"lm_head": {"lr": "1"}}, ValueError, "override 'lm_head': lr must be a number of at least 0, got '1'"),
    ],
)
def test_overrides_and_patterns_go_through_one_path(overrides: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        param_groups(models.qwen3(), overrides=overrides)


def test_a_dict_says_which_roles_it_leaves_out() -> None:
    assignments = assign(models.qwen3(), {"attention": {"rule": "spectral"}, "vector": {"rule": "adamw"}})
    words = {item.role: item.reason.partition("; ")[2] for item in assignments}
    assert words["mlp_in"] == "the plan has no 'mlp_in', so adamw"
    assert "the plan has no" not in words["attention"] + words["vector"]
    with pytest.raises(TypeError, match="role 'attention' of the plan must map options to values.*got 'spectral'"):
        param_groups(models.qwen3(), {"attention": "spectral"})  # type: ignore[dict-item]


def test_a_pattern_that_gives_nothing_leaves_its_parameters_to_the_roles(write: Write) -> None:
    path = write("base: muon\npatterns: [{match: '\\.0\\.'}, {match: mlp, ns_steps: 3}]")
    steps = {name: group.get("ns_steps") for name, group in routed(models.qwen3(), path).items()}
    assert (steps["model.layers.0.mlp.up_proj.weight"], steps["model.layers.1.mlp.up_proj.weight"]) == (5, 3)


def test_a_plan_that_was_read_stays_what_it_was(write: Write) -> None:
    path = write(YAML)
    read = load_plan(path)
    before = pickle.dumps(read)
    path.write_text("base: adamw")
    for group in param_groups(models.qwen3(), read, options={"momentum": 0.1}):
        group.clear()
    assert pickle.dumps(read) == before and read.name == "mine.yaml"
    with pytest.raises(dataclasses.FrozenInstanceError):
        read.base = "muon"  # type: ignore[misc]


def test_the_examples_of_the_documents_are_read(write: Write) -> None:
    """Both languages on the page say the same; the README's is a plan too."""
    root = Path(__file__).resolve().parents[1]
    block = re.compile(r"^```(yaml|toml)\n(.*?)^```", re.M | re.S)
    read = {
        suffix: load_plan(write(text, f"example.{suffix}"))
        for suffix, text in block.findall((root / "docs" / "plan_files.md").read_text())
    }
    assert read.keys() == {"yaml", "toml"}
    assert (read["yaml"].plan, read["yaml"].overrides) == (read["toml"].plan, read["toml"].overrides)
    assert param_groups(models.qwen3(), read["yaml"])
    ((suffix, text),) = block.findall((root / "README.md").read_text())
    assert param_groups(models.qwen3(), load_plan(write(text, f"readme.{suffix}")))
