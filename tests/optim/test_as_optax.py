"""Groups as a plain optax transformation: real libraries' parameters, any tree."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx, serialization

from graphlr.optim import SGD, Adam, AdamW, lr_of, lr_scheduler
from tests.models import linear
from tests.optim.trees import (
    HEAD,
    LIBRARIES,
    LR,
    ONES,
    OfNnx,
    X,
    Y,
    by_hand,
    nested,
    networks,
    of_layer,
    same,
    two_groups,
)


@pytest.fixture(scope="module")
def trained():
    return networks().run(12)


@pytest.fixture(scope="module")
def expected():
    return networks(make=by_hand).run(12)


@pytest.mark.parametrize("name", LIBRARIES)
def test_groups_train_as_written_by_hand(name, trained, expected):
    start, end = (run.params[name] for run in (networks().start, trained))
    rates = [lr_of(run.states[name]) for run in (networks().start, trained)]
    assert rates[0] == pytest.approx({"stem": LR, "body": LR / 2, "head": LR})
    assert rates[1] == pytest.approx({"stem": LR, "body": LR / 2, "head": LR / 4})
    losses = trained.losses[name]
    assert losses[-1] < losses[0] / 2
    assert jax.tree.structure(end) == jax.tree.structure(start)
    assert same(of_layer(end, "stem"), of_layer(start, "stem"))
    hand = jax.tree.leaves(expected.params[name])
    for got, want in zip(jax.tree.leaves(end), hand, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)
    assert networks().step._cache_size() == 1


def test_a_full_loop_of_nnx(tmp_path):
    def make(seed):
        model = OfNnx(seed)
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


def test_inside_nnx_optimizer():
    model = linear()
    groups = [{"params": "bias", "frozen": True}, {"params": ...}]
    tx = Adam(groups, lr=0.1).as_optax(nnx.state(model, nnx.Param))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    kernel = np.array(model.kernel.get_value())

    @nnx.jit
    def step(model, optimizer):
        grads = nnx.grad(lambda model: (model(jnp.ones((3, 2))) ** 2).mean())(model)
        optimizer.update(model, grads)

    step(model, optimizer)
    moved = np.abs(kernel - model.kernel.get_value())
    np.testing.assert_allclose(moved, 0.1, rtol=1e-4)
    assert not model.bias.get_value().any()


# --- any tree -------------------------------------------------------------------------


def by_module():
    model = nnx.Dict(body=linear(1, 2), head=linear(1, 2))
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
    updates, state = jax.jit(tx.update)(params, tx.init(params), params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    moved = {bool(np.any(u)) for u in jax.tree.leaves(updates)}
    assert moved == {True, False}
    slots = jax.tree_util.tree_leaves_with_path(state.inner)
    places = [str(path) for path, leaf in slots if jnp.ndim(leaf)]
    assert places
    assert not any("frozen" in place for place in places)


def test_an_uncovered_path_is_named():
    with pytest.raises(ValueError, match=r"params\.Dense_0\.bias.*'frozen': True"):
        SGD("**.head.*").as_optax(nested())


def test_other_parameters_than_planned_for_are_named():
    tx = SGD("**").as_optax({"w": ONES})
    with pytest.raises(ValueError, match=r"\bb\b"):
        tx.init({"w": ONES, "b": ONES})


def test_as_many_parameters_of_other_names_are_refused():
    tx = SGD("**").as_optax({"a": ONES, "b": ONES})
    with pytest.raises(ValueError, match="another tree: b, c is in one"):
        tx.init({"a": ONES, "c": ONES})


def test_two_parameters_of_one_path_are_refused():
    with pytest.raises(ValueError, match=r"path a\.b"):
        SGD("**").as_optax({"a.b": ONES, "a": {"b": ONES}})


def test_gradients_may_come_in_another_order():
    class Grads(NamedTuple):
        w: Any
        b: Any

    params = {"b": ONES, "w": ONES}
    tx = SGD([{"params": "b", "lr": 0.5}, {"params": "w"}], lr=1.0).as_optax(params)
    updates, _ = tx.update(Grads(w=ONES, b=2 * ONES), tx.init(params), params)
    assert updates.w.tolist() == [-1.0, -1.0]
    assert updates.b.tolist() == [-1.0, -1.0]


def test_it_is_a_snapshot():
    params = {"w": ONES}
    optimizer = SGD("w", lr=0.5)
    tx = optimizer.as_optax(params)
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.param_groups[0]["frozen"] = True
    updates, _ = tx.update(params, tx.init(params), params)
    assert updates["w"].tolist() == [-0.5, -0.5]


# --- lr_of ----------------------------------------------------------------------------


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
