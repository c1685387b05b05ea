"""Options of a graph: what each may hold, and when."""

import jax.numpy as jnp
import numpy as np
import pytest

from graphlr.step.config import Config
from tests.models import Evaluate, X, linear


@pytest.mark.parametrize(
    ("name", "value", "becomes"),
    [
        ("amp", "bfloat16", "bfloat16"),
        ("amp", jnp.float16, "float16"),
        ("amp", None, None),
        ("gradient_accumulation_steps", 4, 4),
        ("clip_grad_norm", 1, 1.0),
        ("clip_grad_norm_type", "inf", float("inf")),
        ("clip_grad_value", 0.5, 0.5),
        ("skip_nonfinite", True, 20),
        ("skip_nonfinite", 3, 3),
        ("skip_nonfinite", False, 0),
        ("ema_decay", 0.999, 0.999),
        ("group_stats", True, True),
        ("donate", False, False),
    ],
)
def test_values_are_normalised(name, value, becomes):
    config = Config()
    setattr(config, name, value)
    assert getattr(config, name) == becomes
    assert config.changed() == ({} if becomes in (None, 0) else {name: becomes}) or (
        name == "donate"
    )


@pytest.mark.parametrize(
    ("name", "value", "kind", "message"),
    [
        ("amp", "float8", ValueError, "give 'bfloat16' or 'float16'"),
        ("gradient_accumulation_steps", 0, ValueError, "is 0: give 1"),
        ("gradient_accumulation_steps", 2.0, TypeError, "give a number of parts"),
        ("clip_grad_norm", -1.0, ValueError, "Invalid clip_grad_max_norm: -1.0"),
        ("clip_grad_norm_type", 0, ValueError, "give 2.0, 1.0 or 'inf'"),
        ("clip_grad_value", "1", TypeError, "must be a number"),
        ("skip_nonfinite", -1, ValueError, "give True, False, or how many"),
        ("ema_decay", 1.5, ValueError, r"Invalid decay value 1.5 .* \[0, 1\)"),
        ("group_stats", 1, TypeError, "give True or False"),
        ("donate", "no", TypeError, "give True or False"),
    ],
)
def test_bad_values_are_refused(name, value, kind, message):
    config = Config()
    with pytest.raises(kind, match=message):
        setattr(config, name, value)
    assert config.changed() == {}


@pytest.mark.parametrize("name", ["clip_grad_norm", "ema_decay", "group_stats"])
def test_options_without_effect_are_refused(name):
    graph = Evaluate(linear())
    setattr(graph.config, name, True if name == "group_stats" else 0.5)
    with pytest.raises(ValueError, match=rf"config.{name} has no effect .*optimizer"):
        graph(X)


def test_options_are_fixed_by_the_first_call():
    graph = Evaluate(linear())
    graph.config.amp = "bfloat16"
    assert graph(X).dtype == np.float32
    with pytest.raises(AttributeError, match=r"amp = None comes too late"):
        graph.config.amp = None
    assert "amp='bfloat16'" in repr(graph.config)
    assert repr(Config()) == "defaults"
