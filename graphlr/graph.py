"""`Graph`: `build()` traced once into one compiled step over flat arrays.

What a user writes, calls and reads; how a call works is in `runner`.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import jax
from jax.typing import ArrayLike

from graphlr.engine.compiles import Compiles
from graphlr.engine.guards import one_at_a_time
from graphlr.engine.program import cost_of
from graphlr.engine.runner import Runner, asked
from graphlr.export import saving
from graphlr.export.batch_sizes import Request
from graphlr.optim.optimizer import Optimizer
from graphlr.precision.scalers import GradScaler, Scaler, StaticGradScaler
from graphlr.report import summary
from graphlr.runtime import jitting_is_off
from graphlr.state.loading import Loaded, load_state
from graphlr.state.state_dict import Owned, ema_state, state_dict
from graphlr.step.config import Config
from graphlr.step.definition import Definition, check_attribute, check_open
from graphlr.step.loops import stacked
from graphlr.step.losses import Losses
from graphlr.step.signature import Build

# What Python makes of `self.__runner` and `self.__losses`, the two things that a graph
# keeps beside the user's attributes: so they can't collide with those.
_OWN = ("_Graph__runner", "_Graph__losses")


class Graph:
    """A training or evaluation step, compiled from `build()` at the first call.

    Subclass it, call `super().__init__()` first, hold the modules as attributes, write
    `build`, and call the object. A graph with an optimizer traces its modules in train
    mode, one without in eval mode. Train and eval graphs over one model share its
    arrays: after every call the model's Variables hold the new values.

    Args:
        training: Overrides the mode in which modules are traced.

    Example:
        >>> import numpy as np, optax
        >>> from flax import nnx
        >>> from graphlr.optim import SGD
        >>> model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
        >>> class Train(Graph):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.model = model
        ...         groups = [{"params": model, "lr_scale": 0.5}]
        ...         self.add_optimizer(SGD(groups, lr=0.1))
        ...
        ...     def build(self, x, y):
        ...         loss = optax.l2_loss(self.model(x), y).mean()
        ...         self.backward(loss)
        ...         return loss
        >>> train = Train()
        >>> loss = train(np.ones((4, 2), "f4"), np.zeros((4, 1), "f4"))
        >>> train.lr, train.step, train.compiles.count
        ({'group0': 0.05}, 1, 1)
    """

    def __init__(self, *, training: bool | None = None) -> None:
        self.__runner = Runner()
        self.__runner.training = training
        self.__losses: Losses | None = None  # those of the trace that this copy is for

    # --- what a user writes ---

    def build(self, *args: Any, **kwargs: Any) -> Any:
        """The computation of one step: written by the subclass, traced once."""
        raise NotImplementedError(
            f"{type(self).__name__} has no build(): write def build(self, image, "
            "label): ... self.backward(loss); return loss"
        )

    def backward(self, loss: ArrayLike) -> None:
        """Mark a scalar to differentiate, inside `build`; several calls add up.

        Each loss reaches every trained parameter it depends on. Two players that train
        against each other keep apart with `jax.lax.stop_gradient`: of an image, or of a
        whole module, `judge = stop_gradient(self.discriminator)`; see
        `examples/gan.py`.

        Raises:
            RuntimeError: Outside `build`, or in a graph without optimizer.
            ValueError: `loss` is no scalar.
            TypeError: `loss` is no floating-point number.
        """
        if self.__losses is None:
            raise RuntimeError(
                "self.backward(loss) belongs inside build(), and build() is run by "
                "calling the graph: loss = graph(image, label)"
            )
        self.__losses.add(loss)

    def add_optimizer(self, optimizer: Optimizer, *, lr_sch: object = None) -> None:
        """Train the optimizer's groups; more than once for disjoint parameters.

        Args:
            optimizer: Which parameters, and how.
            lr_sch: Schedule of every group without one of its own: from
                `glr.optim.lr_scheduler`, an optax schedule, or a 1-D array. The last
                two give the rate itself, in place of the groups' `lr`.

        Raises:
            TypeError: `optimizer` is none.
            ValueError: It is in the graph already.
            RuntimeError: The graph has been called.
        """
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                "add_optimizer takes an optimizer, glr.optim.SGD(model, lr=0.1), "
                f"not {type(optimizer).__name__}; an optax transformation is a rule: "
                "glr.optim.Optimizer(model, rule=lambda: optax.scale_by_lion())"
            )
        or_else = "or optimizer.add_param_group({'params': ...}) at any time"
        self.__check_not_compiled("add_optimizer", or_else)
        self.__runner.optimizers.add(optimizer, lr_sch)
        self.__runner.plan = None

    def set_grad_scaler(self, scaler: Scaler) -> None:
        """Scale the loss, for float16: `GradScaler()` or `StaticGradScaler(128.0)`.

        Raises:
            TypeError: `scaler` is neither.
            RuntimeError: The graph has been called.
        """
        if not isinstance(scaler, GradScaler | StaticGradScaler):
            raise TypeError(
                f"set_grad_scaler takes glr.GradScaler(), not {type(scaler).__name__}"
            )
        self.__check_not_compiled("set_grad_scaler")
        self.__runner.scaler = scaler

    # --- what a user calls ---

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """One step: `build` and, with an optimizer, the update.

        Returns:
            What `build` returned, as device arrays, without waiting for them.

        Raises:
            TypeError: An argument can't be traced.
            ValueError: An index is visibly out of range; a module was replaced.
        """
        if jitting_is_off():
            return self.eager(*args, **kwargs)
        with one_at_a_time:
            return self.__runner.call(self.__definition, args, kwargs)

    def eager(self, *args: Any, **kwargs: Any) -> Any:
        """The same step operation by operation, for prints, breakpoints, tracebacks.

        Values can be printed; inside a graph with an optimizer `float(x)` can't be
        taken of what the loss depends on, because it is being differentiated.
        """
        with one_at_a_time:
            return self.__runner.eager(self.__definition, args, kwargs)

    def scan(self, *args: Any, **kwargs: Any) -> Any:
        """Several steps in one run: cheaper for small models, equal to as many calls.

        Arguments are those of a call, each array with one axis more in front, one entry
        a step; a tuple of them; or a list of batches, which are stacked. Arrays without
        axes are the same for all steps.

        Returns:
            What `build` returned, each array with the leading axis.

        Raises:
            ValueError: The leading axes are missing or differ.
        """
        args, kwargs = stacked(self.build, args, kwargs)
        with one_at_a_time:
            return self.__runner.scan(self.__definition, args, kwargs)

    def compile(self, *args: Any, **kwargs: Any) -> Compiles:
        """Compile for arguments like these, without running; every compilation so far.

        `jax.ShapeDtypeStruct`s may stand for arrays.
        """
        with one_at_a_time:
            self.__runner.prepared(self.__definition, args, kwargs)
        return self.compiles

    def lower(self, *args: Any, **kwargs: Any) -> jax.stages.Lowered:
        """The step for arguments like these as JAX lowered it: `.as_text()`."""
        with one_at_a_time:
            what = asked(self.__definition, args, kwargs)
            return self.__runner.traced(what).lower()

    def cost(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """What a step costs, by XLA's own count; without arguments the last compiled.

        Returns:
            `flops`; `bytes` read and written; and in bytes of memory `temporary_memory`
            (activations), `argument_memory`, `output_memory` and `peak_memory`, all
            three together without what is donated. What the platform doesn't tell is
            left out.
        """
        with one_at_a_time:
            return cost_of(self.__runner.prepared(self.__definition, args, kwargs))

    def export(
        self,
        path: str | PathLike[str],
        /,
        *args: Any,
        symbolic: bool | None = None,
        platforms: Sequence[str] = saving.PLATFORMS,
        **kwargs: Any,
    ) -> None:
        """Write the step and its state as a file that needs no Python code of a model.

        `glr.export.load(path)` gives an object that is called like the graph; a path in
        `.onnx` gets a forward pass. What no file holds is an ExportError, a ValueError.

        Args:
            path: Of the file; what was there is kept until all is written.
            args: As for `compile`; without any, and without `kwargs`, the last ones.
            symbolic: Whether for any batch size (None: if it can be traced so).
            platforms: Where it is to run, of "cpu", "cuda", "rocm" and "tpu".
            kwargs: Likewise.
        """
        with one_at_a_time:
            request = Request(self.__runner, self.__definition, args, kwargs)
            saving.save(request, path, symbolic=symbolic, platforms=platforms)

    def debug(self, level: int = 1) -> None:
        """Print what is compiled, from now on.

        Args:
            level: -1 nothing; 0 each compilation, its reason and times; 1 the graph,
                groups and cost too; 2 the traced program too; 3 what XLA made of it.

        Raises:
            ValueError: No such level.
        """
        if level not in (-1, 0, 1, 2, 3):
            raise ValueError(f"debug level is {level!r}: give -1, 0, 1, 2 or 3")
        tell = functools.partial(summary.print_program, self.__runner, level)
        self.__runner.programs.on_compile = tell if level >= 0 else None

    def state_dict(self) -> dict[str, Any]:
        """Everything that training changes, by dotted name.

        Variables by path (`model.head.kernel`), slots by parameter
        (`slots.model.head.kernel.exp_avg`), the groups' numbers and flags
        (`groups.head.lr_scale`), averages (`ema.model.head.kernel`), the loss scale
        (`scaler.scale`) and `step`. Safe to keep while training goes on.
        """
        with one_at_a_time:
            return state_dict(self.__owned())

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> Loaded:
        """Take over what `state_dict` gave, at any time.

        Slots are matched by parameter and numbers by the group's name, never by order.
        Groups that are cut differently have other names: `strict=False` then takes the
        slots and keeps the graph's own numbers.

        Args:
            state: From `state_dict`.
            strict: Whether a missing or an unexpected entry is an error; if not, they
                are returned.

        Raises:
            ValueError: Entries are missing, unexpected or of another shape or dtype,
                or a group without a name holds other parameters; nothing is loaded
                then. (Also a RuntimeError, as PyTorch raises.)
        """
        with one_at_a_time:
            return load_state(self.__runner, self.__definition, state, strict=strict)

    # --- what a user reads ---

    @property
    def config(self) -> Config:
        """Options; set them before the first call."""
        return self.__runner.config

    @property
    def training(self) -> bool:
        """Whether modules are traced in train mode."""
        return self.__runner.training_mode

    @property
    def lr(self) -> dict[str, float]:
        """Every group's learning rate at the next step, schedule and scale included."""
        return self.__runner.optimizers.lr

    @property
    def step(self) -> int:
        """Updates applied so far; skipped batches are not among them."""
        return self.__runner.optimizers.step

    @property
    def skipped(self) -> int:
        """Batches skipped because of a NaN, an infinity or an overflow."""
        skips = self.__runner.live.carried.skips
        return 0 if skips is None else int(skips.total)

    @property
    def loss_scale(self) -> float:
        """What the next loss is multiplied by."""
        scale = self.__runner.live.carried.loss_scale
        return 1.0 if scale is None else float(scale.value)

    @property
    def ema_state(self) -> dict[str, Any]:
        """The averages (`config.ema_decay`), and all else as it is now, by path.

        `evaluate.load_state_dict(train.ema_state)` puts them into an eval graph over a
        copy of the model, `nnx.clone(model)`.
        """
        with one_at_a_time:
            return ema_state(self.__owned())

    @property
    def group_stats(self) -> dict[str, dict[str, float]]:
        """For every group what the last step did; reading it waits for the device.

        `grad_norm` (of the gradient before clipping), `update_norm`, `update_ratio`
        (the update's norm over that of the parameters: about 1e-3 is usual, 0.1 is too
        fast, 1e-6 too slow) and `lr`; with `config.group_stats`, after a call.
        """
        return self.__runner.group_stats()

    @property
    def compiles(self) -> Compiles:
        """Every compilation so far: `count`, `seconds` and `why`."""
        return self.__runner.programs.compiles

    def __repr__(self) -> str:
        if _OWN[0] not in self.__dict__:
            return f"{type(self).__name__} (not initialised)"
        return summary.text(self.__runner, self.__definition)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return summary.html(self.__runner, self.__definition)

    # --- attributes ---

    def __getattr__(self, name: str) -> Any:
        start = "" if _OWN[0] in self.__dict__ else ": call super().__init__()"
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}{start}")

    def __setattr__(self, name: str, value: object) -> None:
        if name in _OWN:
            self.__dict__[name] = value
            return
        if _OWN[0] not in self.__dict__:
            raise AttributeError(
                f"self.{name} is set before the graph is initialised: call "
                "super().__init__() first"
            )
        check_attribute(name, value, taken=hasattr(Graph, name))
        self.__check_open(f"self.{name} is set")
        self.__dict__[name] = value
        self.__runner.plan = None

    def __delattr__(self, name: str) -> None:
        if name in _OWN or name not in self.__dict__:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        self.__check_open(f"self.{name} is deleted")
        del self.__dict__[name]
        self.__runner.plan = None

    def __check_not_compiled(self, method: str, instead: str = "") -> None:
        if self.__runner.programs.compiles.count:
            raise RuntimeError(
                f"{method} comes too late, the graph is compiled: call it in __init__"
                f"{instead and ', '}{instead}"
            )

    def __check_open(self, what: str) -> None:
        compiled = bool(self.__runner.programs.compiles.count)
        check_open(what, tracing=self.__losses is not None, compiled=compiled)

    # --- what the rooms below are given ---

    @property
    def __definition(self) -> Definition:
        name = type(self).__name__
        return Definition(name, self.__attributes, self.build, self.__bind)

    def __attributes(self) -> Mapping[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in _OWN}

    def __bind(self, attributes: Mapping[str, Any], losses: Losses) -> Build:
        """`build` of a copy of this graph that holds `attributes`, for one trace."""
        bound = copy.copy(self)
        bound.__dict__.update(attributes)
        bound.__losses = losses
        return bound.build

    def __owned(self) -> Owned:
        """The graph as its state sees it."""
        runner = self.__runner
        return Owned(*runner.peek(self.__definition), runner.optimizers)
