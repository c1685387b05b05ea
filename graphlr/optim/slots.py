"""Optimizer state as a flat list of arrays, each with the names of its parameters.

Inside the step the state is whatever pytree optax made; across the jit boundary it is
the list of its leaves. To be saved, and to survive groups that are cut differently, it
is a dict by parameter: `slots.model.head.kernel.exp_avg`. A leaf that a whole group
shares (the count of an optax transformation) is written for each of its parameters.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from graphlr import keys
from graphlr.messages import listing


class Held:
    """What an optimizer holds between two steps: its slots and its count of updates.

    Attributes:
        slots: The leaves of its state.
        counter: Updates already applied, int32[]; schedules count it.

    Example:
        >>> held = Held([jnp.zeros(2)])
        >>> held.advance([jnp.ones(2)], jnp.int32(1), updates=1)
        >>> held.slots, held.step
        ([Array([1., 1.], dtype=float32)], 1)
    """

    def __init__(self, slots: Sequence[jax.Array] = (), step: int = 0) -> None:
        self.slots = list(slots)
        self.step = step

    @property
    def step(self) -> int:
        """The counter on the host; waits for the device where only it knows."""
        if self._step is None:
            self._step = int(self.counter)
        return self._step

    @step.setter
    def step(self, step: int) -> None:
        self._step: int | None = step
        self.counter = jnp.asarray(step, jnp.int32)

    def with_slots(self, slots: list[jax.Array]) -> Held:
        """The same count with other slots."""
        other = copy.copy(self)
        other.slots = slots
        return other

    def advance(
        self, slots: list[jax.Array], counter: jax.Array, updates: int | None
    ) -> None:
        """Take over the slots and the counter after more updates.

        Args:
            slots: The new ones.
            counter: Updates already applied, int32[].
            updates: How many more; None where only the device knows.
        """
        self._step = None if updates is None else self.step + updates
        self.slots = slots
        self.counter = counter


class Slot(NamedTuple):
    """One leaf of the state.

    Attributes:
        name: Field names of the state, `exp_avg`.
        paths: Dotted paths of the parameters it belongs to.
        kind: "one" parameter's own, "each" (a vector with an entry for each of
            `paths`), or "shared" by all of them.
    """

    name: str
    paths: tuple[str, ...]
    kind: str

    @property
    def keys(self) -> list[str]:
        """Its keys in a saved state."""
        return [keys.slot(path, self.name) for path in self.paths]


class Layout(NamedTuple):
    """Where each leaf of a state belongs; equal layouts hold interchangeable lists.

    Attributes:
        tree: Tree structure of the state; None where nobody puts it together again.
        slots: One for each leaf.
        types: Shape and dtype of each leaf.
    """

    tree: Hashable
    slots: tuple[Slot, ...]
    types: tuple[jax.ShapeDtypeStruct, ...]

    def named(
        self, arrays: Sequence[jax.Array], paths: Mapping[str, str] | None = None
    ) -> dict[str, jax.Array]:
        """The state by parameter: `{"slots.model.head.kernel.exp_avg": array}`.

        Args:
            arrays: The leaves.
            paths: New path of each parameter to keep; None keeps all as they are.
        """
        named: dict[str, jax.Array] = {}
        for slot, array in zip(self.slots, arrays, strict=True):
            for i, path in enumerate(slot.paths):
                if paths is None or path in paths:
                    name = paths[path] if paths else path
                    value = array[i] if slot.kind == "each" else array
                    named[keys.slot(name, slot.name)] = value
        return named

    def keys(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Every key of the named state, with its shape and dtype."""
        return {
            key: jax.ShapeDtypeStruct((), like.dtype) if slot.kind == "each" else like
            for slot, like in zip(self.slots, self.types, strict=True)
            for key in slot.keys
        }

    def flat(
        self, named: Mapping[str, Any], fresh: Sequence[jax.Array] | None
    ) -> list[jax.Array]:
        """The list of leaves: of `named` what it has, of `fresh` the others.

        Args:
            named: By parameter, as `named` gives it.
            fresh: Leaves of this layout, or None where `named` has every one.

        Raises:
            ValueError: Parameters that now share a leaf bring different values of it.
        """
        named = {**(self.named(fresh) if fresh else {}), **named}
        leaves = []
        for slot, like in zip(self.slots, self.types, strict=True):
            values = [named[key] for key in slot.keys]
            if slot.kind == "shared":
                _check_equal(slot, values)
            array = jnp.stack(values) if slot.kind == "each" else values[0]
            if np.shape(array) != like.shape:
                raise ValueError(
                    f"{slot.keys[0]} has shape {np.shape(array)}, and the parameter "
                    f"now needs {like.shape}: make a new optimizer for it"
                )
            leaves.append(jnp.asarray(array, like.dtype))
        return leaves


def layout_of(state: optax.OptState, labels: Mapping[str, str]) -> Layout:
    """The layout of a `multi_transform` state over `{path: parameter}`.

    Args:
        state: The state, of arrays or of shapes.
        labels: `{path: group}`.

    Example:
        >>> import optax
        >>> tx = optax.multi_transform({"g": optax.adam(0.1)}, {"m.w": "g"})
        >>> layout = layout_of(tx.init({"m.w": jnp.ones(2)}), {"m.w": "g"})
        >>> list(layout.keys())
        ['slots.m.w.count', 'slots.m.w.mu', 'slots.m.w.nu']
    """
    leaves, tree = jax.tree_util.tree_flatten_with_path(state)
    seen: Counter[str] = Counter()
    slots, types = [], []
    for path, leaf in leaves:
        slot = _slot(path, leaf.shape, labels)
        # Two transformations of one chain may call a field alike (`count`): the second
        # is `count_1`, in the order of the chain, which doesn't change.
        times = max((seen[key] for key in slot.keys), default=0)
        seen.update(slot.keys)
        slots.append(slot._replace(name=f"{slot.name}_{times}") if times else slot)
        types.append(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
    return Layout(tree, tuple(slots), tuple(types))


def _slot(
    parts: Sequence[Any], shape: tuple[int, ...], labels: Mapping[str, str]
) -> Slot:
    # The way to a leaf is, for a state of `optax.multi_transform`,
    #   .inner_states ['group'] .inner_state [0] .mu ['model.head.kernel']
    # with the names of fields, the positions in the chain, and as keys of dicts first
    # the group and then, if the leaf is one parameter's own, its path.
    fields = [part.name for part in parts if hasattr(part, "name")]
    name = ".".join(f for f in fields if f not in ("inner_states", "inner_state"))
    entries = [part.key for part in parts if hasattr(part, "key")]
    group, *inside = entries
    path = next((entry for entry in inside if entry in labels), None)
    if path is not None:
        return Slot(name, (path,), "one")
    # JAX sorts the keys of a dict, so this is the order in which the transformations of
    # this package see the parameters of a group, and put their counts into a vector.
    paths = tuple(sorted(path for path, label in labels.items() if label == group))
    # Not by name alone: somebody else's state may have one number called so.
    each = fields[-1] == "steps" and shape == (len(paths),)
    return Slot(name, paths, "each" if each else "shared")


def _check_equal(slot: Slot, values: Sequence[Any]) -> None:
    different = [
        path
        for path, value in zip(slot.paths, values, strict=True)
        if not np.array_equal(value, values[0])
    ]
    if different:
        raise ValueError(
            f"{slot.name} is one number for a whole group, and the parameters that are "
            f"now in one group bring different ones: {slot.paths[0]} has {values[0]}, "
            f"{listing(different)} have others. Keep them in groups of their own."
        )
