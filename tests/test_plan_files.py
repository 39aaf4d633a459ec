"""Plan files: what is written is what groups get, whatever the format, and every mistake is named with its place."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import re
import sys
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
from torch import nn

import orthoopt
from orthoopt import OrthoOpt, Symmetry, load_plan, param_groups, plans, rules
from orthoopt.dispatch import assign
from orthoopt.hf import OptimizerFactory
from orthoopt.plan_text import to_toml, to_yaml
from orthoopt.roles import ROLES

Write = Callable[..., Path]

YAML = r"""
base: symmetry            # a ready plan to start from
options: {momentum: 0.9}
roles:
  embedding: {rule: row_norm, lr_multiplier: 5, weight_decay: 0}
  router: {rule: adamw}
patterns:                 # tried in order before the roles
  - match: 'lm_head'
    rule: adamw
    lr: 1e-4
  - match: '\.0\.mlp\.'
    ns_steps: 8
"""
TOML = r"""
base = "symmetry"
options = {momentum = 0.9}

[roles]
embedding = {rule = "row_norm", lr_multiplier = 5, weight_decay = 0}
router = {rule = "adamw"}

[[patterns]]
match = 'lm_head'
rule = "adamw"
lr = 1e-4

[[patterns]]
match = '\.0\.mlp\.'
ns_steps = 8
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a plan file into the folder that the test runs in; messages then have its bare name."""
    monkeypatch.chdir(tmp_path)

    def write_text(text: str | bytes, name: str = "mine.yaml") -> Path:
        path = Path(name)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write_text


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


FULL = "roles: {" + ", ".join(f"{role}: {{rule: adamw}}" for role in ROLES) + "}"


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        # The file as a whole.
        ("", ValueError, r"plan file mine.yaml is empty: give a 'base', 'roles', or both"),
        ("# only a comment\n", ValueError, "mine.yaml is empty"),
        ("{}", ValueError, "mine.yaml is empty"),
        ("- base: muon", TypeError, r"mine.yaml must be a mapping with base, .*, got a list"),
        ("muon", TypeError, "mine.yaml must be a mapping with .*, got a str"),
        ("base: [", ValueError, r"mine.yaml is not YAML: .*\(line 1, column 8\)"),
        ("base: muon\nbase: root", ValueError, r"the key 'base' stands twice \(line 2, column 1\)"),
        ("base: muon\nroles:\n  router: {rule: adamw, rule: spectral}", ValueError, r"'rule' stands twice \(line 3"),
        ("base: !!python/object:os.system x", ValueError, "the tag '.*os.system' has no meaning in a plan file"),
        ("base: muon\x00", ValueError, "is not YAML: unacceptable character"),
        ("base: !!int muon", ValueError, r"'muon' is no int \(line 1"),
        ("base: muon\n---\nbase: root", ValueError, "is not YAML: but found another document"),
        ("base: *muon", ValueError, r"found undefined alias 'muon' \(line 1"),
        ("[" * 4000, ValueError, "nested too deeply|is not YAML"),
        (b"base: muon # \xff", ValueError, "mine.yaml is not UTF-8 text: byte 0xff at position 13"),
        # Its keys.
        ("bse: muon", ValueError, "mine.yaml: unknown key 'bse'; did you mean 'base'.*Keys: base, options, roles, pat"),
        ("base: muon\n1: x", ValueError, "mine.yaml: unknown key 1"),
        ("base: muon\nlr: 1e-3", ValueError, "mine.yaml: 'lr' at the top; the caller gives it"),
        ("base: muon\nweight_decay: 0", ValueError, "'weight_decay' at the top; the caller gives it"),
        ("base: muon\nroles:\nrouter: {rule: adamw}", ValueError, "the role 'router' stands at the top; .* 'roles'"),
        # The base, and what is left out without one.
        ("base: muonn", ValueError, "'base' of mine.yaml: unknown plan 'muonn'; did you mean 'muon'.*Ready plans: "),
        ("base: [muon]", TypeError, "'base' of mine.yaml must be the name of a ready plan, got a list"),
        ("base: other.yaml", ValueError, "'base' of mine.yaml: unknown plan 'other.yaml'"),
        (
            "roles: {attention: {rule: spectral}, vector: {rule: adamw}}",
            ValueError,
            "must give every role; it leaves out embedding, tied_embedding, lm_head, mlp_in, mlp_out, expert_in, "
            "expert_out, router, conv, hidden, unknown.",
        ),
        (FULL.replace("conv: {rule: adamw}, ", ""), ValueError, r"it leaves out conv\. "),
        (FULL.replace("conv: {rule: adamw}", "conv: {lr: 1}"), ValueError, "role 'conv' of mine.yaml has no 'rule'"),
        # Roles.
        ("base: muon\nroles: {ruter: {rule: adamw}}", ValueError, "role 'ruter' in mine.yaml; did you mean 'router'"),
        ("base: muon\nroles: {1: {rule: adamw}}", ValueError, "unknown role 1 in mine.yaml"),
        ("base: muon\nroles:", TypeError, "'roles' of mine.yaml must be a mapping, got nothing"),
        ("base: muon\nroles: [router]", TypeError, "'roles' of mine.yaml must be a mapping, got a list"),
        ("base: muon\nroles: {router: adamw}", TypeError, "role 'router' of mine.yaml must map options .* got 'adamw'"),
        ("base: muon\nroles: {router: }", TypeError, "role 'router' of mine.yaml must map options .* got nothing"),
        # Rules, options and their values.
        (
            "base: muon\nroles: {router: {rule: adam}}",
            ValueError,
            "role 'router' of mine.yaml: unknown rule 'adam'; did you mean 'adamw'.*Known rules: adamw",
        ),
        ("base: muon\nroles: {router: {rule: [adamw]}}", TypeError, "role 'router' of mine.yaml: a rule must be a str"),
        (
            "base: muon\nroles: {mlp_in: {ns_step: 3}}",
            TypeError,
            r"rule 'spectral' \(role 'mlp_in' of mine.yaml\) has no option 'ns_step'; did you mean 'ns_steps'",
        ),
        ("base: muon\nroles: {mlp_in: {1: 3}}", TypeError, r"\(role 'mlp_in' of mine.yaml\) has no option 1"),
        ("base: muon\nroles: {mlp_in: {momentum: 2}}", ValueError, "role 'mlp_in' of mine.yaml.*momentum .* got 2"),
        ("base: muon\nroles: {mlp_in: {ns_steps: 1.5}}", ValueError, "ns_steps=1.5 .* of mine.yaml.* a whole number"),
        (
            "base: muon\nroles: {mlp_in: {momentum: '1e-3'}}",
            ValueError,
            r"momentum='1e-3' of rule 'spectral' \(role 'mlp_in' of mine.yaml\) must be a number",
        ),
        ("base: muon\nroles: {mlp_in: {nesterov: off}}", ValueError, "nesterov='off' .* must be True or False"),
        ("base: muon\nroles: {mlp_in: {nesterov: no}}", ValueError, "nesterov='no' .* must be True or False"),
        (
            "base: symmetry\nroles: {lm_head: {centre: boht}}",
            ValueError,
            r"centre='boht'.*\(role 'lm_head' of mine.yaml\) must be one of 'none', 'pre', 'both'; did you mean 'both'",
        ),
        ("base: muon\nroles: {mlp_in: {ns_coefficients: cnas}}", ValueError, "mlp_in' of mine.yaml.*'cnas'; did you m"),
        ("base: muon\nroles: {mlp_in: {ns_coefficients: [1, 2]}}", ValueError, r"ns_coefficients=\(1, 2\).*mlp_in"),
        ("base: muon\nroles: {mlp_in: {scale: spectrl}}", ValueError, "scale='spectrl'.*mlp_in.*did you mean 'spectra"),
        ("base: muon\nroles: {mlp_in: {scale: [none]}}", ValueError, "scale=.*mlp_in.*must be one of"),
        (
            "base: muon\nroles: {mlp_in: {weight_decay_mode: cautius}}",
            ValueError,
            "weight_decay_mode='cautius'.*mlp_in.*did you mean 'cautious'",
        ),
        ("base: muon\nroles: {mlp_in: {lr: '0.1'}}", ValueError, "role 'mlp_in' of mine.yaml: lr must be .* got '0.1'"),
        ("base: muon\nroles: {mlp_in: {lr_multiplier: -1}}", ValueError, "mlp_in.* lr_multiplier must be .* got -1"),
        ("base: muon\nroles: {mlp_in: {lr_multiplier: true}}", ValueError, "lr_multiplier must be .* got True"),
        ("base: muon\nroles: {mlp_in: {weight_decay: .nan}}", ValueError, "weight_decay must be .* got nan"),
        ("base: muon\nroles: {mlp_in: {per_head: 1}}", ValueError, "mlp_in' of mine.yaml: per_head must be True or"),
        ("base: muon\nroles: {router: {scale: none}}", TypeError, "router' of mine.yaml: 'scale' is for matrix rules"),
        ("base: muon\nroles: {mlp_in: {momentum: {a: 1}}}", TypeError, "mlp_in.*'momentum' must be .* got a mapping"),
        ("base: muon\nroles: {mlp_in: &x {momentum: *x}}", ValueError, r"unconstructable recursive node \(line 2"),
        ("base: muon\nroles: {mlp_in: {momentum: &x [*x]}}", ValueError, r"unconstructable recursive node \(line 2"),
        # Options.
        ("base: muon\noptions: {momentun: 0.9}", TypeError, "no rule of mine.yaml has .*did you mean 'momentum'"),
        ("base: muon\noptions: {lr: 1}", TypeError, "no rule of mine.yaml has an option 'lr'"),
        ("base: muon\noptions: {momentum: 2}", ValueError, "options and role '.*' of mine.yaml.*momentum .* got 2"),
        ("base: muon\noptions: 3", TypeError, "'options' of mine.yaml must be a mapping, got 3"),
        # Patterns.
        ("base: muon\npatterns: {x: {lr: 1}}", TypeError, "'patterns' of mine.yaml must be a list of .* got a mapping"),
        ("base: muon\npatterns:", TypeError, "'patterns' of mine.yaml must be a list of .* got nothing"),
        ("base: muon\npatterns: [x]", TypeError, "pattern 1 of mine.yaml must map options to values.* got 'x'"),
        ("base: muon\npatterns: [{mach: x, lr: 1}]", ValueError, "pattern 1 of mine.yaml has no 'match'; it has 'ma"),
        ("base: muon\npatterns: [{match: 3, lr: 1}]", TypeError, "pattern 1 '3' of mine.yaml: .* must be a string"),
        ("base: muon\npatterns: [{match: , lr: 1}]", TypeError, "pattern 1 'None' of mine.yaml: .* must be a string"),
        (
            "base: muon\npatterns:\n- {match: x, lr: 1}\n- {match: 'a(b', lr: 1}",
            ValueError,
            r"pattern 2 'a\(b' of mine.yaml is not a regular expression: .*unterminated subpattern at position 1",
        ),
        ("base: muon\npatterns: [{match: 'a{99999999999}', lr: 1}]", ValueError, "pattern 1 .* expression: the"),
        (
            "base: muon\npatterns:\n- {match: x, lr: 1}\n- {match: y, lr: 1}\n- {match: x, lr: 2}",
            ValueError,
            "pattern 3 'x' of mine.yaml never wins: pattern 1 of the same list is the same",
        ),
        (
            "base: muon\npatterns: [{match: x, ns_stepz: 3}]",
            TypeError,
            r"rule 'spectral' \(pattern 1 'x' of mine.yaml\) has no option 'ns_stepz'; did you mean 'ns_steps'",
        ),
        (
            "base: muon\npatterns: [{match: x, ns_steps: 1.5}]",
            ValueError,
            r"ns_steps=1.5 of rule 'spectral' \(pattern 1 'x' of mine.yaml\) must be a whole number",
        ),
        ("base: muon\npatterns: [{match: x, rule: adam}]", ValueError, "pattern 1 'x' of mine.yaml.*mean 'adamw'"),
        ("base: muon\npatterns: [{match: x, role: ruter}]", ValueError, "'ruter' in pattern 1 'x' of mine.yaml; did"),
        ("base: muon\npatterns: [{match: x, role: mlp_in, betas: [0, 0]}]", TypeError, "'spectral' .* option 'betas'"),
        ("base: muon\npatterns: [{match: x, view: had(2)}]", ValueError, "pattern 1 'x' of mine.yaml: .*'had"),
        ("base: muon\npatterns: [{match: x, view: 3}]", TypeError, "pattern 1 'x' of mine.yaml: a view must be a str"),
        ("base: muon\npatterns: [{match: x, lr: -1}]", ValueError, "pattern 1 'x' of mine.yaml: lr must be .* got -1"),
    ],
)  # fmt: skip
def test_mistakes_in_a_file_are_named_with_their_place(write: Write, text: Any, error: Any, message: str) -> None:
    path = write(text)
    with pytest.raises(error, match=message) as caught:
        load_plan(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("base = 3x", ValueError, r"plan file mine.toml is not TOML: .*line 1"),
        ('base = "muon"\nbase = "root"', ValueError, "is not TOML: Cannot overwrite a value"),
        ('base = "muon"\n[roles.mlp_in]\nmomentum = 1979-05-27', TypeError, "'momentum' must be .* got date"),
        ('base = "muon"\n[roles.mlp_in]\nns_steps = "5"', ValueError, "ns_steps='5'.*mlp_in.*a whole number"),
        ("", ValueError, "mine.toml is empty"),
    ],
)
def test_mistakes_in_toml_are_named_too(write: Write, text: str, error: Any, message: str) -> None:
    path = write(text, "mine.toml")
    with pytest.raises(error, match=message):
        load_plan(path)


_MARKS = "abr:{}[]()'\"*&!%@`|>-?#,.=~<\\ \n\t\r\x00\u2028é019en"
EDITS = st.lists(
    # Where, how many characters go, what comes instead.
    st.tuples(st.floats(0, 1), st.integers(0, 9), st.text(_MARKS, max_size=4)),
    min_size=1, max_size=4,
)  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(suffix=st.sampled_from(["yaml", "toml"]), edits=EDITS)
def test_a_damaged_file_is_read_or_refused_in_one_line(suffix: str, edits: list[Any], tmp_path: Path) -> None:
    """Nothing but the errors that are promised comes out, whatever is cut out of an example or put into it."""
    text = YAML if suffix == "yaml" else TOML
    for where, cut, put in edits:
        start = int(where * len(text))
        text = text[:start] + put + text[start + cut :]
    path = tmp_path / f"damaged.{suffix}"
    path.write_bytes(text.encode())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the re module, about patterns that will change their meaning
        try:
            read = load_plan(path)
        except (TypeError, ValueError) as error:
            assert str(path) in str(error) and len(str(error).splitlines()) == 1
        else:
            assert read.plan.keys() == set(ROLES)


def test_a_bomb_of_anchors_is_refused_without_being_spelled(write: Write) -> None:
    bomb = "\n".join(f"  - &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12))
    text = f"base: muon\nroles:\n  mlp_in:\n    momentum:\n  - &a0 [1, 2]\n{bomb}".replace("\n  - ", "\n     - ")
    with pytest.raises(TypeError, match="'momentum' must be a text, a number, true, false, or a list") as caught:
        load_plan(write(text))
    assert len(str(caught.value)) < 200


def test_a_file_that_is_not_there_is_named_with_its_neighbour(write: Write) -> None:
    write(YAML, "mine.yaml")
    with pytest.raises(FileNotFoundError, match="no plan file mina.yaml; did you mean 'mine.yaml'"):
        load_plan("mina.yaml")
    with pytest.raises(FileNotFoundError, match="the ready plan is 'symmetry', without .yml"):
        param_groups(models.qwen3(), "symmetry.yml")
    with pytest.raises(FileNotFoundError, match=r"no plan file nowhere.mine.toml: there is no folder nowhere"):
        load_plan(Path("nowhere") / "mine.toml")
    Path("folder.yaml").mkdir()
    with pytest.raises(IsADirectoryError, match="plan file folder.yaml cannot be read: Is a directory"):
        load_plan("folder.yaml")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read_is_named(write: Write) -> None:
    write(YAML).chmod(0)
    with pytest.raises(PermissionError, match="plan file mine.yaml cannot be read: Permission denied"):
        load_plan("mine.yaml")


def test_a_name_that_is_no_plan_files_says_what_is(write: Write) -> None:
    path = write(YAML, "mine.txt")
    with pytest.raises(ValueError, match=r"mine.txt: its name must end in .yaml, .yml, .toml"):
        param_groups(models.qwen3(), path)
    with pytest.raises(ValueError, match=r"unknown plan 'mine.txt'.*a plan file ends in .yaml, .yml or .toml"):
        param_groups(models.qwen3(), "mine.txt")
    with pytest.raises(TypeError, match="a plan must be a name, a plan file or a mapping of role to entry, got 3"):
        param_groups(models.qwen3(), 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must be one of 'symmetry', .*, or a plan file; did you mean 'symmetry'"):
        Symmetry(models.qwen3(), plan="symetry")


def test_without_pyyaml_the_message_names_it_and_toml_works(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    monkeypatch.delitem(sys.modules, "orthoopt.plan_yaml", raising=False)
    monkeypatch.delattr(orthoopt, "plan_yaml", raising=False)
    with pytest.raises(ModuleNotFoundError, match="mine.yaml: YAML needs PyYAML; pip install pyyaml, or .* TOML"):
        load_plan(write(YAML))
    assert load_plan(write(TOML, "mine.toml")).base == "symmetry"
    assert to_yaml(plans.get("muon")).startswith("roles:")


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
