"""An exported step at work: its state, its numbers, its calls, and what it refuses."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.export
from flax import nnx

from graphlr import keys
from graphlr.engine.guards import one_at_a_time
from graphlr.engine.live import Live
from graphlr.export import binaries, structure
from graphlr.export.arguments import LEFT_OUT, call_signature, check_array
from graphlr.export.batch_sizes import ExportError
from graphlr.export.manifest import FORMAT, FileState, from_file, to_file, write
from graphlr.export.numbers import LiveNumbers, as_python
from graphlr.modules.variables import read
from graphlr.optim.slots import Held, Layout, Slot
from graphlr.runtime import compiler_options
from graphlr.state.loading import Loaded, compare, copied
from graphlr.state.state_dict import Entries, carried_entries, carried_from
from graphlr.step.indices import check_range
from graphlr.step.signature import Signature
from graphlr.step.types import (
    Arrays,
    Batch,
    Found,
    Inputs,
    Numbers,
    Report,
    Results,
    State,
)


class ExportedGraph:
    """An exported step with its state, from `load`; called like the graph.

    A training step updates its own state at every call. Each batch size compiles once.

    Args:
        manifest: What `export.save` noted.
        programs: The serialized functions `step.jax` and, if it trains, `lr.jax`.
        functions: The same, ready to be called.
        state: As `Graph.state_dict` gives it.

    Attributes:
        manifest: `name`, `training`, `arguments`, `platforms`, the versions of graphlr,
            jax and flax, and more.
        numbers: The groups' live numbers: `exported.numbers["head.lr_scale"] = 0.1`.
    """

    def __init__(
        self,
        manifest: dict[str, Any],
        programs: Mapping[str, bytes],
        functions: Mapping[str, jax.export.Exported],
        state: Mapping[str, Any],
    ) -> None:
        self.manifest = manifest
        self._programs = programs
        step, rates = functions["step.jax"], functions.get("lr.jax")
        self._rates = jax.jit(rates.call) if rates else None

        def run(file: FileState, *inputs: Any) -> tuple[FileState, Arrays, Arrays]:
            outputs, changed, new = step.call(file, *inputs)
            return new, outputs, changed  # the state first: see types.Results

        self._run = jax.jit(run, donate_argnums=(0,) if manifest["donate"] else ())
        self._compiled: dict[Any, jax.stages.Compiled] = {}  # by types of the batch
        (known, self._extra_kinds, _, self._batch_kinds), _ = jax.tree.unflatten(
            step.in_tree, step.in_avals
        )
        self._kinds: FileState = known
        self._places = places = manifest["places"]
        self._layouts = [
            _layout(slots, kinds)
            for slots, kinds in zip(places["slots"], self._kinds[1], strict=True)
        ]
        self._found = Found(Signature(None, ()), tuple(places["changed"]))
        self._nodes = {name: node for name, _, _, node in manifest["parameters"]}
        self.__signature__ = call_signature(manifest["parameters"])
        self.numbers = LiveNumbers(places["numbers"], state)
        self._read(state)

    # --- calls ---

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """One step, as the graph does it.

        Returns:
            What `build` returned; dataclasses come back as named tuples.

        Raises:
            TypeError: An argument is missing, unknown, built otherwise, or of another
                dtype.
            ValueError: An array has another shape, or an index is out of range.
        """
        batch = self._batch(args, kwargs)
        with one_at_a_time:
            numbers = self.numbers.vectors()
            try:
                compiled = self._program(numbers, batch)

                def step(state: State, inputs: Inputs) -> Results:
                    new, outputs, changed = compiled(to_file(state), *inputs)
                    state = from_file(new)
                    return Results(state, outputs, changed, Report(), self._found)

                results = self._live.run(step, numbers, batch)
            except Exception as error:
                error.add_note(f"in a call of {self!r}")
                raise
        return structure.fill(self.manifest["results"], results.outputs)

    def _program(self, numbers: Numbers, batch: Batch) -> jax.stages.Compiled:
        """The step for a batch like this one, compiled now if there is none."""
        kinds = tuple(map(jax.typeof, batch))
        if kinds not in self._compiled:
            inputs = (to_file(self._live.state()), *self._live.inputs(numbers, batch))
            self._compiled[kinds] = self._compile(inputs)
        return self._compiled[kinds]

    def _compile(self, inputs: tuple[Any, ...]) -> jax.stages.Compiled:
        """The step for inputs like these; from the cache, if it can be, not lowered."""
        options = compiler_options()
        leaves = jax.tree.leaves(inputs)
        arrays = [leaf for leaf in leaves if isinstance(leaf, jax.Array)]
        devices = {device for array in arrays for device in array.devices()}
        if len(devices) != 1:
            return self._run.lower(*inputs).compile(options)
        (device,) = devices
        step = hashlib.sha256(self._programs["step.jax"]).hexdigest()
        kinds = [repr(jax.typeof(leaf)) for leaf in leaves]
        identity = repr([FORMAT, step, self.manifest["donate"], kinds])
        return binaries.load_or_compile(
            identity, device, lambda: self._run.lower(*inputs), options
        )

    def _batch(self, args: Any, kwargs: Any) -> list[Any]:
        """The arrays among the arguments, checked."""
        try:
            bound = self.__signature__.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self.manifest['name']}: {error}; {self!r}") from None
        bound.apply_defaults()
        leaves: dict[int, Any] = {}
        for name, value in bound.arguments.items():
            if value is not LEFT_OUT:
                leaves |= structure.take(self._nodes[name], value, name)
        names = [*self.manifest["arguments"]]
        batch = [leaves[i] for i in sorted(leaves)]
        sizes: dict[str, tuple[int, str]] = {}
        for name, value, kind in zip(names, batch, self._batch_kinds, strict=True):
            check_array(name, value, kind, sizes)
        for i, size in self.manifest["limits"]:
            if not isinstance(batch[i], jax.Array):
                check_range(batch[i], size, lambda i=i: names[i])
        return batch

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        """What the graph's own `state_dict` would give, and takes."""
        with one_at_a_time:
            live, places = self._live, self._places
            state: Entries = {}
            state |= zip(places["trained"], read(live.trained), strict=True)
            state |= zip(places["extras"], read(live.extras), strict=True)
            for layout, held in zip(self._layouts, live.held, strict=True):
                state |= layout.named(held.slots)
            steps = [held.step for held in live.held]
            state |= dict(zip(places["steps"], steps, strict=True))
            state |= {**self.numbers.entries(), **self._constants}
            state |= carried_entries(live.carried)
            return {key: state[key] for key in self.manifest["state"]}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> Loaded:
        """Take over the state of this program, or of a graph with the same parameters.

        Args:
            state: From `state_dict`.
            strict: Whether a missing or an unexpected entry is an error.

        Returns:
            The keys that were `missing` and `unexpected`, for `strict=False`.

        Raises:
            ValueError: Entries are missing, unexpected or of another shape or dtype, or
                a flag, which is a constant here, differs; nothing is loaded then.
        """
        expected = self._expected()
        training = bool(self._places["steps"])
        missing, unexpected = compare(state, expected, strict=strict, training=training)
        for key, value in self._constants.items():
            if as_python(state.get(key, value)) != value:
                raise ExportError(
                    f"{key} is {state[key]} in the state and a constant {value} in the "
                    "exported step: export the graph again"
                )
        given = {key: state[key] for key in expected if key in state}
        with one_at_a_time:
            self._read({**self.state_dict(), **given} if missing else given)
        return Loaded(missing, unexpected)

    def _expected(self) -> Entries:
        """Shape and dtype of everything in a state, without reading any array."""
        (trained, _, _, carried), places = self._kinds, self._places
        expected: Entries = dict(zip(places["trained"], trained, strict=True))
        expected |= zip(places["extras"], self._extra_kinds, strict=True)
        for layout in self._layouts:
            expected |= layout.keys()
        expected |= {**carried, **self.numbers.entries(), **self._constants}
        return {**expected, **dict.fromkeys(places["steps"], 0)}

    def _read(self, state: Mapping[str, Any]) -> None:
        """Take over a state that has everything."""
        (trained, _, _, carried), places = self._kinds, self._places

        def variables(names: Sequence[str], kinds: Sequence[Any]) -> list[nnx.Variable]:
            pairs = zip(names, kinds, strict=True)
            return [nnx.Variable(copied(state[k], x.dtype)) for k, x in pairs]

        slots = [layout.flat(state, None) for layout in self._layouts]
        steps = [int(state[key]) for key in places["steps"]]
        entries = {k: copied(state[k], x.dtype) for k, x in carried.items()}
        self._live = Live(
            variables(places["trained"], trained),
            variables(places["extras"], self._extra_kinds),
            [*map(Held, slots, steps)],
            carried_from(entries),
        )
        self.numbers.read(state)
        self._constants = {
            key: as_python(value)
            for key, value in state.items()
            if keys.split_field(key) and key not in self.numbers.entries()
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the same program with the state as it is now."""
        write(path, self.manifest, self._programs, self.state_dict())

    # --- what a user reads ---

    @property
    def lr(self) -> dict[str, float]:
        """Every group's learning rate at the next step, as the step computes it."""
        names = [name for some in self._places["numbers"] for name, _ in some]
        if self._rates is None:
            return {}
        steps = [held.counter for held in self._live.held]
        rates = self._rates(self.numbers.vectors(), steps)
        return dict(zip(names, map(float, rates), strict=True))

    @property
    def step(self) -> int:
        """Updates applied so far."""
        return max((held.step for held in self._live.held), default=0)

    def __repr__(self) -> str:
        made = self.manifest
        mode = f"train, step {self.step}" if made["training"] else "eval"
        takes = ", ".join(f"{name}: {kind}" for name, kind in made["arguments"].items())
        return f"{made['name']} (exported, {mode}) takes {takes or 'nothing'}"


def _layout(slots: Sequence[Any], kinds: Sequence[Any]) -> Layout:
    """The layout of an optimizer's slots."""
    made = [Slot(name, tuple(paths), kind) for name, paths, kind in slots]
    types = [jax.ShapeDtypeStruct(kind.shape, kind.dtype) for kind in kinds]
    return Layout(None, tuple(made), tuple(types))
