"""`Graph`: `build()` traced once into one compiled step over flat arrays.

A call is one run of a compiled program between two passes over flat lists: read the
Variables' arrays, run, write the new ones back. Modules, groups and optimizer state are
pytrees only while tracing.
"""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.nnx.tracers import TraceState

from graphlr import signature as arguments
from graphlr import state as states
from graphlr.groups import unknown_key
from graphlr.modules import own, read, write
from graphlr.optim.lr_scheduler import as_schedule
from graphlr.optim.optimizer import Optimizer
from graphlr.optim.values import check_number
from graphlr.plan import Plan, check_unchanged, make_plan
from graphlr.program import (
    Compile,
    Compiles,
    Program,
    Undisturbed,
    check_not_lost,
    check_ranges,
    compile_step,
)
from graphlr.signature import Signature, jitting_is_off
from graphlr.step import Findings, Inputs, Results, State, make_step
from graphlr.summary import groups_table, modules_tree

_log = logging.getLogger(__name__)

# A step takes a model's arrays and gives it others; two threads that do so with one
# model would take the same ones. Computing goes on after the lock is released.
_one_at_a_time = threading.RLock()


class Config:
    """Options of a graph, fixed once it has been called.

    Attributes:
        clip_grad_norm: Norm to clip the trained gradients to, all together, before any
            group's own clip; None for no clip.
        donate: Whether the step may reuse the memory of parameters and slots.

    Example:
        >>> Config().clip_gard_norm = 1.0
        Traceback (most recent call last):
        AttributeError: config has no 'clip_gard_norm': did you mean \
'clip_grad_norm'? It takes clip_grad_norm, donate.
    """

    clip_grad_norm: float | None
    donate: bool

    def __init__(self) -> None:
        self.__dict__.update(clip_grad_norm=None, donate=True, _fixed=False)

    def fix(self) -> None:
        """Refuse changes from now on."""
        self.__dict__["_fixed"] = True

    def __setattr__(self, name: str, value: Any) -> None:
        options = ("clip_grad_norm", "donate")
        if name not in options:
            raise AttributeError(unknown_key(name, options, "config"))
        if self.__dict__["_fixed"]:
            raise AttributeError(
                f"config.{name} = {value!r} comes too late, the graph is compiled: "
                "make a new graph over the same model and set it before the first call"
            )
        if name == "donate" and not isinstance(value, bool):
            raise TypeError(f"config.donate is {value!r}: give True or False")
        if name == "clip_grad_norm" and value is not None:
            value = check_number("clip_grad_max_norm", value)
        self.__dict__[name] = value

    def __repr__(self) -> str:
        return f"clip_grad_norm={self.clip_grad_norm}, donate={self.donate}"


class Graph:
    """A training or evaluation step, compiled from `build()` at the first call.

    Subclass it, call `super().__init__()` first, hold the modules as attributes, write
    `build`, and call the object. A graph with an optimizer traces its modules in train
    mode, one without in eval mode. Train and eval graphs over one model share its
    arrays: after every call the model's Variables hold the new values.

    Args:
        training: Overrides the mode in which modules are traced.

    Attributes:
        config: Options, see `Config`; set them before the first call.

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

    config: Config
    _training: bool | None
    _optimizers: list[Optimizer]
    _plan: Plan | None
    _versions: list[Any]
    _programs: dict[Signature, Program]
    _losses: list[jax.Array] | None
    _trace: TraceState
    _compiles: Compiles
    _why: str

    def __init__(self, *, training: bool | None = None) -> None:
        self.__dict__.update(
            config=Config(),
            _training=training,
            _optimizers=[],
            _plan=None,
            _versions=[],
            _programs={},
            _losses=None,
            _compiles=Compiles(),
            _why="first call",
        )

    # --- what a user writes ---

    def build(self, *args: Any, **kwargs: Any) -> Any:
        """The computation of one step: written by the subclass, traced once."""
        raise NotImplementedError(
            f"{type(self).__name__} has no build(): write def build(self, image, "
            "label): ... self.backward(loss); return loss"
        )

    def backward(self, loss: Any) -> None:
        """Mark a scalar to differentiate, inside `build`; several calls add up.

        Raises:
            RuntimeError: Outside `build`, or in a graph without optimizer.
            ValueError: `loss` is no scalar.
            TypeError: `loss` is no floating-point number.
        """
        if self._losses is None:
            raise RuntimeError(
                "self.backward(loss) belongs inside build(), and build() is run by "
                "calling the graph: loss = graph(image, label)"
            )
        if not self._optimizers:
            raise RuntimeError(
                "self.backward(loss) in a graph without optimizer: call "
                "self.add_optimizer(optimizer) in __init__, or leave backward out"
            )
        loss = jnp.asarray(loss)
        if loss.shape != ():
            raise ValueError(
                f"self.backward(loss) needs a scalar, and loss has shape {loss.shape}: "
                "self.backward(loss.mean())"
            )
        if not jnp.issubdtype(loss.dtype, jnp.floating):
            raise TypeError(f"self.backward(loss): loss is {loss.dtype}, not a float")
        if not self._trace.is_valid():
            raise RuntimeError(
                "self.backward(loss) inside a transformation such as jax.checkpoint or "
                "jax.lax.scan can't see out of it: return the loss from there and call "
                "self.backward(loss) in build() itself"
            )
        self._losses.append(loss)

    def add_optimizer(self, optimizer: Optimizer, *, lr_sch: Any = None) -> None:
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
        if self._compiles.count:
            raise RuntimeError(
                "add_optimizer comes too late, the graph is compiled: call it in "
                "__init__, or optimizer.add_param_group({'params': ...}) at any time"
            )
        if any(optimizer is other for other in self._optimizers):
            raise ValueError("this optimizer is in the graph already: add it once")
        schedule = optimizer.lr_sch if lr_sch is None else as_schedule(lr_sch)
        if optimizer.lr_sch not in (None, schedule):
            raise ValueError(
                f"the optimizer has a schedule from another graph, {optimizer.lr_sch}, "
                f"which {schedule} would replace there too: make an optimizer of its "
                "own for this graph, or set optimizer.lr_sch"
            )
        optimizer.lr_sch = schedule
        self._optimizers.append(optimizer)
        self.__dict__["_plan"] = None

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
        with _one_at_a_time:
            plan = self._ready()
            signature, batch = arguments.read(self.build, args, kwargs)
            program = self._programs.get(signature)
            known = program is not None
            if program is None:
                program = self._compile(plan, signature, batch)
            if program.limits:
                check_ranges(program.limits, batch, signature, self.build)
            try:
                return self._run(plan, program.run, program.found, batch)
            except (TypeError, ValueError):  # raised before anything runs
                if not known:
                    raise
            plan = self._replan("the dtype, shape or placement of a Variable changed")
            self._programs.clear()
            program = self._compile(plan, signature, batch)
            return self._run(plan, program.run, program.found, batch)

    def eager(self, *args: Any, **kwargs: Any) -> Any:
        """The same step operation by operation, for prints, breakpoints, tracebacks."""
        with _one_at_a_time:
            plan = self._ready()
            signature, batch = arguments.read(self.build, args, kwargs)
            step, found = self._step(plan, signature)
            return self._run(plan, step, found, batch)

    def state_dict(self) -> dict[str, Any]:
        """Everything that training changes, by dotted name.

        Variables by path (`model.head.kernel`), slots by parameter
        (`slots.model.head.kernel.exp_avg`), the groups' numbers and flags
        (`groups.head.lr_scale`), and `step`. Safe to keep while training goes on.
        """
        with _one_at_a_time:
            return states.state_dict(self._ready(), self._optimizers)

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Take over what `state_dict` gave, at any time.

        Slots are matched by parameter, never by order, so the groups may be cut
        differently.

        Args:
            state: From `state_dict`.
            strict: Whether a missing or an unexpected entry is an error.

        Raises:
            ValueError: Entries are missing, unexpected or of another shape or dtype;
                nothing is loaded then.
        """
        if not isinstance(state, Mapping):
            raise TypeError(
                f"load_state_dict takes what state_dict gave, not {state!r}: "
                "np.load('state.npz') for a file"
            )
        with _one_at_a_time, states.loading_groups(state, self._optimizers):
            plan = self._ready()
            states.load_arrays(state, plan, self._optimizers, strict=strict)

    # --- what a user reads ---

    @property
    def training(self) -> bool:
        """Whether modules are traced in train mode."""
        return bool(self._optimizers) if self._training is None else self._training

    @property
    def lr(self) -> dict[str, float]:
        """Every group's learning rate at the next step, schedule and scale included."""
        names = [name for some in states.group_names(self._optimizers) for name in some]
        rates = [rate for o in self._optimizers for rate in o.lr().values()]
        return dict(zip(names, rates, strict=True))

    @property
    def step(self) -> int:
        """Updates applied so far."""
        return max((optimizer.step for optimizer in self._optimizers), default=0)

    @property
    def compiles(self) -> Compiles:
        """Every compilation so far: `count`, `seconds` and `why`."""
        return self._compiles

    def __repr__(self) -> str:
        if "_optimizers" not in self.__dict__:
            return f"{type(self).__name__} (not initialised)"
        mode = "train" if self.training else "eval"
        lines = [
            f"{type(self).__name__} ({mode}, step {self.step}; {self.config})",
            modules_tree(self._attributes()),
        ]
        if self._optimizers:
            modules = make_plan(self._attributes(), ()).modules
            try:
                lines.append(groups_table(modules, self._optimizers))
            except ValueError as error:  # printing must not fail: say what a call would
                lines.append(f"  {error}")
        return "\n".join([*lines, repr(self.compiles)])

    def __getattr__(self, name: str) -> Any:
        start = "" if "_optimizers" in self.__dict__ else ": call super().__init__()"
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}{start}")

    def __setattr__(self, name: str, value: Any) -> None:
        if "_optimizers" not in self.__dict__:
            raise AttributeError(
                f"self.{name} is set before the graph is initialised: call "
                "super().__init__() first"
            )
        if isinstance(value, Optimizer):
            raise AttributeError(
                f"self.{name} = optimizer would train nothing: "
                "self.add_optimizer(optimizer)"
            )
        if name == "config" or hasattr(Graph, name):
            raise AttributeError(f"{name} is Graph's own: call the attribute otherwise")
        if self._losses is not None or self._compiles.count:
            where = "inside build()" if self._losses is not None else "after a call"
            raise AttributeError(
                f"self.{name} is set {where}, where it has no effect on the compiled "
                "step: set it in __init__, or pass it to build() and return it"
            )
        self.__dict__.update({name: value, "_plan": None})

    # --- how a call works ---

    def _attributes(self) -> dict[str, Any]:
        own_names = {"config", *Graph.__annotations__}
        return {k: v for k, v in self.__dict__.items() if k not in own_names}

    def _ready(self) -> Plan:
        """The plan of this step: the last one, unless a group's structure changed."""
        plan = self._plan
        if plan is None:
            return self._replan("first call")
        check_unchanged(plan)
        versions = [optimizer.version for optimizer in self._optimizers]
        if versions != self._versions:
            if plan.specs != [optimizer.specs for optimizer in self._optimizers]:
                return self._replan("the structure of a group changed")
            self.__dict__["_versions"] = versions
        for optimizer, layout in zip(self._optimizers, plan.layouts, strict=True):
            if optimizer.layout is not layout:
                return self._replan("another graph used the optimizer")
        return plan

    def _replan(self, why: str) -> Plan:
        """Make a plan; programs stay if it asks for the same step as the last one."""
        plan = make_plan(self._attributes(), self._optimizers)
        same = self._plan is not None and plan.asks_same_step(self._plan)
        self.__dict__.update(
            _plan=plan,
            _versions=[optimizer.version for optimizer in self._optimizers],
            _programs=self._programs if same else {},
            _why=why,
        )
        return plan

    def _bind(self, attributes: dict[str, Any], losses: list[jax.Array]) -> Any:
        """`build` of a copy of this graph that holds `attributes`."""
        bound = copy.copy(self)
        bound.__dict__.update(attributes, _losses=losses, _trace=TraceState())
        return bound.build

    def _step(self, plan: Plan, signature: Signature) -> Any:
        return make_step(
            plan,
            self._bind,
            signature,
            training=self.training,
            clip_grad_norm=self.config.clip_grad_norm,
        )

    def _compile(self, plan: Plan, signature: Signature, batch: list[Any]) -> Program:
        """Compile the step for a new signature, and say why."""
        why = self._why
        if self._programs:
            last = list(self._programs)[-1]
            arguments.check_against(signature, last, self.build)
            why = signature.difference(last, self.build)
        step, found = self._step(plan, signature)
        name = type(self).__name__
        try:
            program, tracing, compiling = compile_step(
                step,
                found,
                self._state(plan),
                self._inputs(plan, batch),
                plan=plan,
                donate=bool(self._optimizers) and self.config.donate,
            )
        except Exception as error:
            given = signature.describe(self.build).items()
            listed = ", ".join(f"{key}: {kind}" for key, kind in given)
            error.add_note(
                f"while tracing {name}.build with {listed or 'no arguments'}"
            )
            raise
        self.config.fix()
        self._compiles.records.append(Compile(why, tracing, compiling))
        self._programs[signature] = program
        _log.info("compiled %s in %.1f s: %s", name, tracing + compiling, why)
        return program

    def _state(self, plan: Plan) -> State:
        slots = [own(list(optimizer.slots)) for optimizer in self._optimizers]
        steps = own([optimizer.counter for optimizer in self._optimizers])
        return State(own(read(plan.trained)), slots, steps)

    def _donated(self, plan: Plan) -> list[jax.Array]:
        slots = [array for optimizer in self._optimizers for array in optimizer.slots]
        steps = [optimizer.counter for optimizer in self._optimizers]
        return [*read(plan.trained), *slots, *steps]

    def _inputs(self, plan: Plan, batch: list[Any]) -> Inputs:
        numbers = [optimizer.numbers for optimizer in self._optimizers]
        return Inputs(read(plan.extras), numbers, batch)

    def _run(
        self,
        plan: Plan,
        run: Callable[[State, Inputs], Results],
        found: Findings,
        batch: list[Any],
    ) -> Any:
        """Run a step and write what it gives back: everything or, on error, nothing."""
        inputs = self._inputs(plan, batch)
        with Undisturbed():
            try:
                outputs, extras, state = run(self._state(plan), inputs)
            except Exception as error:
                check_not_lost(self._donated(plan), error)
                raise
            write([plan.extras[i] for i in found.changed], extras)
            write(plan.trained, state.trained)
            for k, optimizer in enumerate(self._optimizers):
                optimizer.advance(state.slots[k], state.steps[k])
        return found.outputs.fill(outputs)
