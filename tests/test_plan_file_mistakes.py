"""Plan files: every mistake is named with its place, in one line."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plan_texts import TOML, YAML

import orthoopt
from orthoopt import Symmetry, load_plan, param_groups, plans
from orthoopt.plan_text import to_yaml
from orthoopt.roles import ROLES

Write = Callable[..., Path]

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
