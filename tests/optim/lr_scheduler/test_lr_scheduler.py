"""Schedules against what PyTorch 2.13 and OneFlow 0.9 gave, on the host and traced."""

import dataclasses
import functools
import json
import math
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from graphlr.optim import SGD
from graphlr.optim import lr_scheduler as lrs
from graphlr.optim.lr_scheduler import (
    SWALR,
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CosineDecayLR,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    MultiplicativeLR,
    MultiStepLR,
    OneCycleLR,
    PiecewiseLR,
    PolynomialLR,
    SequentialLR,
    StepLR,
    WarmupCosineLR,
    WarmupLR,
    as_schedule,
)
from graphlr.optim.lr_scheduler.settings import NonNegative, Positive
from tests import GOLDEN
from tests.models import quick

TORCH = np.load(GOLDEN / "torch_lr.npz")
TORCH_SPEC = json.loads((GOLDEN / "torch_lr.json").read_text())
PROBES = np.load(GOLDEN / "oneflow_probe.npz")
PROBE_SPEC = {
    probe["name"]: probe
    for probe in json.loads((GOLDEN / "oneflow_probe.json").read_text())["probes"]
}
TINY = 1e-15  # what is left of a cosine's zero in the references


def hf_cosine(step):
    if step < 6:
        return step / 6
    return max(0.0, 0.5 * (1 + math.cos(math.pi * (step - 6) / 54)))


def hf_linear(step):
    return step / 6 if step < 6 else max(0.0, (60 - step) / 54)


# A list holds one schedule for each of the two groups.
TORCH_CASES = {
    "LambdaLR/0": LambdaLR(lambda e: 0.95**e),
    "LambdaLR/1": [LambdaLR(lambda e: 0.9**e), LambdaLR(lambda e: 1 / (1 + 0.1 * e))],
    "LambdaLR/4": LambdaLR(hf_cosine),
    "LambdaLR/5": LambdaLR(hf_linear),
    "MultiplicativeLR/0": MultiplicativeLR(lambda e: 0.95),
    "StepLR/0": StepLR(10),
    "StepLR/2": StepLR(7, 0.5),
    "StepLR/3": StepLR(100),
    "MultiStepLR/0": MultiStepLR([10, 30, 50]),
    "MultiStepLR/2": MultiStepLR([30, 10], 0.1),
    "MultiStepLR/3": MultiStepLR([0, 3]),
    "ConstantLR/0": ConstantLR(),
    "ConstantLR/2": ConstantLR(1.0, 3),
    "ConstantLR/3": ConstantLR(0.1, 0),
    "LinearLR/0": LinearLR(),
    "LinearLR/1": LinearLR(0.1, 1.0, 20),
    "LinearLR/2": LinearLR(1.0, 0.0, 40),
    "LinearLR/3": LinearLR(0.25, 0.6, 10),
    "ExponentialLR/0": ExponentialLR(0.9),
    "ExponentialLR/1": ExponentialLR(0.99),
    "PolynomialLR/0": PolynomialLR(),
    "PolynomialLR/1": PolynomialLR(40, 2),
    "PolynomialLR/2": PolynomialLR(50, 0.9),
    "PolynomialLR/3": PolynomialLR(60, 0.5),
    "CosineAnnealingLR/0": CosineAnnealingLR(60),
    "CosineAnnealingLR/1": CosineAnnealingLR(20),
    "CosineAnnealingLR/2": CosineAnnealingLR(10, 0.001),
    "CosineAnnealingWarmRestarts/0": CosineAnnealingWarmRestarts(10),
    "CosineAnnealingWarmRestarts/1": CosineAnnealingWarmRestarts(10, 2, 1e-4),
    "CosineAnnealingWarmRestarts/3": CosineAnnealingWarmRestarts(1),
    "OneCycleLR/0": OneCycleLR(0.1, 60),
    "OneCycleLR/1": [
        OneCycleLR(0.1, 60, anneal_strategy="linear"),
        OneCycleLR(0.01, 60, anneal_strategy="linear"),
    ],
    "OneCycleLR/3": OneCycleLR(0.1, epochs=6, steps_per_epoch=10, cycle_momentum=False),
    "OneCycleLR/4": OneCycleLR(0.1, 60, pct_start=0.0),
    "OneCycleLR/5": [OneCycleLR(0.1, 60), OneCycleLR(0.01, 60)],
    "CyclicLR/0": CyclicLR(0.01, 0.1, 8),
    "CyclicLR/1": [
        CyclicLR(0.01, 0.1, 5, 10, mode="triangular2"),
        CyclicLR(0.001, 0.02, 5, 10, mode="triangular2"),
    ],
    "CyclicLR/2": CyclicLR(0.01, 0.1, 6, mode="exp_range", gamma=0.97),
    "CyclicLR/3": CyclicLR(
        0.01,
        0.1,
        6,
        scale_fn=lambda x: 1 / (1 + x),
        scale_mode="iterations",
        cycle_momentum=False,
    ),
    "CyclicLR/4": CyclicLR(0.01, 0.1, 8, base_momentum=0.7, max_momentum=0.95),
    "ChainedScheduler/0": ChainedScheduler(
        [LinearLR(0.4, total_iters=3), MultiStepLR([4, 8, 10], 0.1)]
    ),
    "ChainedScheduler/2": ChainedScheduler(
        [ExponentialLR(0.9), ConstantLR(0.2, 4), StepLR(3, 0.1)]
    ),
    "ChainedScheduler/3": ChainedScheduler([CosineAnnealingLR(20), StepLR(15, 0.5)]),
    "SequentialLR/0": SequentialLR(
        [LinearLR(0.1, total_iters=10), CosineAnnealingLR(50)], [10]
    ),
    "SequentialLR/2": SequentialLR(
        [ConstantLR(0.1, 3), ExponentialLR(0.8), StepLR(2, 0.1)], [3, 6]
    ),
    "SequentialLR/4": SequentialLR(
        [
            ChainedScheduler([LinearLR(0.1, total_iters=5), ConstantLR(0.1, 5)]),
            ConstantLR(0.5, 5),
        ],
        [5],
    ),
    "SequentialLR/5": SequentialLR(
        [SequentialLR([ConstantLR(0.5, 99), ConstantLR(0.2, 99)], [2])], []
    ),
    "SWALR/0": SWALR(0.05, 10),
    "SWALR/1": [SWALR(0.05, 4, "linear"), SWALR(0.01, 4, "linear")],
    "SWALR/2": SWALR(0.02, 0),
    "compound/0": ChainedScheduler([StepLR(3, 0.1), ExponentialLR(0.9)]),
    "compound/1": ChainedScheduler([LinearLR(0.4, 0.9, 4), ExponentialLR(0.9)]),
    "compound/4": SWALR(0.01, 5, schedule=ExponentialLR(0.9), swa_start=30),
    "manual/0": as_schedule(lambda e: 0.1 * 0.5 ** (e // 7)),
    "manual/2": PiecewiseLR([(1, 1e-1), (2, 1e-2), (3, 1e-3), (4, 1e-4), (5, 1e-5)]),
    "manual/3": [
        MultiStepLR(range(1, 60, 10), 0.9),
        MultiStepLR(range(1, 60, 10), 0.7),
    ],
}
# What PyTorch did there is not what it says, so only these rows are compared.
TORCH_ROWS = {
    "ChainedScheduler/3": slice(21),  # its cosine then forgets the other factor
    "SequentialLR/5": slice(0),  # steps a nested sequence once too often
}


def groups_of(case):
    return case if isinstance(case, list) else [case, case]


def torch_values(key):
    rows = TORCH_ROWS.get(key, slice(None))
    name = f"{key}/closed" if f"{key}/closed" in TORCH else f"{key}/lr"
    return TORCH[name][rows], np.arange(60)[rows]


def traced(schedule, base, steps):
    return np.asarray(jax.jit(schedule)(jnp.float32(base), jnp.asarray(steps)))


def all_traced(pairs, steps, dtype=jnp.float32):
    """The rates of several schedules, each with its base, from one program."""
    bases = {}
    for schedule, base in pairs:
        bases.setdefault(schedule, []).append(base)

    @(quick if dtype == "float64" else jax.jit)
    def rates(bases, steps):
        pairs = zip(schedules, bases, strict=True)
        return [jax.vmap(each, (0, None))(own, steps) for each, own in pairs]

    schedules, arrays = [*bases], [jnp.asarray(own, dtype) for own in bases.values()]
    found = dict(zip(schedules, rates(arrays, jnp.asarray(steps)), strict=True))
    return [np.asarray(found[s][bases[s].index(base)]) for s, base in pairs]


@functools.cache
def torch_traced(dtype):
    """The rates of every case by key, of its two groups."""
    bases = TORCH_SPEC["base_lr"]
    pairs = [
        (schedule, bases[group])
        for case in TORCH_CASES.values()
        for group, schedule in enumerate(groups_of(case))
    ]
    with jax.enable_x64(dtype == "float64"):
        rates = all_traced(pairs, np.arange(60), dtype)
    return {key: rates[2 * i : 2 * i + 2] for i, key in enumerate(TORCH_CASES)}


def test_every_torch_case_has_a_schedule():
    cases = TORCH_SPEC["cases"]  # those with a metric are in test_plateau.py
    assert set(TORCH_CASES) == {c["key"] for c in cases if "metric" not in c}


@pytest.mark.parametrize("key", TORCH_CASES)
def test_torch_on_the_host(key):
    want, steps = torch_values(key)
    for group, schedule in enumerate(groups_of(TORCH_CASES[key])):
        got = schedule.sample(TORCH_SPEC["base_lr"][group], steps)
        np.testing.assert_allclose(got, want[:, group], rtol=1e-12, atol=TINY)


@pytest.mark.parametrize("key", TORCH_CASES)
def test_torch_traced(key):
    want, steps = torch_values(key)
    for group, rates in enumerate(torch_traced("float32")[key]):
        assert rates.dtype == np.float32
        got, expected = rates[steps], want[:, group]
        normal = expected > 1e-37
        np.testing.assert_allclose(got[normal], expected[normal], rtol=1e-6, atol=TINY)


@pytest.mark.parametrize("key", TORCH_CASES)
def test_torch_traced_in_float64(key):
    want, steps = torch_values(key)
    for group, rates in enumerate(torch_traced("float64")[key]):
        assert rates.dtype == np.float64
        np.testing.assert_allclose(rates[steps], want[:, group], rtol=1e-12, atol=TINY)


WITH_MOMENTUM = [k.removesuffix("/momentum") for k in TORCH if k.endswith("/momentum")]


@functools.cache
def momenta_traced():
    """The momentum of every case that has one, of its two groups."""
    cases = {key: groups_of(TORCH_CASES[key]) for key in WITH_MOMENTUM}

    @quick
    def momenta(steps):
        return {key: [s.momentum(steps) for s in case] for key, case in cases.items()}

    return momenta(jnp.arange(60))


@pytest.mark.parametrize("key", WITH_MOMENTUM)
def test_torch_momentum(key):
    want = TORCH[f"{key}/momentum"]
    for group, schedule in enumerate(groups_of(TORCH_CASES[key])):
        host = schedule.momentum(np.arange(60))
        np.testing.assert_allclose(host, want[:, group], rtol=1e-12)
        device = momenta_traced()[key][group]
        np.testing.assert_allclose(device, want[:, group], rtol=1e-6)


def test_nested_sequence_is_the_flat_one():
    flat = SequentialLR([ConstantLR(0.5, 99), ConstantLR(0.2, 99)], [2])
    want = [0.5, 0.5] + [0.2] * 8
    np.testing.assert_allclose(flat.sample(1.0, 10), want)
    np.testing.assert_allclose(TORCH_CASES["SequentialLR/5"].sample(1.0, 10), want)
    parts = [LinearLR(total_iters=3), ExponentialLR(0.9), StepLR(2), CosineDecayLR(9)]
    left = SequentialLR([SequentialLR(parts[:2], [3]), *parts[2:]], [6, 10])
    right = SequentialLR([*parts[:1], SequentialLR(parts[1:], [3, 7])], [3])
    want = SequentialLR(parts, [3, 6, 10]).sample(0.1, 30)
    np.testing.assert_allclose(left.sample(0.1, 30), want, rtol=1e-14)
    np.testing.assert_allclose(right.sample(0.1, 30), want, rtol=1e-14)


# --- OneFlow --------------------------------------------------------------------------
RENAMED = {"decay_batch": "total_iters", "end_learning_rate": "end_lr"}


def from_oneflow(spec):
    """The schedule for OneFlow's class and arguments."""
    if spec is None:
        return ConstantLR(1.0)
    name = "WarmupLR" if spec["class"] == "WarmUpLR" else spec["class"]
    defaults = {
        "PolynomialLR": {"end_lr": 1e-4},
        "SequentialLR": {"interval_rescaling": False},
    }
    args = defaults.get(name, {})
    args |= {RENAMED.get(key, key): value for key, value in spec["args"].items()}
    if "inner" in spec:
        args["schedule"] = from_oneflow(spec["inner"])
    if "schedulers" in spec:
        args["schedules"] = [from_oneflow(inner) for inner in spec["schedulers"]]
    return getattr(lrs, name)(**args)


@functools.cache
def probes_traced():
    """The rates of every probe, of each of its groups."""
    pairs = {
        (name, i): (from_oneflow(probe["scheduler"]), group.get("lr", probe["lr"]))
        for name, probe in PROBE_SPEC.items()
        for i, group in enumerate(probe["groups"])
    }
    most = max(probe["steps"] for probe in PROBE_SPEC.values())
    rates = all_traced(list(pairs.values()), np.arange(most))
    return dict(zip(pairs, rates, strict=True))


@pytest.mark.parametrize("name", PROBE_SPEC)
def test_oneflow(name):
    probe, want = PROBE_SPEC[name], PROBES[f"{name}/lr"]
    schedule, steps = from_oneflow(probe["scheduler"]), np.arange(probe["steps"])
    for i, group in enumerate(probe["groups"]):
        base, scale = group.get("lr", probe["lr"]), group.get("lr_scale", 1.0)
        host = np.float32(schedule.sample(np.float32(base), steps)) * np.float32(scale)
        np.testing.assert_allclose(host, want[:, i], rtol=2e-7, atol=TINY)
        device = probes_traced()[name, i][steps] * np.float32(scale)
        np.testing.assert_allclose(device, want[:, i], rtol=1e-6, atol=TINY)


# --- Accuracy in float32 --------------------------------------------------------------
ACCURATE = [
    ExponentialLR(0.999),
    ExponentialLR(0.99999),
    ExponentialLR(1.0001),
    ExponentialLR(1.0),
    ExponentialLR(0.0),
    StepLR(7, 0.9),
    CosineAnnealingLR(10_000),
    CosineAnnealingLR(9_999, eta_min=0.5),
    CosineDecayLR(30_000, alpha=1e-4),
    CosineAnnealingWarmRestarts(3, 2, eta_min=1e-5, decay_rate=0.7),
    CosineAnnealingWarmRestarts(1, 10),
    PolynomialLR(30_001, power=2.5, end_lr=1.0),
    PolynomialLR(77, power=1.5, cycle=True),
    LinearLR(1e-3, 0.0, 30_001),
    OneCycleLR(0.1, 33_333, pct_start=0.31, three_phase=True),
    CyclicLR(0.0, 1.0, 777, 333, mode="exp_range", gamma=0.9999),
    WarmupCosineLR(100, 30_001, warmup_factor=0.01),
    WarmupLR(CosineDecayLR(30_001), warmup_factor=0.0, warmup_iters=1000),
    lrs.InverseSqrtLR(4000),
    lrs.WarmupStableDecayLR(100, 20_000, 10_001),
]


STEPS = np.unique([*range(300), *range(0, 30_000, 97), *range(29_900, 30_001)])


@pytest.fixture(scope="module")
def in_float32():
    rates = all_traced([(schedule, 0.1) for schedule in ACCURATE], STEPS)
    return dict(zip(ACCURATE, rates, strict=True))


@pytest.mark.parametrize("schedule", ACCURATE, ids=repr)
def test_float32_keeps_the_relative_accuracy(schedule, in_float32):
    want, got = schedule.sample(np.float32(0.1), STEPS), in_float32[schedule]
    normal = want > 1e-37
    np.testing.assert_allclose(got[normal], want[normal], rtol=1e-6, atol=0)


def test_restart_is_found_where_a_logarithm_rounds():
    schedule = CosineAnnealingWarmRestarts(1, 10)
    assert [schedule(0.1, t) for t in (0, 1, 11, 111, 1111, 11111)] == [0.1] * 6


def test_polynomial_rises_accurately_from_zero():
    schedule, steps = PolynomialLR(30_000, power=2.0, end_lr=0.1), np.arange(1, 30_001)
    x = steps / 30_000
    np.testing.assert_allclose(schedule.sample(0.0, steps), 0.1 * x * (2 - x), 1e-10)
    np.testing.assert_allclose(traced(schedule, 0.0, steps), 0.1 * x * (2 - x), 1e-6)


def test_power_overflows_to_infinity_and_underflows_to_zero():
    assert ExponentialLR(10.0)(1.0, 400) == math.inf
    assert ExponentialLR(0.5)(1.0, 10**9) == 0.0
    assert float(jax.jit(ExponentialLR(2.0))(1.0, jnp.int32(127))) == 2.0**127


# --- The calling convention -----------------------------------------------------------
def test_result_types():
    schedule = CosineDecayLR(10)
    assert type(schedule(0.1, 3)) is float
    assert type(schedule(np.float32(0.1), np.int64(3))) is float
    assert schedule(np.ones(2), 3).dtype == np.float64
    assert schedule(jnp.float32(0.1), 3).dtype == jnp.float32
    assert schedule(jnp.bfloat16(0.1), 3).dtype == jnp.float32
    assert not schedule(0.1, jnp.int32(3)).weak_type
    assert schedule.sample([0.1, 0.2], 4).shape == (4, 2)
    assert schedule.sample(0.1, (5, 7)).tolist() == [schedule(0.1, 5), schedule(0.1, 7)]


def test_one_compilation_for_all_steps():
    traces = []

    @jax.jit
    def lr(base, step):
        traces.append(step)
        return SequentialLR([WarmupLR(), StepLR(3)], [5])(base, step)

    for step in range(10):
        lr(jnp.float32(0.1), jnp.int32(step))
    assert len(traces) == 1


def test_scalar_steps_agree_with_a_vector_of_steps():
    schedule = WarmupLR(CosineDecayLR(20), warmup_iters=4)
    step = jax.jit(schedule)
    one_by_one = [step(jnp.float32(0.1), jnp.int32(t)) for t in range(25)]
    np.testing.assert_allclose(one_by_one, schedule.sample(0.1, 25), rtol=1e-6)


def test_every_counts_in_periods():
    steps = np.arange(40)
    for schedule in (StepLR(3, every=4), StepLR(3, every=2, gamma=0.5)):
        plain = StepLR(3, schedule.gamma).sample(0.1, steps // schedule.every)
        np.testing.assert_array_equal(schedule.sample(0.1, steps), plain)
        np.testing.assert_allclose(traced(schedule, 0.1, steps), plain, rtol=1e-6)
    outer = SequentialLR([StepLR(1, every=2), ConstantLR()], [4], every=10)
    assert outer(1.0, 25) == StepLR(1)(1.0, 1)
    assert as_schedule(StepLR(1, every=2), every=5) == StepLR(1, every=10)
    assert OneCycleLR(0.1, 10, every=3).momentum(8) == OneCycleLR(0.1, 10).momentum(2)


def test_equal_schedules_are_one_key():
    a, b = MultiStepLR([3, 5]), MultiStepLR((3, 5), 0.1)
    assert a == b
    assert len({a, b, StepLR(3), PiecewiseLR([[1, 0.1]]), as_schedule([0.1])}) == 4
    nested = SequentialLR([a, WarmupLR(b)], [3], interval_rescaling=[True])
    assert hash(nested) == hash(pickle.loads(pickle.dumps(nested)))
    assert ExponentialLR(np.float32(0.5)) == ExponentialLR(0.5)


def test_repr_reads_like_the_call():
    assert repr(StepLR(3, gamma=0.5)) == "StepLR(step_size=3, gamma=0.5)"
    assert repr(WarmupLR(StepLR(3, every=2))) == (
        "WarmupLR(schedule=StepLR(step_size=3, every=2))"
    )
    assert repr(SequentialLR([StepLR(3), ConstantLR()], [4])) == (
        "SequentialLR(schedules=[StepLR(step_size=3), ConstantLR()], milestones=[4])"
    )
    assert repr(LambdaLR(hf_cosine)) == "LambdaLR(lr_lambda=hf_cosine)"
    assert (
        repr(as_schedule(np.arange(9.0))) == "TableLR(values=[0.0, 1.0, 2.0, ..., 8.0])"
    )


# --- Functions ------------------------------------------------------------------------
def test_lambda_is_called_with_ints_on_the_host():
    seen = []
    LambdaLR(lambda step: seen.append(type(step)) or 1.0).sample(1.0, 3)
    assert seen == [int, int, int]


@pytest.mark.parametrize(
    "fn",
    [
        lambda step: 0.5 if step < 3 else 0.1,
        lambda step: math.cos(step / 10),
        lambda step: [1.0, 0.5, 0.25, 0.1, 0.05][min(int(step), 4)],
        lambda step: np.array([1.0, 0.5, 0.1])[min(step, 2)],
        lambda step: {0: 1.0}.get(step, 0.5),
    ],
)
def test_untraceable_lambda_is_called_back(fn):
    want = LambdaLR(fn).sample(0.1, 10)
    np.testing.assert_allclose(traced(LambdaLR(fn), 0.1, np.arange(10)), want, 1e-6)
    step = jax.jit(LambdaLR(fn))
    one_by_one = [step(jnp.float32(0.1), jnp.int32(t)) for t in range(10)]
    np.testing.assert_allclose(one_by_one, want, rtol=1e-6)
    _, scanned = jax.lax.scan(
        lambda c, t: (c, LambdaLR(fn)(c, t)), jnp.float32(0.1), jnp.arange(10)
    )
    np.testing.assert_allclose(scanned, want, rtol=1e-6)


def test_traceable_lambda_needs_no_host():
    text = jax.jit(LambdaLR(lambda e: 0.9**e)).lower(jnp.float32(1), jnp.int32(1))
    assert "callback" not in text.as_text()


def test_fault_of_a_lambda_is_named_before_the_program_runs():
    with pytest.raises(TypeError, match=r"<lambda>\(1\) is None, not a number"):
        jax.jit(LambdaLR(lambda step: None))(jnp.float32(0.1), jnp.int32(3))
    with pytest.raises(TypeError, match="not a number"):
        LambdaLR(lambda step: "fast")(0.1, 3)


def test_multiplicative_never_calls_zero_and_may_step_back():
    schedule = MultiplicativeLR(lambda step: 1 / step)
    want = [1 / math.factorial(step) for step in range(12)]
    np.testing.assert_allclose(schedule.sample(1.0, 12), want)
    assert schedule(1.0, 3) == pytest.approx(1 / 6)
    step = jax.jit(schedule)
    np.testing.assert_allclose(
        [step(jnp.float32(1), jnp.int32(t)) for t in (5, 2, 11)],
        [want[5], want[2], want[11]],
        rtol=1e-6,
    )


def test_optax_schedule_gives_what_optax_gives():
    fn = optax.warmup_cosine_decay_schedule(0.0, 0.1, 5, 50, 0.001)
    schedule, steps = as_schedule(fn), jnp.arange(60)
    np.testing.assert_array_equal(
        jax.jit(schedule)(jnp.float32(7.0), steps), jax.jit(jax.vmap(fn))(steps)
    )
    np.testing.assert_allclose(schedule.sample(7.0, 5), [fn(t) for t in range(5)])
    inside = SequentialLR([LinearLR(), fn], [5])
    assert inside(0.1, 12) == pytest.approx(float(fn(7)))
    assert WarmupLR(fn, warmup_iters=0)(0.3, 9) == pytest.approx(float(fn(9)))


@pytest.mark.parametrize("kind", [list, tuple, np.array, jnp.array])
def test_array_is_a_table(kind):
    schedule = as_schedule(kind([0.5, 0.25, 0.125]))
    assert schedule.sample(9.0, 5).tolist() == [0.5, 0.25, 0.125, 0.125, 0.125]
    got = traced(schedule, 9.0, np.arange(5))
    assert got.tolist() == [0.5, 0.25, 0.125, 0.125, 0.125]
    assert as_schedule(schedule) is schedule


@pytest.mark.parametrize("value", [0.1, None, "cosine", StepLR, [[0.1]], {0: 0.1}])
def test_other_things_are_not_schedules(value):
    with pytest.raises(TypeError, match=r"not a schedule, a function .* 1-D array"):
        as_schedule(value)


# --- Composition ----------------------------------------------------------------------
def test_mixed_rescaling_continues_the_previous_clock():
    parts = [ConstantLR(0.1, 2), ExponentialLR(0.9), ExponentialLR(0.8)]
    schedule = SequentialLR(parts, [2, 5], interval_rescaling=[True, False])
    assert schedule(1.0, 5) == pytest.approx(0.8**3)
    assert SequentialLR(parts, [2, 5], [False, True])(1.0, 6) == pytest.approx(0.8)


def test_milestone_0_skips_the_first_schedule():
    schedule = SequentialLR([ConstantLR(0.1, 9), ConstantLR(0.5, 9)], [0])
    assert schedule(1.0, 0) == 0.5


def test_chain_is_the_product_of_factors():
    parts = [CosineAnnealingLR(10, eta_min=0.01), StepLR(3), LinearLR()]
    chain, nested = (
        ChainedScheduler(parts),
        ChainedScheduler([ChainedScheduler(parts[:2]), parts[2]]),
    )
    steps, base = np.arange(20), 0.2
    want = base * np.prod([part.sample(base, steps) / base for part in parts], axis=0)
    np.testing.assert_allclose(chain.sample(base, steps), want, rtol=1e-13)
    np.testing.assert_allclose(nested.sample(base, steps), want, rtol=1e-13)
    assert chain(0.0, 10) == pytest.approx(0.01 * StepLR(3)(1.0, 10))
    two = ChainedScheduler([parts[0], SWALR(0.1)])
    assert two(0.2, 4) == pytest.approx(parts[0](0.2, 4) * SWALR(0.1)(0.2, 4) / 0.2)
    assert two(0.0, 4) == 0.0


def test_momentum_of_compositions():
    cycle = OneCycleLR(0.1, 10)
    assert StepLR(3).momentum(0) is None
    assert OneCycleLR(0.1, 10, cycle_momentum=False).momentum(0) is None
    chained = ChainedScheduler([StepLR(3), cycle])
    assert chained.momentum(4) == cycle.momentum(4)
    prefixed = WarmupLR(cycle, warmup_iters=3, warmup_prefix=True)
    assert prefixed.momentum(5) == cycle.momentum(2)
    assert WarmupLR(cycle, warmup_iters=3).momentum(5) == cycle.momentum(5)
    both = SequentialLR([cycle, CyclicLR(0.1, 0.2, 5)], [10])
    assert both.momentum(15) == pytest.approx(0.8)
    assert both(0.1, 500) == pytest.approx(CyclicLR(0.1, 0.2, 5)(0.1, 490))


def test_one_cycle_beyond_its_end():
    schedule = OneCycleLR(0.1, 10)
    assert schedule(0.1, 10) == schedule(0.1, 9)
    with pytest.raises(ValueError, match="step is 11, not <= 10"):
        schedule.sample(0.1, 12)
    assert schedule(0.1, 11) == schedule(0.1, 9)
    held = traced(schedule, 0.1, np.array([9, 10, 11, 999]))
    assert len(set(held.tolist())) == 1


# --- Errors ---------------------------------------------------------------------------
NAN = float("nan")
FAULTS = {
    "constant_factor_2": (ValueError, lambda: ConstantLR(factor=2.0)),
    "constant_factor_0": (ValueError, lambda: ConstantLR(factor=0)),
    "linear_start_0": (ValueError, lambda: LinearLR(start_factor=0.0)),
    "linear_end_2": (ValueError, lambda: LinearLR(end_factor=2.0)),
    "linear_iters_0": (ValueError, lambda: LinearLR(total_iters=0)),
    "cawr_T_0": (ValueError, lambda: CosineAnnealingWarmRestarts(0)),
    "cawr_T_mult": (ValueError, lambda: CosineAnnealingWarmRestarts(1, 1.5)),
    "onecycle_anneal": (ValueError, lambda: OneCycleLR(0.1, 5, anneal_strategy="x")),
    "onecycle_no_length": (ValueError, lambda: OneCycleLR(0.1, epochs=3)),
    "onecycle_pct_start_int": (ValueError, lambda: OneCycleLR(0.1, 5, pct_start=1)),
    "onecycle_pct_start_2": (ValueError, lambda: OneCycleLR(0.1, 5, pct_start=2.0)),
    "onecycle_total_steps_0": (ValueError, lambda: OneCycleLR(0.1, 0)),
    "onecycle_too_many_steps": (ValueError, lambda: OneCycleLR(0.1, 5).sample(1, 7)),
    "onecycle_max_lr_list": (TypeError, lambda: OneCycleLR([0.1, 0.2], 5)),
    "cyclic_mode": (ValueError, lambda: CyclicLR(0.1, 0.2, mode="x")),
    "cyclic_scale_mode": (ValueError, lambda: CyclicLR(0.1, 0.2, scale_mode="x")),
    "cyclic_scale_fn": (TypeError, lambda: CyclicLR(0.1, 0.2, scale_fn=3)),
    "sequential_empty": (ValueError, lambda: SequentialLR([], [])),
    "sequential_milestones": (ValueError, lambda: SequentialLR([StepLR(3)], [3])),
    "sequential_order": (
        ValueError,
        lambda: SequentialLR([StepLR(3), StepLR(4), StepLR(5)], [9, 3]),
    ),
    "sequential_flags": (
        ValueError,
        lambda: SequentialLR([StepLR(3), StepLR(4)], [9], [True, False]),
    ),
    "sequential_flag_type": (
        TypeError,
        lambda: SequentialLR([StepLR(3), StepLR(4)], [9], [1]),
    ),
    "sequential_one_schedule": (TypeError, lambda: SequentialLR(3, [])),
    "sequential_momentum": (
        ValueError,
        lambda: SequentialLR([StepLR(3), OneCycleLR(0.1, 9)], [9]),
    ),
    "chained_empty": (ValueError, lambda: ChainedScheduler([])),
    "chained_momentum": (
        ValueError,
        lambda: ChainedScheduler([OneCycleLR(0.1, 9), OneCycleLR(0.1, 9)]),
    ),
    "swalr_anneal": (ValueError, lambda: SWALR(0.1, anneal_strategy="x")),
    "swalr_epochs": (ValueError, lambda: SWALR(0.1, anneal_epochs=-1)),
    "multiplicative_not_callable": (TypeError, lambda: MultiplicativeLR(0.9)),
    "lambda_list": (TypeError, lambda: LambdaLR([lambda e: 1.0])),
    "step_size_0": (ValueError, lambda: StepLR(0)),
    "step_size_float": (ValueError, lambda: StepLR(1e4)),
    "step_size_text": (TypeError, lambda: StepLR("3")),
    "step_size_bool": (TypeError, lambda: StepLR(True)),
    "step_size_huge": (ValueError, lambda: StepLR(10**10)),
    "gamma_negative": (ValueError, lambda: StepLR(3, -0.1)),
    "gamma_nan": (ValueError, lambda: ExponentialLR(NAN)),
    "gamma_inf": (ValueError, lambda: ExponentialLR(math.inf)),
    "milestone_negative": (ValueError, lambda: MultiStepLR([-1])),
    "milestones_number": (TypeError, lambda: MultiStepLR(3)),
    "T_max_0": (ValueError, lambda: CosineAnnealingLR(0)),
    "eta_min_negative": (ValueError, lambda: CosineAnnealingLR(3, -0.1)),
    "power_nan": (ValueError, lambda: PolynomialLR(power=NAN)),
    "polynomial_iters_0": (ValueError, lambda: PolynomialLR(0)),
    "polynomial_cycle": (TypeError, lambda: PolynomialLR(3, cycle=1)),
    "decay_steps_0": (ValueError, lambda: CosineDecayLR(0)),
    "alpha_nan": (ValueError, lambda: CosineDecayLR(3, NAN)),
    "warmup_method": (ValueError, lambda: WarmupLR(warmup_method="cos")),
    "warmup_factor": (ValueError, lambda: WarmupLR(warmup_factor=-1.0)),
    "warmup_number": (TypeError, lambda: WarmupLR(5)),
    "warmup_cosine_length": (ValueError, lambda: WarmupCosineLR(5, 5)),
    "piecewise_empty": (ValueError, lambda: PiecewiseLR([])),
    "piecewise_number": (TypeError, lambda: PiecewiseLR([0.1])),
    "table_empty": (ValueError, lambda: as_schedule([])),
    "table_nan": (ValueError, lambda: as_schedule([0.1, NAN])),
    "every_0": (ValueError, lambda: StepLR(3, every=0)),
    "every_positional": (TypeError, lambda: StepLR(3, 0.1, 2)),
    "step_negative": (ValueError, lambda: StepLR(3)(0.1, -1)),
    "step_float": (TypeError, lambda: StepLR(3)(0.1, 1.0)),
    "step_float_traced": (TypeError, lambda: StepLR(3)(0.1, jnp.float32(1))),
    "sample_float": (TypeError, lambda: StepLR(3).sample(0.1, [0.5])),
}


@pytest.mark.parametrize("case", FAULTS)
def test_faults_are_refused(case):
    kind, make = FAULTS[case]
    with pytest.raises(kind) as caught:
        make()
    if not case.endswith(("positional", "sample_float")):
        assert "→" in str(caught.value)


VALID = {
    "StepLR": {"step_size": 3},
    "MultiStepLR": {"milestones": [3]},
    "ConstantLR": {},
    "LinearLR": {},
    "ExponentialLR": {"gamma": 0.9},
    "PolynomialLR": {},
    "CosineDecayLR": {"decay_steps": 3},
    "CosineAnnealingLR": {"T_max": 3},
    "CosineAnnealingWarmRestarts": {"T_0": 3},
    "OneCycleLR": {"max_lr": 0.1, "total_steps": 9},
    "CyclicLR": {"base_lr": 0.1, "max_lr": 0.2},
    "LambdaLR": {"lr_lambda": abs},
    "MultiplicativeLR": {"lr_lambda": abs},
    "FunctionLR": {"fn": abs},
    "TableLR": {"values": [0.1]},
    "PiecewiseLR": {"pieces": [(1, 0.1)]},
    "InverseSqrtLR": {"warmup_iters": 3},
    "WarmupStableDecayLR": {"warmup_iters": 1, "stable_iters": 1, "decay_iters": 1},
    "WarmupCosineLR": {"warmup_iters": 1, "total_iters": 3},
    "WarmupLR": {},
    "SequentialLR": {"schedules": [StepLR(3)], "milestones": []},
    "ChainedScheduler": {"schedules": [StepLR(3)]},
    "SWALR": {"swa_lr": 0.1},
}


def test_every_schedule_is_in_the_table():
    kinds = [kind for kind in vars(lrs).values() if isinstance(kind, type)]
    schedules = {kind.__name__ for kind in kinds if issubclass(kind, lrs.Schedule)}
    assert schedules - {"Schedule"} == set(VALID)


@pytest.mark.parametrize("name", VALID)
def test_every_setting_refuses_what_is_no_value_of_it(name):
    kind, valid = getattr(lrs, name), VALID[name]
    for setting in dataclasses.fields(kind):
        is_flag = isinstance(getattr(kind(**valid), setting.name), bool)
        for bad in ["x", NAN, -1.5, 1j] + ([] if is_flag else [True]):
            place = rf"{name}: {setting.name}\b.* is .* → "
            if setting.init:
                with pytest.raises((TypeError, ValueError), match=place):
                    kind(**{**valid, setting.name: bad})


@pytest.mark.parametrize(
    "make",
    [
        lambda optimizer: StepLR(optimizer, 3),
        lambda optimizer: StepLR(optimizer, 3, 0.1, -1),
        lambda optimizer: StepLR(optimizer=optimizer, step_size=3),
    ],
)
def test_a_schedule_is_not_given_the_optimizer(make):
    remedy = (
        r"StepLR takes no optimizer.* → .*add_optimizer\(optimizer, lr_sch=StepLR\("
    )
    with pytest.raises(TypeError, match=remedy):
        make(SGD("**"))


def test_messages_lead_to_the_remedy():
    with pytest.raises(
        ValueError, match=r"LinearLR: start_factor is 0.0, not a number >"
    ):
        LinearLR(start_factor=0.0)
    with pytest.raises(ValueError, match=r"→ WarmupLR\(warmup_factor=0.0, "):
        LinearLR(start_factor=0.0)
    with pytest.raises(
        ValueError, match=r"step_size is 0, not an int from 1 .*→ step_"
    ):
        StepLR(0)
    with pytest.raises(ValueError, match=r"step_size is 10000.0, .* → step_size=10000"):
        StepLR(1e4)
    with pytest.raises(ValueError, match=r"factor is 2.0, .* → factor=1.0"):
        ConstantLR(factor=2.0)
    with pytest.raises(TypeError, match=r"not a list → schedules=\[StepLR\(step_si"):
        SequentialLR(StepLR(3), [])
    with pytest.raises(TypeError, match=r"ChainedScheduler: schedules\[1\] is 3, not"):
        ChainedScheduler([StepLR(3), 3])
    with pytest.raises(TypeError, match=r"\"lr_sch\": OneCycleLR\(max_lr=...\)} per"):
        OneCycleLR([0.1, 0.2], 60)


def test_own_schedule_is_a_dataclass_with_a_formula():
    class Halving(lrs.Schedule):
        until: Positive
        start: NonNegative = 1.0

        def _lr(self, base, at):
            return base * self.start * at.power(0.5, at.xp.minimum(at.t, self.until))

    assert repr(Halving(3, every=2)) == "Halving(until=3, every=2)"
    assert Halving(3) == Halving(until=3, start=1)
    assert Halving(2).sample(1.0, 5).tolist() == [1.0, 0.5, 0.25, 0.25, 0.25]
    with pytest.raises(ValueError):
        Halving(0)


def test_schedule_survives_partial_application():
    lr_at = functools.partial(StepLR(3), 0.1)
    assert jax.jit(lr_at)(jnp.int32(3)) == pytest.approx(0.01)
