"""Parameters without a graph: small trees, and one network of five libraries."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen, nnx

from graphlr.optim import SGD, AdamW, lr_scheduler
from tests.models import quick

ONES = jnp.ones(2)


def nested(leaf=ONES):
    """Like Linen's parameters."""
    return {"params": {"Dense_0": {"kernel": leaf, "bias": leaf}, "head": {"w": leaf}}}


def two_groups(**keys):
    params = {"body": ONES, "head": ONES}
    groups = [{"params": "body", "name": "body"}, {"params": "head", "name": "head"}]
    return params, SGD(groups, lr=0.1, **keys).as_optax(params)


def together(rules):
    """One compiled step of several transformations, each with arrays of its own.

    Args:
        rules: By name.

    Returns:
        `(grads, params, states) -> (params, states)`, each of them by that name.
    """

    @quick
    def step(grads, params, states):
        new_params, new_states = {}, {}
        for name, tx in rules.items():
            made = tx.update(grads[name], states[name], params[name])
            updates, new_states[name] = made
            new_params[name] = optax.apply_updates(params[name], updates)
        return new_params, new_states

    return step


# --- one network of five libraries ----------------------------------------------------

X = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
Y = np.tanh(X - X[:, ::-1])
LR = 0.1
HEAD = lr_scheduler.StepLR(step_size=5, gamma=0.5)


class Case(NamedTuple):
    """A network of three layers: its parameters, its outputs, where its layers are."""

    params: Any
    apply: Callable[[Any, jax.Array], jax.Array]
    globs: tuple[str, str, str]


def of_dicts(seed):
    rng = np.random.default_rng(seed)
    params = {
        name: {"w": jnp.asarray(rng.normal(size=(4, 4)) / 2, float), "b": jnp.zeros(4)}
        for name in ("stem", "body", "head")
    }

    def apply(params, x):
        x = jnp.tanh(x @ params["stem"]["w"] + params["stem"]["b"])
        x = jnp.tanh(x @ params["body"]["w"] + params["body"]["b"])
        return x @ params["head"]["w"] + params["head"]["b"]

    return Case(params, apply, ("stem.*", "body.*", "head.?"))


class OfNnx(nnx.Module):
    def __init__(self, seed):
        rngs = nnx.Rngs(seed)
        self.stem = nnx.Linear(4, 4, rngs=rngs)
        self.body = nnx.List([nnx.Linear(4, 4, rngs=rngs)])
        self.head = nnx.Linear(4, 4, rngs=rngs)

    def __call__(self, x):
        return self.head(jnp.tanh(self.body[0](jnp.tanh(self.stem(x)))))


def of_nnx(seed):
    graphdef, params = nnx.split(OfNnx(seed), nnx.Param)

    def apply(params, x):
        return nnx.merge(graphdef, params)(x)

    return Case(params, apply, ("stem.*", "body.0.*", "head.*"))


class OfLinen(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = jnp.tanh(linen.Dense(4, name="stem")(x))
        x = jnp.tanh(linen.Dense(4, name="body")(x))
        return linen.Dense(4, name="head")(x)


def of_linen(seed):
    net = OfLinen()
    params = net.init(jax.random.key(seed), X)
    return Case(params, net.apply, ("params.stem.*", "**.body.*", "**.head.*"))


class OfEquinox(eqx.Module):
    stem: eqx.nn.Linear
    body: list[eqx.nn.Linear]
    head: eqx.nn.Linear
    activation: Callable
    calls: jax.Array

    def __init__(self, key):
        a, b, c = jax.random.split(key, 3)
        self.stem = eqx.nn.Linear(4, 4, key=a)
        self.body = [eqx.nn.Linear(4, 4, key=b)]
        self.head = eqx.nn.Linear(4, 4, key=c)
        self.activation = jnp.tanh
        self.calls = jnp.zeros((), jnp.int32)

    def __call__(self, x):
        return self.head(self.activation(self.body[0](self.activation(self.stem(x)))))


def of_equinox(seed):
    net = OfEquinox(jax.random.key(seed))
    params, rest = eqx.partition(net, eqx.is_inexact_array)  # the rest: None in params
    assert params.activation is None
    assert params.calls is None

    def apply(params, x):
        return jax.vmap(eqx.combine(params, rest))(x)

    return Case(params, apply, ("stem.*", "body.0.*", "head.*"))


class OfHaiku(hk.Module):
    def __call__(self, x):
        x = jnp.tanh(hk.Linear(4, name="stem")(x))
        x = jnp.tanh(hk.Linear(4, name="body")(x))
        return hk.Linear(4, name="head")(x)


def of_haiku(seed):
    net = hk.without_apply_rng(hk.transform(lambda x: OfHaiku(name="net")(x)))
    params = net.init(jax.random.key(seed), X)
    return Case(params, net.apply, ("net/stem.*", "*body.*", "net/head.*"))


LIBRARIES = {
    "dicts": of_dicts,
    "nnx": of_nnx,
    "linen": of_linen,
    "equinox": of_equinox,
    "haiku": of_haiku,
}


def optimizer_of(case):
    stem, body, head = case.globs
    return AdamW(
        [
            {"params": stem, "name": "stem", "frozen": True},
            {"params": body, "name": "body", "lr_scale": 0.5, "weight_decay": 0.0},
            {"params": head, "name": "head", "lr_sch": HEAD, "weight_decay": 0.1},
        ],
        lr=LR,
    )


def layer_of(path, leaf):
    """The layer that a leaf is of, told by its path, without graphlr."""
    return next(n for n in ("stem", "body", "head") if n in jax.tree_util.keystr(path))


def by_hand(case):
    """What `optimizer_of` makes, written out in optax."""
    rules = {
        "stem": optax.set_to_zero(),
        "body": optax.adamw(LR * 0.5, weight_decay=0.0),
        "head": optax.adamw(lambda t: LR * 0.5 ** (t // 5), weight_decay=0.1),
    }
    labels = jax.tree_util.tree_map_with_path(layer_of, case.params)
    return optax.multi_transform(rules, lambda _: labels)  # an Equinox one is callable


class Run(NamedTuple):
    """Parameters, states and losses, each by library."""

    params: dict[str, Any]
    states: dict[str, Any]
    losses: dict[str, list[float]]


class Networks:
    """The network of every library, and a transformation of each.

    Args:
        seed: Of the weights.
        make: From a case to its transformation.
    """

    def __init__(self, seed, make):
        self.cases = {name: of(seed) for name, of in LIBRARIES.items()}
        self.rules = {name: make(case) for name, case in self.cases.items()}
        params = {name: case.params for name, case in self.cases.items()}
        states = {name: tx.init(params[name]) for name, tx in self.rules.items()}
        self.start = Run(params, states, {name: [] for name in params})

        @quick
        def step(params, states):
            new_params, new_states, losses = {}, {}, {}
            for name, case in self.cases.items():
                loss_of = functools.partial(loss_by, case)
                losses[name], grads = jax.value_and_grad(loss_of)(params[name])
                updates, new_states[name] = self.rules[name].update(
                    grads, states[name], params[name]
                )
                new_params[name] = optax.apply_updates(params[name], updates)
            return new_params, new_states, losses

        self.step = step

    def run(self, steps, since=None):
        """That many steps of each, from the start or since another run."""
        params, states, losses = since or self.start
        for _ in range(steps):
            params, states, now = self.step(params, states)
            losses = {name: [*losses[name], float(loss)] for name, loss in now.items()}
        return Run(params, states, losses)


def loss_by(case, params):
    return jnp.mean((case.apply(params, X) - Y) ** 2)


def grouped(case):
    return optimizer_of(case).as_optax(case.params)


@functools.cache
def networks(seed=0, make=grouped):
    """One for each, so that it is compiled once."""
    return Networks(seed, make)


def of_layer(params, name):
    return [
        np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if layer_of(path, leaf) == name
    ]


def same(a, b):
    """Whether two trees are alike bit for bit."""
    a, b = jax.tree.leaves(a), jax.tree.leaves(b)
    pairs = [(np.asarray(x), np.asarray(y)) for x, y in zip(a, b, strict=True)]
    return all(x.dtype == y.dtype and x.tobytes() == y.tobytes() for x, y in pairs)
