"""An exported step at work: its state, its numbers, its calls, and what it refuses."""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.export
import numpy as np
from flax import nnx

from graphlr import archive, binaries, keys, structure
from graphlr import state as states
from graphlr.archive import ArchiveError
from graphlr.groups import listing, unknown_key
from graphlr.guards import one_at_a_time
from graphlr.live import Live
from graphlr.modules import read
from graphlr.optim.compiled import is_live
from graphlr.optim.slots import Held, Layout, Slot
from graphlr.optim.values import check_value
from graphlr.runtime import compiler_options, wide
from graphlr.signature import Signature, check_range
from graphlr.specs import ExportError
from graphlr.state import Entries, Loaded, carried_entries, carried_from
from graphlr.types import (
    Arrays,
    Batch,
    Found,
    Inputs,
    OptimizerState,
    Report,
    Results,
    State,
)
from graphlr.types import (
    Numbers as NumberVectors,
)

FORMAT = 1
_LEFT_OUT: Any = ...  # default of a parameter that was not given when exporting

# A step's state as an exported program takes and gives it: parameters, the slots of
# each optimizer, the steps of each, and what is carried, by the keys of a saved state.
FileState = tuple[Arrays, list[Arrays], Arrays, dict[str, jax.Array]]


def to_file(state: State) -> FileState:
    """`state` as an exported program has it."""
    slots = [optimizer.slots for optimizer in state.optimizers]
    steps = [optimizer.step for optimizer in state.optimizers]
    return state.trained, slots, steps, carried_entries(state.carried)


def from_file(file: FileState) -> State:
    """The reverse of `to_file`."""
    trained, slots, steps, carried = file
    optimizers = map(OptimizerState, slots, steps)
    return State(trained, [*optimizers], carried_from(carried))


class Numbers(Mapping[str, Any]):
    """The live numbers of the groups, by `group.key`; the next call sees a change.

    Flags, and a momentum of zero, are constants of an exported step and not among them.

    Args:
        places: For each optimizer `[[group, [[key, length], ...]], ...]`.
        state: Has their values.

    Example:
        >>> numbers = Numbers([[["head", [["lr", 0]]]]], {"groups.head.lr": 0.1})
        >>> numbers["head.lr"] = 0.2
        >>> numbers
        {'head.lr': 0.2}
        >>> numbers["head.lr"] = -1.0
        Traceback (most recent call last):
        ValueError: Invalid learning rate: -1.0. It must be finite, at least 0, for \
example {'lr': 0.1}
    """

    def __init__(self, places: Any, state: Mapping[str, Any]) -> None:
        self._keys = [
            [f"{group}.{key}" for group, live in groups for key, _ in live]
            for groups in places
        ]
        self._saved_as = {
            f"{group}.{key}": keys.field(group, key)
            for groups in places
            for group, live in groups
            for key, _ in live
        }
        self.read(state)

    def read(self, state: Mapping[str, Any]) -> None:
        """Take the values over that `state` has."""
        self._values = {
            name: _plain(state[key]) for name, key in self._saved_as.items()
        }

    def entries(self) -> Entries:
        """The numbers under the keys of a saved state."""
        return {key: self._values[name] for name, key in self._saved_as.items()}

    def vectors(self) -> list[np.ndarray[Any, Any]]:
        """The numbers of each optimizer in the order of the step's input."""
        values = [[np.ravel(self._values[key]) for key in keys] for keys in self._keys]
        return [np.concatenate([*some, np.zeros(0)]) for some in values]

    def __getitem__(self, name: str) -> Any:
        if name not in self._values:
            raise KeyError(unknown_key(name, self._values, "numbers"))
        return self._values[name]

    def __setitem__(self, name: str, value: Any) -> None:
        now = self[name]
        value = check_value(name.rpartition(".")[2], value, now)
        if not is_live(value) or np.shape(value) != np.shape(now):
            raise TypeError(f"{name} is {now} in the exported step, not {value!r}")
        self._values[name] = value

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr(self._values)


def _plain(value: Any) -> Any:
    """A number, a flag, or a tuple of numbers."""
    plain = np.asarray(value).tolist()
    return tuple(plain) if isinstance(plain, list) else plain


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
        self.__signature__ = _call_signature(manifest["parameters"])
        self.numbers = Numbers(places["numbers"], state)
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

    def _program(self, numbers: NumberVectors, batch: Batch) -> jax.stages.Compiled:
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
        found: dict[int, Any] = {}
        for name, value in bound.arguments.items():
            if value is not _LEFT_OUT:
                found |= structure.take(self._nodes[name], value, name)
        names, batch = [*self.manifest["arguments"]], [found[i] for i in sorted(found)]
        sizes: dict[str, tuple[int, str]] = {}
        for name, value, kind in zip(names, batch, self._batch_kinds, strict=True):
            _check_array(name, value, kind, sizes)
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
        missing, unexpected = states.compare(
            state, expected, strict=strict, training=training
        )
        for key, value in self._constants.items():
            if _plain(state.get(key, value)) != value:
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
            return [nnx.Variable(states.copied(state[k], x.dtype)) for k, x in pairs]

        slots = [layout.flat(state, None) for layout in self._layouts]
        steps = [int(state[key]) for key in places["steps"]]
        entries = {k: states.copied(state[k], x.dtype) for k, x in carried.items()}
        self._live = Live(
            variables(places["trained"], trained),
            variables(places["extras"], self._extra_kinds),
            [*map(Held, slots, steps)],
            carried_from(entries),
        )
        self.numbers.read(state)
        self._constants = {
            key: _plain(value)
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


# --- arguments ------------------------------------------------------------------------


def _call_signature(parameters: Sequence[Any]) -> inspect.Signature:
    made = []
    for name, kind, may_be_left_out, _ in parameters:
        plain = may_be_left_out and not kind.startswith("VAR")
        default = _LEFT_OUT if plain else inspect.Parameter.empty
        place = getattr(inspect.Parameter, kind)
        made.append(inspect.Parameter(name, place, default=default))
    return inspect.Signature(made)


def _check_array(
    name: str, value: Any, kind: Any, sizes: dict[str, tuple[int, str]]
) -> None:
    """Refuse an array that isn't of `kind`; notes what each symbol stands for."""
    wanted = f"the exported program takes {kind.str_short()}"
    numbers = jax.Array | np.ndarray | np.generic | int | float | complex
    if not isinstance(value, numbers) or isinstance(value, bool):
        raise TypeError(f"argument {name} is a {type(value).__name__}, and {wanted}")
    now = jax.typeof(value)
    if now.dtype != kind.dtype:
        raise TypeError(
            f"argument {name} is {now.str_short()}, and {wanted}: convert it, "
            f"{name}.astype({str(kind.dtype)!r}), or export the graph with such a one"
        )
    fits = len(now.shape) == len(kind.shape)
    for size, expected in zip(now.shape, kind.shape, strict=False):
        if isinstance(expected, int):
            fits = fits and size == expected
        elif str(expected).isidentifier():
            known, where = sizes.setdefault(str(expected), (size, name))
            if known != size:
                raise ValueError(
                    f"argument {name} is {now.str_short()}, and {wanted}, where "
                    f"{expected} is {known} as in {where}: give both the same size"
                )
    if not fits:
        raise ValueError(
            f"argument {name} is {now.str_short()}, and {wanted}: give one of that "
            "shape, or export the graph with such a one"
        )


def _layout(slots: Sequence[Any], kinds: Sequence[Any]) -> Layout:
    """The layout of an optimizer's slots."""
    made = [Slot(name, tuple(paths), kind) for name, paths, kind in slots]
    types = [jax.ShapeDtypeStruct(kind.shape, kind.dtype) for kind in kinds]
    return Layout(None, tuple(made), tuple(types))


# --- files ----------------------------------------------------------------------------


def write(
    path: str | os.PathLike[str],
    manifest: Mapping[str, Any],
    programs: Mapping[str, bytes],
    state: Mapping[str, Any],
) -> None:
    """Write an exported step: manifest, programs and every entry of its state."""
    arrays = {key: np.asarray(value) for key, value in state.items()}
    kinds = {
        key: {"dtype": str(array.dtype), "shape": list(array.shape)}
        for key, array in arrays.items()
    }

    def parts() -> Iterator[tuple[str, bytes]]:
        yield from programs.items()
        for key, array in arrays.items():
            yield f"{key}.npy", archive.pack(array)

    archive.write(path, {**manifest, "state": kinds}, parts())


def load(path: str | os.PathLike[str]) -> ExportedGraph:
    """What `graph.export(path)` wrote, ready to be called like the graph.

    Only load files that you trust: the program in one is run.

    Raises:
        FileNotFoundError: There is no such file.
        ExportError: It is truncated or damaged (names the part), this graphlr or jax
            can't read it, or it is for other platforms (says which are needed).

    Example:
        >>> import tempfile
        >>> from flax import nnx
        >>> from graphlr import Graph
        >>> class Eval(Graph):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
        ...
        ...     def build(self, x):
        ...         return self.model(x)
        >>> evaluate, x = Eval(), np.ones((4, 3), "f4")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     evaluate.export(f"{folder}/eval.zip", x)
        ...     exported = load(f"{folder}/eval.zip")
        >>> exported
        Eval (exported, eval) takes x: float32[b,3]
        >>> bool((exported(x) == evaluate(x)).all())
        True
    """
    try:
        manifest, parts = archive.read(path)
    except ArchiveError as error:
        raise ExportError(str(error)) from error
    _check_readable(path, manifest)
    programs = {name: data for name, data in parts.items() if name.endswith(".jax")}
    state = {
        key: archive.unpack(parts[f"{key}.npy"], kind["dtype"])
        for key, kind in manifest["state"].items()
    }
    try:
        functions = {
            name: jax.export.deserialize(bytearray(data))
            for name, data in programs.items()
        }
        if manifest["jax"] != jax.__version__:  # a newer one may have written it
            functions["step.jax"].mlir_module()
    except Exception as error:
        raise ExportError(_other_jax(path, manifest, "it can't be read")) from error
    return ExportedGraph(manifest, programs, functions, state)


def _check_readable(path: Any, manifest: Mapping[str, Any]) -> None:
    number = manifest.get("format")
    if number != FORMAT:
        raise ExportError(
            f"{path} has format {number}, of graphlr {manifest.get('graphlr')}, and "
            f"this graphlr reads format {FORMAT}: install that version, or export the "
            "graph again"
        )
    least = jax.export.minimum_supported_calling_convention_version
    most = jax.export.maximum_supported_calling_convention_version
    version = manifest["calling_convention"]
    if not least <= version <= most:
        why = f"its calling convention is {version}, and {least} to {most} can be read"
        raise ExportError(_other_jax(path, manifest, why))
    here = jax.export.default_export_platform()
    if here not in manifest["platforms"]:
        raise ExportError(
            f"{path} is for {listing(manifest['platforms'])}, and this machine is "
            f"{here}: graph.export(..., platforms=[{here!r}])"
        )
    if manifest["wide"] != wide():
        mode = "with" if manifest["wide"] else "without"
        raise ExportError(
            f"{path} was exported {mode} 64-bit types: "
            f"jax.config.update('jax_enable_x64', {manifest['wide']}) before loading it"
        )


def _other_jax(path: Any, manifest: Mapping[str, Any], why: str) -> str:
    return (
        f"{path} was exported with jax {manifest['jax']}, and this is jax "
        f"{jax.__version__}: {why}. pip install 'jax=={manifest['jax']}', or export "
        "the graph again with this version"
    )
