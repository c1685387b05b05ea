"""`Optimizer`: groups of parameters, their rules and their live numbers."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Hashable, Mapping
from typing import Any, ClassVar, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from graphlr.groups.group import ParamGroup, ParamGroups
from graphlr.messages import listing
from graphlr.optim.adoption import SlotPlan, moved_slots, plan_slots
from graphlr.optim.arguments import (
    Rule,
    as_groups,
    bind,
    defaults_of,
    make_group,
    rule_of,
    signature_of,
)
from graphlr.optim.as_optax import as_optax
from graphlr.optim.group_keys import COMMON, check_number
from graphlr.optim.lr_scheduler.base import Schedule, as_schedule
from graphlr.optim.slots import Held
from graphlr.optim.traced import (
    GroupSpec,
    group_lr,
    group_spec,
    only_numbers_differ,
    pack,
    unpack,
)
from graphlr.runtime import wide

_Made = TypeVar("_Made")


class Optimizer:
    """Groups of parameters, a rule for each, and their live numbers.

    The learning rate of a group is `schedule(lr, t) * lr_scale`, t the updates already
    applied. Setting a number (`optimizer.param_groups["head"]["lr"] = 0.1`) is seen by
    the next step and never recompiles; setting a flag, or a momentum from or to zero,
    traces once more.

    A subclass has a `rule`; its signature is `(params, lr, *hyperparameters of the
    rule, *, keys of every group)`.

    Args:
        params: A list of groups, each `{"params": selector, key: value, ...}`, or one
            selector: a module, a Variable, an iterable of them, a glob over dotted
            paths (`"features.*.bias"`, `**` crosses dots), a compiled regex, an nnx
            filter or `(path, value) -> bool`, or `...` for everything not named
            elsewhere. A group takes `name`, `lr`, `lr_scale`, `lr_sch`, `frozen`,
            `clip_grad_max_norm`, `clip_grad_norm_type`, `grad_centralization`,
            `optimizer` (another class of `glr.optim` for this group) and every
            hyperparameter of the rule.
        args: `lr` (a number, a schedule `step -> lr` or a 1-D array), then
            hyperparameters in the rule's order.
        rule: A function of hyperparameters that returns an optax transformation giving
            the direction of a step, or the whole step if it takes `lr`. Numbers reach
            it traced; a `momentum` of zero reaches it as the constant 0.0.
        keys: Values of group keys and hyperparameters for groups that don't say.

    Raises:
        TypeError: An unknown keyword; a selector or value of the wrong type.
        KeyError: A group without `params`, or with an unknown key.
        ValueError: No groups, a bad number, a parameter in two groups.

    Example:
        >>> import optax
        >>> optimizer = Optimizer(
        ...     [{"params": "**.bias", "lr_scale": 2.0}, {"params": ...}],
        ...     rule=lambda: optax.scale_by_lion(), lr=1e-4,
        ... )
        >>> optimizer.param_groups[0]["lr_scale"] = 3.0
        >>> optimizer.lr()
        {'group0': 0.00030000000000000003, 'group1': 0.0001}
    """

    rule: ClassVar[Callable[..., optax.GradientTransformation]]
    _rule: Rule
    _signature: ClassVar[inspect.Signature]

    def __init_subclass__(cls, lr: float = 1e-3) -> None:
        """Give a class with a rule the rule's signature, after `params` and `lr`."""
        if not hasattr(cls, "rule"):
            raise TypeError(f"{cls.__name__} needs a static method rule(...)")
        cls._rule = rule_of(cls.rule)
        cls._signature = cls.__signature__ = signature_of(cls._rule, lr)

    def __init__(
        self,
        params: object,
        *args: Any,
        rule: Callable[..., optax.GradientTransformation] | None = None,
        **keys: Any,
    ) -> None:
        signature = None if rule is not None else getattr(self, "_signature", None)
        if rule is not None:
            self._rule = rule_of(rule)
            signature = signature_of(self._rule, lr=1e-3)
        if signature is None:
            raise TypeError(
                "Optimizer needs a rule: Optimizer(params, rule=lambda: "
                "optax.scale_by_lion(), lr=1e-4), or a ready one, SGD(params, lr=0.1)"
            )
        given = bind(type(self).__name__, signature, (params, *args), keys)
        groups = as_groups(given.pop("params"))
        if not groups:
            raise ValueError(
                "optimizer got an empty parameter list: "
                "give it a module or groups, [{'params': ...}]"
            )
        self.defaults: dict[str, Any] = given
        self.param_groups = ParamGroups()
        self.lr_sch: Schedule | None = None
        self.held = Held()
        self.adopted: SlotPlan | None = None  # what the slots are for
        self._rules: list[Rule] = []
        self._changes = self._structures = 0
        self._cache: dict[str, Any] = {}
        for group in groups:
            self.add_param_group(group)

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Add a group, at any time; the next step trains it, with slots of its own.

        Args:
            group: `{"params": selector, key: value, ...}`.

        Raises:
            TypeError: `group` is no dict.
            KeyError: `params` is missing, or a key is unknown.
            ValueError: A bad number; a parameter or name that another group has.

        Example:
            >>> optimizer = Optimizer("a.**", rule=optax.identity, lr=0.1)
            >>> optimizer.add_param_group({"params": "b.**", "lr": 0.2})
            >>> optimizer.lr()
            {'group0': 0.1, 'group1': 0.2}
        """
        if not isinstance(group, Mapping):
            raise TypeError(
                f"param_group must be a dict, but got {type(group)}: "
                "give {'params': ..., 'lr': 0.1}"
            )
        made, rule = self._make_group(group)
        self.param_groups.add(made)
        self._rules.append(rule)
        made.on_change = self._note_change
        self._note_change({}, made)

    def __setattr__(self, name: str, value: object) -> None:
        if name in ("lr", "rule") or (name in self.__dict__ and name == "param_groups"):
            raise AttributeError(
                f"optimizer.{name} can't be set: "
                "optimizer.param_groups['group0']['lr'] = 0.1, or "
                "optimizer.scale_lr(0.1), optimizer.add_param_group({'params': ...})"
            )
        super().__setattr__(name, value)

    def scale_lr(self, factor: float | Mapping[str, float]) -> None:
        """Multiply the groups' base learning rates by `factor`.

        Where the rate is no multiple of it (a schedule as `lr`, an optax schedule, a
        floor) `lr_scale` is multiplied instead, so that every rate is.

        Args:
            factor: For every group, or by name for some: `{"head": 0.5}`.

        Raises:
            KeyError: No group has such a name.

        Example:
            >>> optimizer = Optimizer("**", rule=optax.identity, lr=0.5)
            >>> optimizer.scale_lr(0.5)
            >>> optimizer.lr()
            {'group0': 0.25}
        """
        if not isinstance(factor, Mapping):
            factor = dict.fromkeys((group.name for group in self.param_groups), factor)
        factors = {name: check_number("lr_scale", x) for name, x in factor.items()}
        for group in [self.param_groups[name] for name in factors]:
            schedule = group["lr_sch"] or self.lr_sch
            by_lr = isinstance(group["lr"], float) and (
                schedule is None or schedule.relative
            )
            key = "lr" if by_lr else "lr_scale"
            group[key] = group[key] * factors[group.name]

    def lr(self, step: int | None = None) -> dict[str, float]:
        """Every group's learning rate for the update after `step` updates (now)."""
        step = self.step if step is None else step
        return {
            spec.name: float(group_lr(spec, group, step))
            for spec, group in zip(self.specs, self.param_groups, strict=True)
        }

    def sample_lr(self, steps: int, *, lr_sch: object = None) -> dict[str, np.ndarray]:
        """Every group's learning rates of updates 0 to `steps - 1`, float64[steps].

        Args:
            steps: How many.
            lr_sch: Schedule of the groups without one of their own, in place of the
                optimizer's.

        Example:
            >>> optimizer = Optimizer("**", rule=optax.identity, lr=0.5)
            >>> optimizer.sample_lr(3, lr_sch=[0.3, 0.2, 0.1])["group0"].tolist()
            [0.3, 0.2, 0.1]
        """
        schedule = self.lr_sch if lr_sch is None else as_schedule(lr_sch)
        rates = {}
        for group, rule in zip(self.param_groups, self._rules, strict=True):
            spec = group_spec(group, rule, schedule)
            rate = group_lr(spec, group, np.arange(steps))
            rates[group.name] = np.array(np.broadcast_to(rate, (steps,)), float)
        return rates

    def as_optax(self, params: optax.Params) -> optax.GradientTransformation:
        """The same groups as a plain optax transformation, for any pytree with paths.

        A snapshot: what becomes of the optimizer later does not reach it. Change
        numbers in the state instead, between two updates and without compiling,
        `state.values["head"]["lr_scale"] = jnp.float32(0.1)`, where checkpoints keep
        them (see `GroupsState`); to freeze or thaw, call `as_optax` and `init` again.
        `lr_of(state)` reads the rates of the next update, and `lr_of(state, tx)` those
        of numbers that were just edited.

        Args:
            params: The pytree to be trained, for its paths: nnx state, Linen,
                Equinox or Haiku parameters, dicts.

        Returns:
            `init(params)` and `update(grads, state, params)`, which refuses a misspelt
            key in `state.values` and a state of other groups.

        Raises:
            ValueError: A parameter is in two groups or in none.

        Example:
            >>> from graphlr.optim import lr_of
            >>> params = {"w": jnp.ones(2), "b": jnp.ones(2)}
            >>> tx = Optimizer(
            ...     [{"params": "b", "lr_scale": 2.0}, {"params": ...}],
            ...     rule=optax.identity, lr=0.1,
            ... ).as_optax(params)
            >>> state = tx.init(params)
            >>> {name: round(lr, 6) for name, lr in lr_of(state).items()}
            {'group0': 0.2, 'group1': 0.1}
            >>> updates, state = tx.update(params, state, params)
            >>> updates["b"].tolist()
            [-0.20000000298023224, -0.20000000298023224]
        """
        values = unpack(self.specs, self.numbers)
        return as_optax(params, self.param_groups, self.specs, values, self.step)

    # What the graph reads and advances; each is remade only after a change.

    @property
    def step(self) -> int:
        """Updates applied so far; what schedules count."""
        return self.held.step

    @step.setter
    def step(self, step: int) -> None:
        self.held.step = step

    def plan_slots(
        self, labels: Mapping[str, str], variables: Mapping[str, nnx.Variable]
    ) -> SlotPlan:
        """The slots that training `variables` takes; changes nothing.

        Args:
            labels: `{path: group}` of what is trained.
            variables: The same parameters, by path.
        """
        plan = plan_slots(self.specs, self.numbers, labels, variables)
        known = self.adopted
        return known if known is not None and plan.same_as(known) else plan

    def slots_for(self, plan: SlotPlan) -> list[jax.Array]:
        """The slots for `plan`: what goes on keeps its own; changes nothing."""
        if plan is self.adopted:
            return self.held.slots
        return moved_slots(self.held.slots, self.adopted, plan, self.numbers)

    def adopt(self, plan: SlotPlan, slots: list[jax.Array]) -> None:
        """Train what `plan` is for from now on, with `slots`."""
        self.held.slots, self.adopted = slots, plan

    @property
    def version(self) -> tuple[Any, ...]:
        """Differs after any change of a group, of the schedule, or of float width."""
        return (self._changes, self.lr_sch, wide())

    @property
    def specs(self) -> tuple[GroupSpec, ...]:
        """The constants of a trace, one for each group."""
        structure = (self._structures, *self.version[1:])
        return self._cached("specs", structure, self._specs)

    @property
    def numbers(self) -> jax.Array:
        """Every live number: float32[n], float64[n] under x64."""
        return self._cached("numbers", self.version, self._numbers)

    def _note_change(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        self._changes += 1
        if not only_numbers_differ(old, new):
            self._structures += 1

    def _specs(self) -> tuple[GroupSpec, ...]:
        pairs = zip(self.param_groups, self._rules, strict=True)
        return tuple(group_spec(group, rule, self.lr_sch) for group, rule in pairs)

    def _numbers(self) -> jax.Array:
        return jnp.asarray(np.asarray(pack(self.specs, self.param_groups), float))

    def _cached(self, name: str, version: Hashable, make: Callable[[], _Made]) -> _Made:
        if self._cache.get(name, (None,))[0] != version:
            self._cache[name] = (version, make())
        return self._cache[name][1]

    def _make_group(self, given: Mapping[str, Any]) -> tuple[ParamGroup, Rule]:
        group = dict(given)
        taken = {other.name for other in self.param_groups}
        free = (f"group{i}" for i in itertools.count(len(taken)))
        name = group.setdefault("name", next(n for n in free if n not in taken))
        if "params" not in group:
            raise KeyError(
                f"params: group {name!r} has {listing(group)}; add {{'params': ...}}"
            )
        other = group.pop("optimizer", None)
        if other is None:
            return make_group(self._rule, self.defaults, group), self._rule
        if not _is_ready(other):
            raise TypeError(
                f"group {name!r}: optimizer must be a class of glr.optim, "
                f"such as glr.optim.AdamW, not {other!r}"
            )
        shared = {key: self.defaults[key] for key in ("lr", *COMMON)}
        defaults = {**defaults_of(other._signature), **shared}
        return make_group(other._rule, defaults, group), other._rule

    def __repr__(self) -> str:
        groups = "\n".join(
            f"  {group.name}: {group.selector}, lr {lr:g}"
            for group, lr in zip(self.param_groups, self.lr().values(), strict=True)
        )
        return f"{type(self).__name__}(\n{groups}\n)"


def _is_ready(kind: object) -> bool:
    """Whether it is a class of optimizers with a rule, such as SGD."""
    return (
        isinstance(kind, type) and issubclass(kind, Optimizer) and hasattr(kind, "rule")
    )
