"""Five hundred random mutilations: the right result, or an error of docs/errors.md that names what is wrong.

What is right is what an optimizer gives that was built from the outside with the mutilated values, see ``fresh``. After
an error all parameters, all state and all groups have the bits they had.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mutilated import SHAPES, Training, bits, fresh, happens, steps_equally
from optimizers import MATRIX_RULES
from torch import Tensor, nn

from orthoopt import OrthoOpt, rules

EXAMPLES = settings(max_examples=100, deadline=None)
RULES = st.sampled_from(MATRIX_RULES)
VALUES = st.sampled_from(
    [
        None, True, False, "x", "", "1e-3", "vector", "matrix", "transpose", "split(2,2)", "flatten", "column",
        -1, 0, 1, 2, 10**30, -0.5, 0.5, 1.5, math.nan, math.inf, -math.inf, 1e308, 1e-300, 1j, b"x",
        np.float64(0.1), np.float32(0.1), np.int64(3), (), [], {}, {1, 2}, {"a": 1}, (0.9,), (0.9, math.nan),
        (0.9, 0.95), object(), print, torch.tensor(math.nan), torch.tensor(0.1), torch.tensor(3), torch.tensor(-1.0),
        torch.tensor([0.1, 0.2]), torch.tensor(0.1, device="meta"),
    ]
)  # fmt: skip


def plain(key: str) -> str:
    """How messages call an option of the iteration, whose own functions have no prefix."""
    return key.removeprefix("ns_")


@given(RULES, st.integers(0, 2), VALUES, st.data())
@EXAMPLES
def test_options_of_a_new_group(rule: str, place: int, value: Any, data: st.DataObject) -> None:
    training = Training(rule, steps=0)
    groups = training.groups(rule)
    own = list(rules.get(groups[place]["rule"]).defaults)
    shell = ["lr", "weight_decay", "weight_decay_mode", "maximize", "nonfinite", "view", "padding_row", "role", "rule"]
    key = data.draw(st.sampled_from([*own, *shell, "scale", "param_names", "params"]))
    groups[place][key] = value
    made: list[OrthoOpt] = []
    name = "param" if key == "params" else plain(key)
    if happens(training, lambda: made.append(OrthoOpt(groups, lr=0.01)), name):
        training.optimizer = made[0]
        if all(isinstance(param, nn.Parameter) for param in made[0].all_params):
            happens(training, made[0].step, name)


@given(RULES, st.integers(0, 2), st.sampled_from(["double", "drop", "swap", "foreign", "missing"]), st.data())
@EXAMPLES
def test_keys_of_a_new_group(rule: str, place: int, how: str, data: st.DataObject) -> None:
    training = Training(rule, steps=0)
    groups = training.groups(rule)
    group = groups[place]
    known = [*rules.get(group["rule"]).defaults, "lr", "weight_decay", "nonfinite", "rule", "params"]
    key = data.draw(st.sampled_from(known))
    at = data.draw(st.integers(0, len(key) - 2))
    wrong = {
        "double": key[:at] + key[at] + key[at:],
        "drop": key[:at] + key[at + 1 :],
        "swap": key[:at] + key[at + 1] + key[at] + key[at + 2 :],
        "foreign": "amsgrad",
        "missing": key,
    }[how]
    if how == "missing":
        group.pop(key, None)
        if key in ("rule", "params"):
            assert not happens(training, lambda: OrthoOpt(groups), key)
        else:
            OrthoOpt(groups)  # its default
        return
    if wrong == key:
        return
    if how == "foreign":
        group[wrong] = 0.5
    elif key in group:
        group[wrong] = group.pop(key)
    else:
        group[wrong] = 0.5
    lost = how != "foreign" and key in ("rule", "params")  # there is no such key then
    assert not happens(training, lambda: OrthoOpt(groups), key if lost else wrong)


@given(RULES, st.integers(0, 2), VALUES, st.data())
@EXAMPLES
@pytest.mark.filterwarnings("ignore:the update of .* has RMS:RuntimeWarning")  # a limit that is one
def test_values_of_a_live_group(rule: str, place: int, value: Any, data: st.DataObject) -> None:
    training = Training(rule)
    group = training.optimizer.param_groups[place]
    key = data.draw(st.sampled_from([key for key in group if key not in ("params", "param_names")]))
    if data.draw(st.booleans()):
        group[key] = value
    else:
        del group[key]
    unread = ("view", "scale", "state_format") if place == 2 else ("role", "state_format")  # by AdamW, or by anyone
    # What only a schedule may write: below 0 by a rounding error, and numbers of numpy's.
    scheduled = key in ("lr", "weight_decay") and (type(value).__module__ == "numpy" or float_of(value) < 0)
    twin: list[Training] = []
    if key in group and not scheduled and key not in unread:
        try:
            twin.append(fresh(training))
        except (TypeError, ValueError, RuntimeError):
            # What a constructor refuses, a step refuses: numbers on other devices alone are not looked at.
            assert not happens(training, training.optimizer.step, plain(key)), (key, value)
            return
        steps_equally(training, twin[0])
        return
    happens(training, training.optimizer.step, plain(key))


def float_of(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        return 0.0


def _sparse(grad: Tensor) -> Tensor:
    return grad.to_sparse()


GRADIENTS: dict[str, Callable[[Tensor], Tensor | None]] = {
    "none": lambda grad: None,
    "nan": lambda grad: grad.masked_fill(torch.arange(grad.numel()).view(grad.shape) == 1, math.nan),
    "infinite": lambda grad: grad.masked_fill(torch.arange(grad.numel()).view(grad.shape) == 0, -math.inf),
    "sparse": _sparse,
    "complex": lambda grad: grad.to(torch.complex64),
    "float64": lambda grad: grad.double(),
    "bfloat16": lambda grad: grad.bfloat16(),
    "integer": lambda grad: grad.long(),
    "meta": lambda grad: grad.to("meta"),
    "flat": lambda grad: grad.reshape(-1)[:-1],
    "larger": lambda grad: torch.cat([grad, grad]),
    "empty": lambda grad: grad[:0],
    "zero": torch.zeros_like,
    "turned": lambda grad: grad.mT.contiguous().mT if grad.ndim > 1 else grad.flip(0).flip(0),
    "with gaps": lambda grad: torch.stack([grad, grad], -1)[..., 0],
    "expanded": lambda grad: grad.flatten()[0].expand(grad.shape),
    "huge": lambda grad: grad * 1e30,
    "tiny": lambda grad: grad * 1e-38,
    "denormal": lambda grad: grad * 1e-44,
    "its parameter": lambda grad: grad,
}


@given(RULES, st.sampled_from(["wide", "tall", "stack", "bias"]), st.sampled_from(list(GRADIENTS)), st.booleans())
@EXAMPLES
@pytest.mark.filterwarnings("ignore:the gradient of:RuntimeWarning")
def test_gradients(rule: str, name: str, how: str, raising: bool) -> None:
    training = Training(rule, nonfinite="raise" if raising else "skip")
    param = training.params[name]
    assert param.grad is not None
    grads: dict[Tensor, Tensor | None] = {p: p.grad for p in training.params.values()}
    grads[param] = param if how == "its parameter" else GRADIENTS[how](param.grad)
    given = {p: grad for p, grad in grads.items() if grad is not None}

    def step() -> None:
        training.optimizer.step_with(given)

    twin = fresh(training)
    if how in ("nan", "infinite"):
        before = training.all_bits()
        went = happens(training, step, name)
        assert went is not raising and training.all_bits() == before
        assert training.optimizer.skipped_steps == int(went)
        return
    if not happens(training, step, name):
        assert how in ("sparse", "complex", "integer", "meta", "flat", "larger", "empty")
        return
    twin.params[name].grad = None
    clean = {
        twin.params[n]: g.detach().clone().contiguous()
        for n, p in training.params.items()
        if (g := given.get(p)) is not None
    }
    twin.optimizer.step_with(clean)
    for key, value in training.params.items():
        if how == "its parameter" and key == name:
            continue  # read while it is written, as by torch.optim
        assert torch.isfinite(value).all()
        # Where it lies otherwise, another kernel reads it, which may round a sum once less.
        torch.testing.assert_close(value, twin.params[key], atol=1e-5, rtol=1e-5)


STATES: dict[str, Callable[[Tensor], Any]] = {
    "none": lambda value: None,
    "text": lambda value: "x",
    "list": lambda value: [1.0],
    "other shape": lambda value: value.new_zeros(7, 7),
    "truncated": lambda value: value[..., :-1] if value.ndim else value.new_zeros(2),
    "batch": lambda value: value.unsqueeze(0).expand(2, *value.shape),
    "whole numbers": lambda value: value.to(torch.int16),
    "bool": lambda value: value.bool(),
    "complex": lambda value: value.to(torch.complex64),
    "sparse": lambda value: value.to_sparse() if value.ndim else value.reshape(1, 1).to_sparse(),
    "meta": lambda value: value.to("meta"),
    "expanded": lambda value: value.new_ones(()).expand(value.shape),
    "turned": lambda value: value.mT.contiguous().mT if value.ndim > 1 else value,
    "wider": lambda value: value.double() if value.is_floating_point() else value,
    "copied": lambda value: value.clone(),
}


@given(RULES, st.sampled_from(list(SHAPES)), st.sampled_from(["drop", *STATES]), st.booleans(), st.data())
@EXAMPLES
@pytest.mark.filterwarnings("ignore:Casting complex values:UserWarning")  # torch's, before it is refused
def test_state(rule: str, name: str, how: str, loading: bool, data: st.DataObject) -> None:
    """Written to by others, or in a state dict."""
    training = Training(rule)
    live = training.optimizer.state.get(training.params[name], {})
    if not live:
        return
    key = data.draw(st.sampled_from(sorted(live)))
    saved = copy.deepcopy(training.optimizer.state_dict())
    number = list(training.params).index(name)
    wrong = dict(live)
    if how == "drop":
        del wrong[key]
    else:
        wrong[key] = STATES[how](live[key])
    if loading:
        saved["state"][number] = wrong
        target = Training(rule, steps=1)
        if not happens(target, lambda: target.optimizer.load_state_dict(saved), name):
            return
        for param, other in zip(target.params.values(), training.params.values(), strict=True):
            param.data.copy_(other)
        target.set_gradients(2)
        training = target
    else:
        training.optimizer.state[training.params[name]] = wrong
    twin = fresh(training)
    if how == "drop":  # begins anew
        twin.optimizer.state[twin.params[name]].pop(key, None)
    if how == "wider" and key != "step":
        kept = twin.optimizer.state[twin.params[name]]
        kept[key] = kept[key].float() if kept[key].is_floating_point() else kept[key]
    if happens(training, training.optimizer.step, name):
        twin.optimizer.step()
        for one, param in training.params.items():
            if how == "turned":  # another kernel reads it, which may round a sum once less
                torch.testing.assert_close(param, twin.params[one], atol=1e-5, rtol=1e-5)
            else:
                assert bits(param) == bits(twin.params[one]), one


def _swap_names(saved: dict[str, Any]) -> None:
    saved["param_groups"][0]["param_names"].reverse()


def _merge(saved: dict[str, Any]) -> None:
    first, second, *rest = saved["param_groups"]
    merged = {k: first[k] + second[k] for k in ("params", "param_names")}
    saved["param_groups"] = [{**first, **merged}, *rest]


def _split(saved: dict[str, Any]) -> None:
    first, *rest = saved["param_groups"]
    halves = [
        {**first, "params": [p], "param_names": [n]} for p, n in zip(first["params"], first["param_names"], strict=True)
    ]
    saved["param_groups"] = [*halves, *rest]


def _rename(saved: dict[str, Any]) -> None:
    saved["param_groups"][1]["param_names"] = ["other"]


def _same_name(saved: dict[str, Any]) -> None:
    saved["param_groups"][0]["param_names"] = ["wide", "wide"]


def _no_names(saved: dict[str, Any]) -> None:
    for group in saved["param_groups"]:
        del group["param_names"]


def _swap_state(saved: dict[str, Any]) -> None:
    saved["state"][0], saved["state"][1] = saved["state"].get(1, {}), saved["state"].get(0, {})


STATE_DICTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no state": (lambda saved: saved.pop("state"), "state"),
    "no groups": (lambda saved: saved.pop("param_groups"), "param_groups"),
    "state is a list": (lambda saved: saved.update(state=[]), "state"),
    "groups are a dict": (lambda saved: saved.update(param_groups={}), "param_groups"),
    "state of one is a list": (lambda saved: saved["state"].update({0: [1]}), "state"),
    "group without params": (lambda saved: saved["param_groups"][0].pop("params"), "params"),
    "group without rule": (lambda saved: saved["param_groups"][0].pop("rule"), "rule"),
    "group is a list": (lambda saved: saved["param_groups"].__setitem__(0, []), "group"),
    "a group fewer": (lambda saved: saved["param_groups"].pop(), "bias"),
    "a parameter fewer": (lambda saved: saved["param_groups"][0]["params"].pop(), "param"),
    "other rule": (lambda saved: saved["param_groups"][0].update(rule="nope"), "rule"),
    "bad lr": (lambda saved: saved["param_groups"][0].update(lr=math.nan), "lr"),
    "bad view": (lambda saved: saved["param_groups"][0].update(view="split(1,1)"), "view"),
    "renamed": (_rename, "other"),
    "names twice": (_same_name, "wide"),
    "merged": (_merge, "group"),
    "split": (_split, "group"),
    "swapped state": (_swap_state, "wide"),
}
HARMLESS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "as it was": lambda saved: None,
    "groups reversed": lambda saved: saved["param_groups"].reverse(),
    "foreign key": lambda saved: saved["param_groups"][0].update(framework=1),
    "foreign entry": lambda saved: saved.update(version=3),
    "no names": _no_names,
    "foreign state": lambda saved: saved["state"].setdefault(0, {}).update(mine=torch.zeros(3)),
    "no view": lambda saved: saved["param_groups"][0].pop("view"),
    "no scale": lambda saved: saved["param_groups"][0].pop("scale"),
}


@given(RULES, st.sampled_from([*STATE_DICTS, *HARMLESS]))
@EXAMPLES
def test_state_dicts(rule: str, how: str) -> None:
    training, target = Training(rule), Training(rule, steps=0)
    saved = copy.deepcopy(training.optimizer.state_dict())
    if how in HARMLESS:
        HARMLESS[how](saved)
        target.optimizer.load_state_dict(saved)
        for param, other in zip(target.params.values(), training.params.values(), strict=True):
            param.data.copy_(other)
        target.set_gradients(2)
        # Groups in another order stack matrices in another order.
        steps_equally(target, training, exactly=how != "groups reversed")
        return
    damage, name = STATE_DICTS[how]
    damage(saved)
    empty = how == "swapped state" and not training.optimizer.state.get(training.params["wide"])
    kept = copy.deepcopy(saved)
    went = happens(target, lambda: target.optimizer.load_state_dict(saved), name)
    assert went is empty
    assert repr(saved) == repr(kept)
