"""`Config`: the options of a graph, checked when they are set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from graphlr.messages import unknown_key
from graphlr.optim.group_keys import check_number, check_value

_SKIPS_IN_A_ROW = 20  # what skip_nonfinite=True allows


class Config:
    """Options of a graph, fixed once it has been called.

    Attributes:
        amp: "bfloat16" or "float16" to compute in; None computes as the modules say.
            See `graphlr.precision`.
        amp_float32: Selector of modules that compute in float32 all the same.
        gradient_accumulation_steps: Parts that a call divides its batch into, one after
            another, for one update by the mean of their gradients. A scalar that
            `build` returns becomes one for each part; arrays are put together again.
        clip_grad_norm: Norm to clip the trained gradients to, all together, before any
            group's own clip; None for no clip.
        clip_grad_norm_type: Which norm: 2.0, 1.0, "inf" or any other p.
        clip_grad_value: Largest absolute value of a gradient's numbers, before
            `clip_grad_norm`; None for no limit.
        remat: Selector of modules whose activations are computed again for the
            gradients instead of being kept: `"model.blocks.*"`.
        skip_nonfinite: Whether a batch that gives a NaN or an infinity changes nothing
            at all; a number says how many in a row stop the training (True: 20).
        ema_decay: Keep moving averages of the parameters, `graph.ema_state`: a decay
            such as 0.999, or a function of the averages taken so far, such as
            `glr.average.swa()`.
        group_stats: Whether `graph.group_stats` has the norms of every group's gradient
            and update at the last step.
        donate: Whether the step may reuse the memory of parameters and slots.

    Example:
        >>> Config().clip_gard_norm = 1.0
        Traceback (most recent call last):
        AttributeError: config has no 'clip_gard_norm': did you mean \
'clip_grad_norm'? It takes amp, amp_float32, clip_grad_norm, clip_grad_norm_type, \
clip_grad_value, donate, ema_decay, gradient_accumulation_steps, group_stats, remat, \
skip_nonfinite.
    """

    amp: str | None
    amp_float32: Any
    gradient_accumulation_steps: int
    clip_grad_norm: float | None
    clip_grad_norm_type: float
    clip_grad_value: float | None
    remat: Any
    skip_nonfinite: int
    ema_decay: float | Callable[[Any], Any] | None
    group_stats: bool
    donate: bool

    def __init__(self) -> None:
        self.__dict__.update(_DEFAULTS, _fixed=False)

    def changed(self) -> dict[str, Any]:
        """The options that differ from their defaults.

        Example:
            >>> config = Config()
            >>> config.skip_nonfinite = True
            >>> config.changed()
            {'skip_nonfinite': 20}
        """
        return {
            key: self.__dict__[key]
            for key, default in _DEFAULTS.items()
            if self.__dict__[key] is not default and self.__dict__[key] != default
        }

    def fix(self, *, training: bool) -> None:
        """Refuse changes from now on.

        Raises:
            ValueError: An option has no effect, because nothing is trained.
        """
        idle = [key for key in self.changed() if key not in _WITHOUT_OPTIMIZER]
        if idle and not training:
            raise ValueError(
                f"config.{idle[0]} has no effect in a graph without optimizer: call "
                "self.add_optimizer(optimizer) in __init__, or leave it out"
            )
        self.__dict__["_fixed"] = True

    def __setattr__(self, name: str, value: object) -> None:
        if name not in _DEFAULTS:
            raise AttributeError(unknown_key(name, _DEFAULTS, "config"))
        if self.__dict__["_fixed"]:
            raise AttributeError(
                f"config.{name} = {value!r} comes too late, the graph is compiled: "
                "make a new graph over the same model and set it before the first call"
            )
        self.__dict__[name] = _CHECKS.get(name, _flag)(name, value)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(unknown_key(name, _DEFAULTS, "config"))

    def __repr__(self) -> str:
        return ", ".join(f"{k}={v!r}" for k, v in self.changed().items()) or "defaults"


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"config.{name} is {value!r}: give True or False")
    return value


def _amp(name: str, value: object) -> str | None:
    value = getattr(value, "__name__", value)  # jnp.bfloat16
    if value not in (None, "bfloat16", "float16"):
        raise ValueError(f"config.{name} is {value!r}: give 'bfloat16' or 'float16'")
    return value


def _parts(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"config.{name} is {value!r}: give a number of parts, 4")
    if value < 1:
        raise ValueError(f"config.{name} is {value}: give 1 (no accumulation) or more")
    return value


def _as_in_a_group(key: str) -> Callable[[str, Any], Any]:
    """The check of a group's key, for an option that means the same."""
    return lambda name, value: check_value(key, value, None)


def _skips(name: str, value: object) -> int:
    if isinstance(value, bool):
        return _SKIPS_IN_A_ROW * value
    if not isinstance(value, int) or value < 1:
        raise ValueError(
            f"config.{name} is {value!r}: give True, False, or how many in a row are "
            "too many"
        )
    return value


def _decay(name: str, value: object) -> Any:
    if value is None or callable(value):
        return value
    decay = check_number(name, value)
    if not 0.0 <= decay < 1.0:
        raise ValueError(
            f"Invalid decay value {decay} of config.{name}. It must be in [0, 1), for "
            "example 0.999"
        )
    return decay


def _selector(name: str, value: object) -> Any:
    return value


_DEFAULTS: dict[str, Any] = {
    "amp": None,
    "amp_float32": None,
    "gradient_accumulation_steps": 1,
    "clip_grad_norm": None,
    "clip_grad_norm_type": 2.0,
    "clip_grad_value": None,
    "remat": None,
    "skip_nonfinite": 0,
    "ema_decay": None,
    "group_stats": False,
    "donate": True,
}
_WITHOUT_OPTIMIZER = ("amp", "amp_float32", "remat", "donate")
_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "amp": _amp,
    "amp_float32": _selector,
    "gradient_accumulation_steps": _parts,
    "clip_grad_norm": _as_in_a_group("clip_grad_max_norm"),
    "clip_grad_norm_type": _as_in_a_group("clip_grad_norm_type"),
    "clip_grad_value": _as_in_a_group("clip_grad_max_norm"),
    "remat": _selector,
    "skip_nonfinite": _skips,
    "ema_decay": _decay,
}
