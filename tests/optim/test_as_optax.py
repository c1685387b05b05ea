"""Groups without a graph: real libraries' parameters, checkpoints, live numbers."""

import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import linen, nnx, serialization

import graphlr as glr
from graphlr.optim import SGD, Adam, AdamW, GroupsState, lr_of, lr_scheduler

ONES = jnp.ones(2)
X = np.random.default_rng(0).normal(size=(32, 2)).astype(np.float32)
Y = np.tanh(X[:, :1] - X[:, 1:])


# --- one network of five libraries ----------------------------------------------------


class Case(NamedTuple):
    """A network of three layers: its parameters, its outputs, where its layers are."""

    params: Any
    apply: Callable[[Any, jax.Array], jax.Array]
    globs: tuple[str, str, str]


def of_dicts(seed):
    shapes = {"stem": (2, 8), "body": (8, 8), "head": (8, 1)}
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {
        name: {"w": jax.random.normal(key, shape) * 0.5, "b": jnp.zeros(shape[1])}
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }

    def apply(params, x):
        x = jnp.tanh(x @ params["stem"]["w"] + params["stem"]["b"])
        x = jnp.tanh(x @ params["body"]["w"] + params["body"]["b"])
        return x @ params["head"]["w"] + params["head"]["b"]

    return Case(params, apply, ("stem.*", "body.*", "head.?"))


class OfNnx(nnx.Module):
    def __init__(self, rngs):
        self.stem = nnx.Linear(2, 8, rngs=rngs)
        self.body = nnx.List([nnx.Linear(8, 8, rngs=rngs)])
        self.head = nnx.Linear(8, 1, rngs=rngs)

    def __call__(self, x):
        return self.head(jnp.tanh(self.body[0](jnp.tanh(self.stem(x)))))


def of_nnx(seed):
    graphdef, params = nnx.split(OfNnx(nnx.Rngs(seed)), nnx.Param)

    def apply(params, x):
        return nnx.merge(graphdef, params)(x)

    return Case(params, apply, ("stem.*", "body.0.*", "head.*"))


class OfLinen(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = jnp.tanh(linen.Dense(8, name="stem")(x))
        x = jnp.tanh(linen.Dense(8, name="body")(x))
        return linen.Dense(1, name="head")(x)


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
        self.stem = eqx.nn.Linear(2, 8, key=a)
        self.body = [eqx.nn.Linear(8, 8, key=b)]
        self.head = eqx.nn.Linear(8, 1, key=c)
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
        x = jnp.tanh(hk.Linear(8, name="stem")(x))
        x = jnp.tanh(hk.Linear(8, name="body")(x))
        return hk.Linear(1, name="head")(x)


def of_haiku(seed):
    net = hk.without_apply_rng(hk.transform(lambda x: OfHaiku(name="net")(x)))
    params = net.init(jax.random.key(seed), X)
    return Case(params, net.apply, ("net/stem.*", "*body.*", "net/head.*"))


CASES = [of_dicts, of_nnx, of_linen, of_equinox, of_haiku]
each_library = pytest.mark.parametrize("case_of", CASES, ids=lambda f: f.__name__)
LR = 0.05
HEAD = lr_scheduler.StepLR(step_size=5, gamma=0.5)


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
    rules = {
        "stem": optax.set_to_zero(),
        "body": optax.adamw(LR * 0.5, weight_decay=0.0),
        "head": optax.adamw(lambda t: LR * 0.5 ** (t // 5), weight_decay=0.1),
    }
    labels = jax.tree_util.tree_map_with_path(layer_of, case.params)
    return optax.multi_transform(rules, lambda _: labels)  # an Equinox one is callable


def step_of(case, tx):
    def loss_of(params, x, y):
        return jnp.mean((case.apply(params, x) - y) ** 2)

    @jax.jit
    def step(params, state):
        loss, grads = jax.value_and_grad(loss_of)(params, X, Y)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    return step


def run(step, params, state, steps):
    losses = []
    for _ in range(steps):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    return params, state, losses


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


@each_library
def test_groups_train_as_written_by_hand(case_of):
    case = case_of(0)
    tx = optimizer_of(case).as_optax(case.params)
    step, state = step_of(case, tx), tx.init(case.params)
    assert lr_of(state) == pytest.approx({"stem": LR, "body": LR / 2, "head": LR})
    params, state, losses = run(step, case.params, state, 12)
    assert step._cache_size() == 1
    assert losses[-1] < losses[0] / 2
    assert lr_of(state) == pytest.approx({"stem": LR, "body": LR / 2, "head": LR / 4})
    assert jax.tree.structure(params) == jax.tree.structure(case.params)
    assert same(of_layer(params, "stem"), of_layer(case.params, "stem"))
    hand = by_hand(case)
    expected, _, _ = run(step_of(case, hand), case.params, hand.init(case.params), 12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
                 jax.tree.leaves(params), jax.tree.leaves(expected))  # fmt: skip


@each_library
def test_an_edited_number_acts_on_the_next_step(case_of):
    case = case_of(0)
    tx = optimizer_of(case).as_optax(case.params)
    step = step_of(case, tx)
    params, state, _ = run(step, case.params, tx.init(case.params), 3)
    body = {**state.values["body"], "lr_scale": jnp.float32(0.0)}
    edited = state._replace(values={**state.values, "body": body})
    assert lr_of(edited, tx) == pytest.approx({"stem": LR, "body": 0.0, "head": LR})
    plain, _, _ = step(params, state)
    after, edited, _ = step(params, edited)
    assert same(of_layer(after, "body"), of_layer(params, "body"))
    assert not same(of_layer(plain, "body"), of_layer(params, "body"))
    assert same(of_layer(after, "head"), of_layer(plain, "head"))
    assert lr_of(edited) == lr_of(edited, tx)
    assert step._cache_size() == 1


def through_orbax(state, template, path):
    with ocp.StandardCheckpointer() as keeper:
        keeper.save(path / "state", state)
        keeper.wait_until_finished()
        return keeper.restore(path / "state", template)


def through_flax(state, template, path):
    (path / "state").write_bytes(serialization.to_bytes(state))
    return serialization.from_bytes(template, (path / "state").read_bytes())


def through_equinox(state, template, path):
    eqx.tree_serialise_leaves(path / "state", state)
    return eqx.tree_deserialise_leaves(path / "state", template)


def through_pickle(state, template, path):
    return pickle.loads(pickle.dumps(state))


KEPT = [  # nothing of a library's own is in a state, so any of them keeps any state
    *((of_dicts, through) for through in (through_flax, through_pickle)),
    (of_nnx, through_orbax),
    (of_linen, through_flax),
    (of_equinox, through_equinox),
    (of_haiku, through_orbax),
]


@pytest.mark.parametrize(("case_of", "through"), KEPT)
def test_a_restored_state_goes_on_bit_for_bit(case_of, through, tmp_path):
    case = case_of(0)
    tx = optimizer_of(case).as_optax(case.params)
    step = step_of(case, tx)
    params, state, _ = run(step, case.params, tx.init(case.params), 4)
    state.values["head"]["lr_scale"] = jnp.float32(0.75)  # numbers are kept too
    other = case_of(1)  # as another process would make it
    other_tx = optimizer_of(other).as_optax(other.params)
    restored = through(state, other_tx.init(other.params), tmp_path)
    assert type(restored) is GroupsState
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert same(restored, state)
    gone_on = run(step, params, state, 4)
    stopped = run(step_of(other, other_tx), params, restored, 4)
    assert gone_on[2] == stopped[2]
    assert same(gone_on[:2], stopped[:2])
    assert lr_of(stopped[1])["head"] == pytest.approx(LR * 0.75 / 2)


def test_a_full_loop_of_nnx(tmp_path):
    def make(seed):
        model = OfNnx(nnx.Rngs(seed))
        optimizer = AdamW(
            [{"params": model.stem, "name": "stem", "frozen": True},
             {"params": model.body, "name": "body", "lr_scale": 0.5},
             {"params": ..., "name": "head", "lr_sch": HEAD}],
            lr=LR,
        )  # fmt: skip
        tx = optimizer.as_optax(nnx.state(model, nnx.Param))
        return model, nnx.Optimizer(model, tx, wrt=nnx.Param)

    traces = []

    @nnx.jit
    def step(model, optimizer):
        traces.append(1)
        loss, grads = nnx.value_and_grad(lambda m: jnp.mean((m(X) - Y) ** 2))(model)
        optimizer.update(model, grads)
        return loss

    model, optimizer = make(0)
    start = nnx.state(model.stem)
    losses = [float(step(model, optimizer)) for _ in range(12)]
    assert losses[-1] < losses[0] / 2
    assert same(nnx.state(model.stem), start)
    assert lr_of(optimizer) == lr_of(optimizer, optimizer.tx)
    assert lr_of(optimizer)["head"] == pytest.approx(LR / 4)
    optimizer.opt_state.values["body"]["lr_scale"][...] = jnp.float32(0.0)
    assert lr_of(optimizer, optimizer.tx)["body"] == 0.0
    with ocp.StandardCheckpointer() as keeper:
        keeper.save(tmp_path / "all", nnx.state((model, optimizer)))
        keeper.wait_until_finished()
        again, optimizer_again = make(1)
        template = nnx.state((again, optimizer_again))
        nnx.update((again, optimizer_again), keeper.restore(tmp_path / "all", template))
    body, loss = nnx.state(model.body), float(step(model, optimizer))
    assert len(traces) == 1
    assert same(nnx.state(model.body), body)
    assert float(step(again, optimizer_again)) == loss
    assert same(nnx.state(again), nnx.state(model))


# --- any tree -------------------------------------------------------------------------


def nested(leaf=ONES):
    """Like Linen's parameters."""
    return {"params": {"Dense_0": {"kernel": leaf, "bias": leaf}, "head": {"w": leaf}}}


def by_module():
    model = nnx.Dict(
        body=nnx.Linear(1, 2, rngs=nnx.Rngs(0)), head=nnx.Linear(1, 2, rngs=nnx.Rngs(0))
    )
    return nnx.state(model), {"params": model["body"]}


@pytest.mark.parametrize(
    "case",
    [
        lambda: ({"head": ONES, "body": ONES}, {"params": "body"}),
        lambda: ([ONES, {"x": (ONES, ONES)}], {"params": "1.x.*"}),
        lambda: (nested(), {"params": "**.Dense_0.*"}),
        lambda: (nested(), {"params": lambda path, value: path[1] == "head"}),
        by_module,
    ],
)
def test_a_frozen_group_gets_zero_updates(case):
    params, selected = case()
    groups = [{**selected, "name": "frozen", "frozen": True}, {"params": ...}]
    tx = AdamW(groups, lr=0.1).as_optax(params)
    grads = jax.tree.map(jnp.ones_like, params)
    updates, state = jax.jit(tx.update)(grads, tx.init(params), params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    moved = {float(jnp.abs(u).max()) > 0 for u in jax.tree.leaves(updates)}
    assert moved == {True, False}
    assert not any("frozen" in str(p) for p, _ in slots_of(state))


def slots_of(state):
    return [
        (path, leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.inner)
        if jnp.ndim(leaf)
    ]


def test_edited_values_act_without_compiling():
    params = nested()
    tx = SGD([{"params": "**.head.*", "name": "head"}, {"params": ...}], lr=0.1)
    tx = tx.as_optax(params)
    update = jax.jit(tx.update)
    state = tx.init(params)
    first, state = update(params, state, params)
    state.values["head"]["lr_scale"] = jnp.float32(0.5)
    second, state = update(params, state, params)
    key = ("params", "head", "w")
    old, new = (tree[key[0]][key[1]][key[2]] for tree in (first, second))
    np.testing.assert_allclose(new, old / 2)
    np.testing.assert_array_equal(
        first["params"]["Dense_0"]["bias"], second["params"]["Dense_0"]["bias"]
    )
    assert update._cache_size() == 1
    assert lr_of(state) == pytest.approx({"head": 0.05, "group1": 0.1})


def test_lr_of_is_the_next_updates_rate():
    params = {"w": ONES}
    schedule = lr_scheduler.StepLR(1, gamma=0.5)
    tx = SGD("w", lr=0.8, lr_sch=schedule).as_optax(params)
    state, rates = tx.init(params), []
    for _ in range(3):
        rates.append(lr_of(state)["group0"])
        updates, state = tx.update(params, state, params)
        assert float(updates["w"][0]) == pytest.approx(-rates[-1])
    assert rates == pytest.approx([0.8, 0.4, 0.2])


def test_a_state_survives_flattening():
    params = nested()
    tx = Adam([{"params": "**.head.*"}, {"params": ...}], lr=0.1).as_optax(params)
    _, state = tx.update(params, tx.init(params), params)
    leaves, tree = jax.tree.flatten(state)
    again = jax.tree.unflatten(tree, [np.array(leaf) for leaf in leaves])
    expected, _ = tx.update(params, state, params)
    got, _ = tx.update(params, again, params)
    assert jax.tree.all(jax.tree.map(np.array_equal, got, expected))


def test_a_state_is_a_scan_carry():
    params = {"w": ONES, "h": ONES.astype(jnp.bfloat16)}
    tx = AdamW("**", lr=lambda t: 0.1 / (1 + t), clip_grad_max_norm=1.0)
    tx = tx.as_optax(params)

    def body(carry, _):
        params, state = carry
        updates, state = tx.update(params, state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, state), _ = jax.lax.scan(body, (params, tx.init(params)), length=3)
    assert int(state.step) == 3
    assert params["h"].dtype == jnp.bfloat16


@pytest.mark.parametrize("kind", [SGD, Adam])
def test_a_state_may_be_donated(kind):
    params = {"w": jnp.ones(3)}
    tx = kind("w", lr=0.1).as_optax(params)
    update = jax.jit(tx.update, donate_argnums=(1,))
    for _ in range(2):  # the second state doesn't share buffers with the first
        updates, _ = update(params, tx.init(params), params)
        assert float(updates["w"][0]) == pytest.approx(-0.1)


def test_an_uncovered_path_is_named():
    with pytest.raises(ValueError, match=r"params\.Dense_0\.bias.*'frozen': True"):
        SGD("**.head.*").as_optax(nested())


def test_other_parameters_than_planned_for_are_named():
    tx = SGD("**").as_optax({"w": ONES})
    with pytest.raises(ValueError, match=r"\bb\b"):
        tx.init({"w": ONES, "b": ONES})


def test_inside_nnx_optimizer():
    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    groups = [{"params": "bias", "frozen": True}, {"params": ...}]
    tx = glr.optim.Adam(groups, lr=0.1).as_optax(nnx.state(model, nnx.Param))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    kernel = np.array(model.kernel.get_value())

    @nnx.jit
    def step(model, optimizer):
        grads = nnx.grad(lambda model: (model(jnp.ones((3, 2))) ** 2).mean())(model)
        optimizer.update(model, grads)

    step(model, optimizer)
    np.testing.assert_allclose(
        np.abs(kernel - model.kernel.get_value()), 0.1, rtol=1e-4
    )
    assert not model.bias.get_value().any()


# --- lr_of and the numbers of a state -------------------------------------------------


def two_groups(**keys):
    params = {"body": ONES, "head": ONES}
    groups = [{"params": "body", "name": "body"}, {"params": "head", "name": "head"}]
    return params, SGD(groups, lr=0.1, **keys).as_optax(params)


def test_lr_of_looks_inside_other_states():
    params, tx = two_groups()
    rates = pytest.approx({"body": 0.1, "head": 0.1})
    chain = optax.chain(optax.clip(1.0), optax.chain(tx, optax.ema(0.9)))
    for outer in (chain, optax.MultiSteps(chain, 2), optax.apply_if_finite(chain, 3)):
        state = outer.init(params)
        assert lr_of(state) == rates
        assert lr_of({"params": params, "optimizer": state}) == rates
        assert lr_of(state, tx) == rates


def test_lr_of_says_what_it_takes():
    params, tx = two_groups()
    adam = optax.adam(0.1).init(params)
    plain = serialization.to_state_dict(tx.init(params))
    for nothing in (adam, None, plain):
        with pytest.raises(TypeError, match=r"lr_of found no.*give what tx\.init"):
            lr_of(nothing)
    chain = optax.chain(tx, optax.clip(1.0), tx)
    with pytest.raises(TypeError, match=r"2 states.*lr_of\(state\[0\]\)") as caught:
        lr_of(chain.init(params))
    assert "[2]" in str(caught.value)
    for other in (chain, optax.sgd(0.1), SGD("**")):
        with pytest.raises(TypeError, match=r"what optimizer\.as_optax"):
            lr_of(tx.init(params), other)


@pytest.mark.parametrize(
    ("edit", "error", "match"),
    [
        (lambda v: v["head"].update(lr_scal=ONES[0]), KeyError, "mean 'lr_scale'"),
        (lambda v: v.update(haed=v["head"]), KeyError, "no 'haed'.*mean 'head'"),
        (lambda v: v["head"].pop("lr"), KeyError, "'head'.*has lost lr"),
        (lambda v: v.pop("head"), KeyError, "state.values has lost head"),
        (lambda v: v["head"].update(lr=ONES), ValueError, "'lr'.*one number"),
        (lambda v: v["head"].update(betas=ONES), ValueError, "'betas'.*2 numbers"),
        (lambda v: v["head"].update(betas=(0.9,)), ValueError, "'betas'.*2 numbers"),
    ],
)
@pytest.mark.parametrize("jit", [jax.jit, lambda f: f])
def test_a_bad_edit_is_named(edit, error, match, jit):
    params = {"body": ONES, "head": ONES}
    groups = [{"params": "body"}, {"params": "head", "name": "head"}]
    tx = Adam(groups, lr=0.1).as_optax(params)
    state = tx.init(params)
    edit(state.values)
    with pytest.raises(error, match=match):
        jit(tx.update)(params, state, params)
    with pytest.raises(error, match=match):
        lr_of(state, tx)


@pytest.mark.parametrize("number", [0.5, np.float32(0.5), np.array(0.5), 1])
def test_numbers_of_any_kind_may_be_edited_in(number):
    params, tx = two_groups()
    traces = []

    @jax.jit
    def update(updates, state):
        traces.append(1)
        return tx.update(updates, state, params)

    _, state = update(params, tx.init(params))
    types = jax.tree.map(jax.typeof, state)
    for _ in range(2):
        state.values["head"]["lr_scale"] = number
        updates, state = update(params, state)
        assert float(updates["head"][0]) == pytest.approx(-0.1 * number)
        assert jax.tree.map(jax.typeof, state) == types
        updates, state = update(params, state)
    # a Python number is another type, and traced once more
    assert len(traces) == (2 if isinstance(number, float | int) else 1)


def test_a_live_zero_is_no_constant():
    """Outside jit too: it keeps its slot."""
    params, tx = two_groups(momentum=0.9)
    _, state = tx.update(params, tx.init(params), params)
    state.values["head"]["momentum"] = 0.0
    updates, state = tx.update(params, state, params)
    assert float(updates["head"][0]) == pytest.approx(-0.1)
    assert float(updates["body"][0]) == pytest.approx(-0.19)


def test_an_edit_of_one_state_leaves_the_others():
    params, tx = two_groups()
    before = tx.init(params)
    _, after = tx.update(params, before, params)
    after.values["head"]["lr"] = jnp.float32(9.0)
    assert lr_of(before, tx)["head"] == pytest.approx(0.1)


def test_it_is_a_snapshot():
    params = {"w": ONES}
    optimizer = SGD("w", lr=0.5)
    tx = optimizer.as_optax(params)
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.param_groups[0]["frozen"] = True
    updates, _ = tx.update(params, tx.init(params), params)
    assert updates["w"].tolist() == [-0.5, -0.5]


# --- states and trees of other groups -------------------------------------------------


def thawed():
    """A state with the body frozen, and the transformation with it thawed."""
    params = {"body": ONES, "head": ONES}
    groups = [
        {"params": "body", "name": "body", "frozen": True},
        {"params": "head", "name": "head"},
    ]
    optimizer = SGD(groups, lr=0.1, momentum=0.9, lr_sch=HEAD)
    tx = optimizer.as_optax(params)
    state = tx.init(params)
    for _ in range(5):
        _, state = tx.update(params, state, params)
    optimizer.param_groups["body"]["frozen"] = False
    return params, state, optimizer.as_optax(params)


@pytest.mark.parametrize("jit", [jax.jit, lambda f: f])
def test_a_state_of_other_groups_is_refused(jit):
    params, state, tx = thawed()
    with pytest.raises(ValueError, match=r"slots of body.*tx\.init\(params\) again"):
        jit(tx.update)(params, state, params)
    groups = [{"params": "head", "name": "head"}, {"params": ..., "name": "body"}]
    moved = SGD(groups, momentum=0.9)
    other = {"body": ONES, "head": ONES, "neck": ONES}
    with pytest.raises(ValueError, match="slots of body, head"):
        jit(moved.as_optax(other).update)(other, state, other)
    wide = {"body": ONES, "head": jnp.ones(3)}
    with pytest.raises(ValueError, match="slots of body, head"):
        jit(tx.update)(wide, state, wide)
    for nothing in (state.values, optax.sgd(0.1).init(params)):
        with pytest.raises(TypeError, match="update found no state of"):
            jit(tx.update)(params, nothing, params)


def test_slots_of_groups_that_stayed_can_be_kept():
    """The recipe of `GroupsState`."""
    params, state, tx = thawed()
    new = tx.init(params)
    kept = {"head": state.inner.inner_states["head"]}
    inner = new.inner._replace(inner_states={**new.inner.inner_states, **kept})
    state = new._replace(step=state.step, inner=inner)
    assert lr_of(state, tx) == pytest.approx({"body": 0.05, "head": 0.05})
    updates, state = jax.jit(tx.update)(params, state, params)
    assert int(state.step) == 6
    sums = {"body": 1.0, "head": sum(0.9**k for k in range(6))}
    for name, total in sums.items():
        assert float(updates[name][0]) == pytest.approx(-0.05 * total)


def test_gradients_may_come_in_another_order():
    class Grads(NamedTuple):
        w: Any
        b: Any

    params = {"b": ONES, "w": ONES}
    tx = SGD([{"params": "b", "lr": 0.5}, {"params": "w"}], lr=1.0).as_optax(params)
    updates, _ = tx.update(Grads(w=ONES, b=2 * ONES), tx.init(params), params)
    assert updates.w.tolist() == [-1.0, -1.0]
    assert updates.b.tolist() == [-1.0, -1.0]


def test_as_many_parameters_of_other_names_are_refused():
    tx = SGD("**").as_optax({"a": ONES, "b": ONES})
    with pytest.raises(ValueError, match="another tree: b, c is in one"):
        tx.init({"a": ONES, "c": ONES})


def test_two_parameters_of_one_path_are_refused():
    with pytest.raises(ValueError, match=r"path a\.b"):
        SGD("**").as_optax({"a.b": ONES, "a": {"b": ONES}})
