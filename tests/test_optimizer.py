"""Groups of an optimizer, its numbers, and the same groups as plain optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import graphlr as glr
from graphlr.optim import SGD, Adam, AdamW, lr_of, lr_scheduler

ONES = jnp.ones(2)


def nested(leaf=ONES):
    """Like Linen's parameters."""
    return {"params": {"Dense_0": {"kernel": leaf, "bias": leaf}, "head": {"w": leaf}}}


# --- groups ---------------------------------------------------------------------------


def test_defaults_fill_what_a_group_leaves_out():
    optimizer = SGD(
        [{"params": "a", "lr": 0.5}, {"params": "b", "momentum": 0.0}],
        lr=0.1, momentum=0.9, lr_scale=0.5, frozen=True,
    )  # fmt: skip
    a, b = optimizer.param_groups
    assert (a["lr"], a["momentum"], b["lr"], b["momentum"]) == (0.5, 0.9, 0.1, 0.0)
    assert all(g["lr_scale"] == 0.5 and g["frozen"] for g in (a, b))


def test_a_group_of_another_class_has_that_classes_defaults_and_shared_keys():
    optimizer = SGD(
        [{"params": "a", "optimizer": AdamW, "eps": 1e-3}, {"params": "b"}],
        lr=0.1, momentum=0.9, weight_decay=0.5, clip_grad_max_norm=2.0,
    )  # fmt: skip
    group = optimizer.param_groups[0]
    assert "momentum" not in group
    got = [group[k] for k in ("lr", "eps", "weight_decay", "clip_grad_max_norm")]
    assert got == [0.1, 1e-3, 0.01, 2.0]
    with pytest.raises(KeyError, match="no 'momentum'"):
        SGD([{"params": "a", "optimizer": AdamW, "momentum": 0.9}])
    with pytest.raises(ValueError, match="Invalid beta"):
        group["betas"] = (1.0, 0.5)


def test_the_callers_groups_are_left_alone():
    given = [{"params": "a", "optimizer": Adam}, {"params": "b"}]
    SGD(given)
    assert given == [{"params": "a", "optimizer": Adam}, {"params": "b"}]


@pytest.mark.parametrize(
    ("group", "error", "match"),
    [
        ("b", TypeError, "must be a dict"),
        ({"lr": 0.1}, KeyError, "group1.*add {.params"),
        ({"params": "b", "name": "group0"}, ValueError, "two groups are named"),
        ({"params": "b", "lr": -1}, ValueError, "Invalid learning rate"),
        ({"params": "b", "lrr": 1}, KeyError, "did you mean 'lr'"),
    ],
)
def test_a_bad_group_is_not_added(group, error, match):
    optimizer = SGD("a", lr=0.1)
    with pytest.raises(error, match=match):
        optimizer.add_param_group(group)
    assert len(optimizer.param_groups) == 1
    assert optimizer.lr() == {"group0": 0.1}


def test_a_variable_in_an_added_group_twice():
    layer = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    optimizer = SGD(layer)
    with pytest.raises(ValueError, match="more than one parameter group: kernel"):
        optimizer.add_param_group({"params": layer.kernel})


def test_scale_lr_reaches_schedules_too():
    optimizer = SGD([{"params": "a"}, {"params": "b", "lr": [0.4, 0.2]}], lr=0.1)
    optimizer.scale_lr(0.5)
    assert optimizer.lr(0) == pytest.approx({"group0": 0.05, "group1": 0.2})
    a, b = optimizer.param_groups
    assert (a["lr"], a["lr_scale"], b["lr_scale"]) == (0.05, 1.0, 0.5)
    assert optimizer.lr(9) == pytest.approx({"group0": 0.05, "group1": 0.1})
    for bad in (float("nan"), "2", None):
        with pytest.raises((TypeError, ValueError)):
            optimizer.scale_lr(bad)
    assert optimizer.lr(0)["group0"] == pytest.approx(0.05)


def test_numbers_are_single_and_under_x64_double():
    optimizer = Adam("**", lr=0.1)
    assert optimizer.numbers.dtype == jnp.float32
    with jax.enable_x64(True):
        assert optimizer.numbers.dtype == jnp.float64
        assert 0.1 in optimizer.numbers.tolist()
    assert optimizer.numbers.dtype == jnp.float32


def test_repr_shows_groups_and_rates():
    optimizer = SGD([{"params": "a.**", "name": "body", "lr_scale": 0.5}], lr=0.1)
    assert repr(optimizer) == "SGD(\n  body: 'a.**', lr 0.05\n)"


# --- as_optax -------------------------------------------------------------------------


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
