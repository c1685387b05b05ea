"""The optimizers of a graph as one thing: names, rates, numbers, slots, steps."""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import NamedTuple, overload

import jax

from graphlr.groups.group import ParamGroup
from graphlr.optim.adoption import SlotPlan
from graphlr.optim.lr_scheduler.base import as_schedule
from graphlr.optim.optimizer import Optimizer
from graphlr.optim.slots import Held
from graphlr.optim.traced import GroupSpec

_NUMBERED = re.compile(r"optimizer\d+\.").match


class NamedGroup(NamedTuple):
    """A group as the graph knows it.

    Attributes:
        name: No other group of the graph has it.
        group: Its numbers and flags.
        optimizer: Which one it belongs to.
    """

    name: str
    group: ParamGroup
    optimizer: Optimizer


class Optimizers(Sequence[Optimizer]):
    """The optimizers of a graph, in the order in which they were added.

    Example:
        >>> from graphlr.optim import SGD
        >>> head = SGD([{"params": "b.**", "name": "head"}], lr=0.25)
        >>> both = Optimizers([SGD("a.**", lr=0.5), head])
        >>> both.lr, both.step
        ({'group0': 0.5, 'head': 0.25}, 0)
    """

    def __init__(self, optimizers: Iterable[Optimizer] = ()) -> None:
        self._all = list(optimizers)

    def add(self, optimizer: Optimizer, lr_sch: object) -> None:
        """Add an optimizer and the schedule of its groups that have none.

        Args:
            optimizer: To be added.
            lr_sch: A schedule, or what `as_schedule` takes; None for the optimizer's.

        Raises:
            ValueError: It is among them already, or there would be two schedules.
        """
        if any(optimizer is other for other in self._all):
            raise ValueError("this optimizer is in the graph already: add it once")
        schedule = optimizer.lr_sch if lr_sch is None else as_schedule(lr_sch)
        if optimizer.lr_sch not in (None, schedule):
            raise ValueError(
                f"the optimizer has a schedule from another graph, {optimizer.lr_sch}, "
                f"which {schedule} would replace there too: make an optimizer of its "
                "own for this graph, or set optimizer.lr_sch"
            )
        own = optimizer.defaults["lr_sch"]
        if lr_sch is not None and own is not None:
            raise ValueError(
                f"two schedules, {own} of the optimizer and {schedule} of "
                "add_optimizer: give one of them"
            )
        optimizer.lr_sch = schedule
        self._all.append(optimizer)

    # --- groups ---

    @property
    def groups(self) -> list[NamedGroup]:
        """Every group, with the optimizer's number before a name that others have too.

        Example:
            >>> from graphlr.optim import SGD
            >>> both = Optimizers([SGD("a.**"), SGD("b.**")])
            >>> [name for name, _, _ in both.groups]
            ['optimizer0.group0', 'optimizer1.group0']
        """
        pairs = [(k, o, group) for k, o in enumerate(self) for group in o.param_groups]
        count = Counter(group.name for _, _, group in pairs)
        several = len(self) > 1
        made = []
        for k, optimizer, group in pairs:
            # A name that looks as if it had a number gets one too: all stay different.
            alike = count[group.name] > 1 or (several and _NUMBERED(group.name))
            name = f"optimizer{k}.{group.name}" if alike else group.name
            made.append(NamedGroup(name, group, optimizer))
        return made

    @property
    def lr(self) -> dict[str, float]:
        """Every group's learning rate at the next step, by name."""
        rates = [rate for optimizer in self for rate in optimizer.lr().values()]
        names = [name for name, _, _ in self.groups]
        return dict(zip(names, rates, strict=True))

    # --- what a step takes from them, and gives back ---

    # What every call asks for loops over the list itself: `self` is a Sequence whose
    # methods are in Python.

    @property
    def step(self) -> int:
        """Updates applied so far, of the optimizer that has most."""
        return max((optimizer.step for optimizer in self), default=0)

    @property
    def specs(self) -> list[tuple[GroupSpec, ...]]:
        """The constants of a trace, of each optimizer."""
        return [optimizer.specs for optimizer in self]

    @property
    def version(self) -> Sequence[Hashable]:
        """Differs after any change of any group."""
        return [optimizer.version for optimizer in self._all]

    @property
    def numbers(self) -> list[jax.Array]:
        """The live numbers of each optimizer."""
        return [optimizer.numbers for optimizer in self._all]

    @property
    def held(self) -> list[Held]:
        """The slots and the step count of each optimizer."""
        return [optimizer.held for optimizer in self]

    def slots_for(self, plans: Sequence[SlotPlan]) -> list[list[jax.Array]]:
        """The slots of each for its plan: what goes on keeps its own; reads only."""
        return [
            optimizer.slots_for(plan)
            for optimizer, plan in zip(self, plans, strict=True)
        ]

    def adopt(
        self, plans: Sequence[SlotPlan], slots: Sequence[list[jax.Array]]
    ) -> None:
        """Let each train what its plan is for, with these slots."""
        for optimizer, plan, own in zip(self, plans, slots, strict=True):
            optimizer.adopt(plan, own)

    def have_adopted(self, plans: Sequence[SlotPlan]) -> bool:
        """Whether each still holds the slots of its plan."""
        return all(map(operator.is_, [o.adopted for o in self._all], plans))

    @overload
    def __getitem__(self, index: int) -> Optimizer: ...
    @overload
    def __getitem__(self, index: slice) -> list[Optimizer]: ...
    def __getitem__(self, index: int | slice) -> Optimizer | list[Optimizer]:
        return self._all[index]

    def __iter__(self) -> Iterator[Optimizer]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)
