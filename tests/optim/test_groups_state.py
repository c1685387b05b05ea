"""States of groups without a graph: kept by any library, edited, of these groups."""

import pickle

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import serialization

from graphlr.optim import SGD, Adam, AdamW, GroupsState, lr_of
from tests.optim.trees import (
    HEAD,
    LIBRARIES,
    LR,
    ONES,
    nested,
    networks,
    of_layer,
    same,
    two_groups,
)

# --- a checkpoint ---------------------------------------------------------------------


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
    *(("dicts", through) for through in (through_flax, through_pickle)),
    ("nnx", through_orbax),
    ("linen", through_flax),
    ("equinox", through_equinox),
    ("haiku", through_orbax),
]


@pytest.fixture(scope="module")
def stopped():
    """Four steps, after which a number of each state was edited."""
    run = networks().run(4)
    for state in run.states.values():
        state.values["head"]["lr_scale"] = jnp.float32(0.75)
    return run


@pytest.fixture(scope="module")
def gone_on(stopped):
    return networks().run(4, stopped)


@pytest.mark.parametrize(("name", "through"), KEPT)
def test_a_restored_state_goes_on_bit_for_bit(
    name, through, stopped, gone_on, tmp_path
):
    other = networks(seed=1)  # as another process would make them
    state = stopped.states[name]
    restored = through(state, other.start.states[name], tmp_path)
    assert type(restored) is GroupsState
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert same(restored, state)
    since = stopped._replace(states={**stopped.states, name: restored})
    run = other.run(4, since)
    assert run.losses[name] == gone_on.losses[name]
    assert same(run.params[name], gone_on.params[name])
    assert same(run.states[name], gone_on.states[name])
    assert lr_of(run.states[name])["head"] == pytest.approx(LR * 0.75 / 2)
    assert networks().step._cache_size() == 1


def test_a_state_survives_flattening():
    params = nested()
    tx = Adam([{"params": "**.head.*"}, {"params": ...}], lr=0.1).as_optax(params)
    update = jax.jit(tx.update)
    _, state = update(params, tx.init(params), params)
    leaves, tree = jax.tree.flatten(state)
    again = jax.tree.unflatten(tree, [np.array(leaf) for leaf in leaves])
    expected, _ = update(params, state, params)
    got, _ = update(params, again, params)
    assert same(got, expected)


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


# --- edits ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def before():
    return networks().run(3)


@pytest.fixture(scope="module")
def plain(before):
    return networks().run(1, before)


@pytest.fixture(scope="module")
def held(before):
    """The states before a step with the body held, and what the step leaves."""

    def edit(state):
        body = {**state.values["body"], "lr_scale": jnp.float32(0.0)}
        return state._replace(values={**state.values, "body": body})

    states = {name: edit(state) for name, state in before.states.items()}
    return states, networks().run(1, before._replace(states=states))


@pytest.mark.parametrize("name", LIBRARIES)
def test_an_edited_number_acts_on_the_next_step(name, before, plain, held):
    tx, (states, after) = networks().rules[name], held
    rates = {"stem": LR, "body": 0.0, "head": LR}
    assert lr_of(states[name], tx) == pytest.approx(rates)
    start, usual, edited = (run.params[name] for run in (before, plain, after))
    assert same(of_layer(edited, "body"), of_layer(start, "body"))
    assert not same(of_layer(usual, "body"), of_layer(start, "body"))
    assert same(of_layer(edited, "head"), of_layer(usual, "head"))
    assert lr_of(after.states[name]) == lr_of(after.states[name], tx)
    assert networks().step._cache_size() == 1


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


# --- other groups ---------------------------------------------------------------------


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
