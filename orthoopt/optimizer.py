"""OrthoOpt: the only class with a ``step()``.

A step reads each group's options, moves the state of its rule, sees parameters as matrices, stacks same-shaped ones,
lets the rule make directions, and subtracts them scaled. Which rule does what is a string in the group.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from orthoopt import buckets, checkpoint, compiled, rules, staging
from orthoopt._work import Work, collect
from orthoopt.admission import Admission
from orthoopt.autocast import kinds_with_autocast, without_autocast
from orthoopt.capture import check_capture
from orthoopt.checks import SeenState, check_group, check_loaded
from orthoopt.diagnostics import Recorder, state_bytes
from orthoopt.groups import check_rates, complete_group
from orthoopt.guard import Guard, LargeUpdate, must_hold_back
from orthoopt.nonfinite import check_policy
from orthoopt.prepared import Matrices
from orthoopt.settled import Settled
from orthoopt.sharing import is_one_of_many, new_engine
from orthoopt.spelling import near
from orthoopt.state_format import STATE_FORMAT, check_format
from orthoopt.step_options import DEFAULTS, StepOptions, check_options
from orthoopt.taking import Taking, asks_the_host, complete_state
from orthoopt.views import parse_view
from orthoopt.watched import watchable

if TYPE_CHECKING:
    from orthoopt.distributed.engine import Engine
    from orthoopt.distributed.step import Step


class OrthoOpt(Optimizer):
    """One optimizer for all rules; each param group says which rule it gets.

    Args:
        params: param groups, dicts of strings and numbers, each with a ``"rule"``
            (``orthoopt.rules.names()``), usually from :func:`orthoopt.param_groups`. ``params`` in a group may hold
            tensors or ``(name, tensor)`` pairs. Further keys: ``view`` (how parameters are seen as matrices),
            ``scale`` (matrix rules; default ``"match_rms_adamw"``), ``padding_row`` (matrix rules; the row of an
            embedding that gets no update), ``role`` (for people), ``lr``, ``weight_decay``, and the rule's own options.
        lr: learning rate of groups without their own, a number or a one-element tensor. With the default scale an
            AdamW learning rate carries over.
        weight_decay: decoupled: ``W ← (1 − lr·weight_decay)·W`` before the update, for groups without their own.
        weight_decay_mode: ``"decoupled"``, ``"independent"`` or ``"cautious"``, see :mod:`orthoopt.weight_decay`.
        maximize: ascend instead of descend.
        nonfinite: what a gradient with an infinity or a NaN does. ``"skip"``: that step changes nothing, and is
            counted in :attr:`skipped_steps`; accelerators are not waited for. ``"raise"``: FloatingPointError naming
            the parameter, before anything changes. ``"ignore"``: nobody looks, as in torch.optim; it enters the state.
            Saves a read of every gradient, for those who check or clip already.
        step_options: ``state_dtype``, ``rounding``, ``max_update_rms``, ``large_update`` and ``share``, see
            :mod:`orthoopt.step_options`; a group's own win.

    Raises:
        TypeError: an unknown key in a group, or an unknown option.
        ValueError: a missing or unknown rule, or a bad value, naming the group and the options.
    """

    def __init__(
        self,
        params: Iterable[Mapping[str, Any]],
        lr: float | Tensor = 1e-3,
        weight_decay: float = 0.1,
        *,
        weight_decay_mode: str = "decoupled",
        maximize: bool = False,
        nonfinite: str = "skip",
        **step_options: Unpack[StepOptions],
    ) -> None:
        check_policy(nonfinite)
        for name in step_options:
            if name not in DEFAULTS:
                known = ("lr", "weight_decay", "weight_decay_mode", "maximize", "nonfinite", *DEFAULTS)
                raise TypeError(
                    f"{type(self).__name__} has no option {name!r}{near(name, known)} Options of every optimizer: "
                    f"{', '.join(known)}"
                )
        check_options(step_options)
        check_rates(lr, weight_decay, "defaults")
        defaults = {
            "lr": lr, "weight_decay": weight_decay, "weight_decay_mode": weight_decay_mode, "maximize": maximize,
            "nonfinite": nonfinite, **DEFAULTS, **step_options,
        }  # fmt: skip
        self._admission = Admission()
        self._steps, self._guard = 0, Guard()
        self._recorder: Recorder | None = None
        self._last: Recorder | None = None
        self._matrices, self._number = Matrices(), compiled.enlist(self)
        self._engine: Engine | None = None
        self._seen_options, self._seen_state, self._settled = set[Any](), SeenState(), Settled()
        super().__init__(params, defaults)  # type: ignore[arg-type]  # torch wants dict where a Mapping will do
        # Cyclic schedulers look for one of these among the defaults, and cycle it in every group. They write momentum,
        # but read betas, so those must be in all groups.
        holders = {name: [group for group in self.param_groups if name in group] for name in ("momentum", "betas")}
        if holders["momentum"]:
            self.defaults["momentum"] = holders["momentum"][0]["momentum"]
        elif holders["betas"] and len(holders["betas"]) == len(self.param_groups):
            self.defaults["betas"] = holders["betas"][0]["betas"]

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore after unpickling, and at every load."""
        super().__setstate__(state)
        self._admission = Admission() if "_admission" not in self.__dict__ else self._admission
        self._matrices, self._engine = Matrices(), None
        self._seen_options, self._seen_state, self._settled = set[Any](), SeenState(), Settled()
        if "_guard" not in self.__dict__:
            self._steps, self._guard, self._recorder, self._last = 0, Guard(), None, None
        self._number = compiled.enlist(self) if "_number" not in self.__dict__ else self._number
        self._list_params()
        check_format(self.param_groups)
        for group in self.param_groups:
            group["state_format"] = STATE_FORMAT
            group.setdefault("maximize", False)
            group.setdefault("nonfinite", "skip")
            group.setdefault("weight_decay_mode", "decoupled")
            for option, value in DEFAULTS.items():
                group.setdefault(option, value)
            for name, default in rules.get(group["rule"]).defaults.items():
                group.setdefault(name, default)
            for param in group["params"]:
                step = self.state[param].get("step") if param in self.state else None
                if step is not None and not isinstance(step, Tensor):
                    self.state[param]["step"] = torch.tensor(float(step), dtype=torch.float32)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; see the class for its keys. Nothing is added if anything in it is wrong."""
        number = len(self.param_groups)
        super().add_param_group(complete_group(param_group, self.defaults, number))
        self._list_params()

    def _list_params(self) -> None:
        self.all_params: list[Tensor] = [param for group in self.param_groups for param in group["params"]]

    @property
    def skipped_steps(self) -> int:
        """How many steps a non-finite gradient has made empty since this object was made; waits for the device."""
        return int(self._admission.skipped)

    @property
    def large_updates(self) -> list[LargeUpdate]:
        """What ``max_update_rms`` has kept from parameters since this object was made; waits for the device."""
        return self._guard.report()

    def diagnostics(self) -> dict[str, float]:
        """Figures for a logger: state and skipped steps, and of the last step within ``orthoopt.recording`` more.

        Keys and what they mean stand in :mod:`orthoopt.diagnostics`. Waits for the device.
        """
        seen = self._recorder or self._last
        return {
            **({} if seen is None else seen.figures()),
            **state_bytes(self.param_groups, self.state),
            "skipped_steps": float(self.skipped_steps),
            "large_updates": float(sum(update.times for update in self.large_updates)),
        }

    def stated_need(self) -> int | None:
        """Bytes that the largest bucket of the last step needs beside parameters, gradients and state.

        A step holds one bucket at a time. Matrices that a kernel takes in one pass need nothing; elementwise rules are
        not counted. 0 before the first step, None where a rule does not say what it works in: ``spectral`` does. Of a
        step over shards it is what the largest wave holds, see docs/distributed.md.
        """
        needs = [self._matrices.bytes_needed(), 0 if self._engine is None else self._engine.need]
        known = [need for need in needs if need is not None]
        return max(known) if len(known) == len(needs) else None

    def init_state(self) -> None:
        """Create the state of every parameter now, as some frameworks want before the first step."""
        self._create_state(self.all_params)

    def _create_state(self, params: Collection[Tensor]) -> None:
        wanted = set(params)
        for group in self.param_groups:
            rule, view = rules.get(group["rule"]), parse_view(group["view"])
            for param in group["params"]:
                if param in wanted:
                    complete_state(self.state, param, rule, view, rule.options(group))

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @watchable
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One optimization step.

        Args:
            closure: re-evaluates the model and returns the loss.

        Returns:
            What the closure returned, or None.

        Raises:
            RuntimeError: a sparse, complex or sharded gradient that the rule cannot take, naming the parameter; a step
                that a CUDA graph cannot hold, see :mod:`orthoopt.capture`.
            FloatingPointError: a non-finite gradient under ``nonfinite="raise"``.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if torch.compiler.is_compiling():
            compiled.traced_step(self, self._number)
        else:
            if self._step_again():
                return loss
            grads = {p: p.grad for group in self.param_groups for p in group["params"] if p.grad is not None}
            if not self.state and checkpoint.only_creates_state(self.param_groups, grads):
                self._create_state(grads)
            else:
                self.step_with(grads)
        return loss

    @torch.no_grad()
    @without_autocast
    def step_with(self, grads: Mapping[Tensor, Tensor]) -> None:
        """One optimization step with these gradients, whatever the parameters' ``grad`` is.

        Args:
            grads: parameter -> gradient, of its shape; parameters without one stay as they are.

        Raises:
            as :meth:`step`.
        """
        self._opt_called = True  # what torch's schedulers ask, see below
        self._settled.forget()  # a picture is of the step before and of no other
        if torch.is_inference_mode_enabled() and not any(param.is_inference() for param in grads):
            # State made in that mode could not be written outside of it, nor could what caches keep.
            with torch.inference_mode(False), torch.no_grad():
                self.step_with(grads)
            return
        for number, group in enumerate(self.param_groups):
            check_group(group, number, self._seen_options)
        work = [part for group in self.param_groups for part in collect(group, grads)]
        self._seen_state.check(work, self.state)
        check_capture(work, self.state)
        team = None
        if is_one_of_many():
            self._engine = self._engine or new_engine()
            team = self._engine.begin(self.param_groups, work)
        gates = self._admission.admit(work, team)
        if gates is None:
            return
        self._steps += 1
        plain, staged = staging.split(work, self.state, self._recorder is not None)
        if staged:
            held = self._take_in_halves(staged, gates, must_hold_back(self.param_groups), team)
        if plain:
            within = team.over(plain) if team is not None and staged else team
            Taking(self.state, gates).take(plain, self._matrices, within)
        if staged:
            staging.commit(held, self.state, gates)
        elif team is None and self._settled.wants_picture():
            parts = self._settled.take(self.param_groups, work, self.state)
            if not (parts and self._matrices.settle(parts)):
                self._settled.forget()

    @torch.no_grad()
    def _step_again(self) -> bool:
        """The step, if it is the last one with other gradients; False, with nothing done, if it is not."""
        if self._recorder is not None or torch.is_inference_mode_enabled() or is_one_of_many():
            return False
        work = self._settled.again(self.param_groups, self.state)
        if work is None:
            return False
        try:
            if kinds_with_autocast(part.device for part in work):
                return False
            self._take_again(work)
            return True
        finally:
            self._settled.let_go()

    def _take_again(self, work: Sequence[Work]) -> None:
        self._opt_called = True
        check_capture(work, self.state)
        matrices, items, gates = self._matrices, list[buckets.Item](), None
        if asks_the_host(work):
            # No value of a gradient matters to this, and once all are read little of Python is left in the caches.
            items, _ = Taking(self.state, {}).items(work, matrices)
            matrices.prepare(items)
        try:
            gates = self._admission.admit(work, None)
        finally:
            if gates is None:
                matrices.release(items)
        if gates is not None:
            self._steps += 1
            taking = Taking(self.state, gates)
            taking.update(work, matrices, items or taking.items(work, matrices)[0])

    def _take_in_halves(
        self, staged: Sequence[Work], gates: Mapping[torch.device, Tensor], hold_back: bool, team: Step | None
    ) -> list[staging.Entry]:
        """Steps whose outcome is looked at before it is written; returns what is held back, to be written last."""
        looking, held = self._recorder is not None, []
        if self._recorder is not None:
            self._recorder.begin()

        def take(parts: Sequence[Work]) -> None:
            # Their parameters are temporary: nothing about them is worth keeping.
            Taking(self.state, gates).take(parts, Matrices(), None if team is None else team.over(parts, new_engine()))

        for portion in staging.portions(staged):
            entries = staging.compute(portion, self.state, gates, looking, take)
            self._guard.judge(entries, self._steps)
            if self._recorder is not None:
                self._recorder.see(entries)
            if hold_back:
                held += entries
            else:
                staging.commit(entries, self.state, gates)
        return held

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` gave, matching parameters by name where both sides have names.

        State keeps the dtype it was saved in, float32 moments of bfloat16 parameters included. See docs/checkpoints.md
        for ``torch.distributed.checkpoint``, and for what else state can come from.

        Args:
            state_dict: from :meth:`state_dict` of an optimizer over the same parameters, in any order.

        Raises:
            ValueError: names or shapes do not match, or the state dict is another optimizer's or a later version's;
                nothing has been loaded then.
        """
        groups, state = self.param_groups, self.state
        try:
            checkpoint.load(self, state_dict, super().load_state_dict)
            check_loaded(self.param_groups, self.state)
        except BaseException:
            self.param_groups, self.state = groups, state
            self._list_params()
            raise


# A scheduler puts a function of its own before ``step``, to see it called; torch.compile must not trace that function,
# and breaks its graph there. It leaves a ``step`` alone that says it is wrapped already, and asks for ``_opt_called``.
OrthoOpt.step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]  # a mark of torch's own
