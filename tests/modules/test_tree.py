"""Modules as flat lists: what is found and named, what may be donated, what changed."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from graphlr.modules.tree import Modules
from graphlr.modules.variables import read
from tests.models import linear


def kernel():
    """A layer of one parameter."""
    return linear(2, 2, use_bias=False)


class Norms(nnx.Module):
    """A body and a head with a normalisation each, and one without parameters."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.body = nnx.List([kernel(), nnx.BatchNorm(2, rngs=rngs)])
        self.head = nnx.Dict(norm=nnx.BatchNorm(2, rngs=rngs), out=kernel())
        bare = nnx.BatchNorm(2, use_bias=False, use_scale=False, rngs=rngs)
        self.tail = nnx.List([kernel(), bare])


def test_paths_go_through_every_container():
    found = Modules(
        {
            "pair": (kernel(), kernel()),
            "named": {"b": [kernel()], "a": nnx.Param(jnp.ones(1))},
            "listed": nnx.List([kernel()]),
            "keyed": nnx.Dict(x=kernel()),
            "scale": nnx.BatchStat(jnp.ones(1)),
            "number": 3,
            "array": jnp.ones(2),
        }
    )
    assert sorted(found.paths) == [
        "keyed.x.kernel",
        "listed.0.kernel",
        "named.a",
        "named.b.0.kernel",
        "pair.0.kernel",
        "pair.1.kernel",
        "scale",
    ]
    params = {param.path for param in found.params}
    assert set(found.paths) - params == {"scale"}


def test_inner_paths_leave_the_attribute_out():
    (param,) = Modules({"model": nnx.List([kernel()])}).params
    assert (param.path, param.path_in_module) == ("model.0.kernel", (0, "kernel"))


def test_random_streams_are_carried_along():
    found = Modules({"rngs": nnx.Rngs(0, noise=1)})
    assert {path.rpartition(".")[2] for path in found.paths} == {"count", "key"}
    assert not found.params


def test_a_module_under_two_names_appears_once():
    shared = kernel()
    found = Modules({"first": shared, "second": [shared]})
    assert found.paths == ["first.kernel"]
    merged = found.merge({id(shared.kernel): jnp.zeros((2, 2))}, training=False)
    assert merged["first"] is merged["second"][0]


def test_an_array_beside_the_variables_is_carried_along():
    """nnx takes plain arrays as attributes: masks, positions, anchors."""
    layer = kernel()
    layer.mask = jnp.ones(2)
    found = Modules({"model": layer})
    assert read(found.variables)
    assert [param.path for param in found.params] == ["model.kernel"]


def test_merge_makes_copies_in_the_asked_mode():
    model = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
    found = Modules({"model": model, "word": "x"})
    arrays = dict(zip(map(id, found.variables), read(found.variables), strict=True))
    for training in (True, False):
        merged = found.merge(arrays, training)
        assert set(merged) == {"model"}
        assert merged["model"] is not model
        assert merged["model"].deterministic is not training


def test_now_sees_what_a_copy_was_assigned():
    model = kernel()
    found = Modules({"model": model})
    before = {id(model.kernel): model.kernel.get_value()}
    merged = found.merge(before, training=True)
    assert found.now(merged)[id(model.kernel)] is before[id(model.kernel)]
    new = jnp.zeros((2, 2))
    merged["model"].kernel.set_value(new)
    assert found.now(merged)[id(model.kernel)] is new
    assert model.kernel.get_value() is before[id(model.kernel)]


@pytest.mark.parametrize(
    ("frozen", "still"),
    [
        (["body.0.kernel"], []),  # its own parameters decide, and they train
        (["body.1.bias"], []),  # half frozen still trains
        (["body.1.bias", "body.1.scale"], ["body.1"]),
        (["head.norm.bias", "head.norm.scale"], ["head.norm"]),
        (["tail.0.kernel"], ["tail.1"]),  # none of its own: those around it
    ],
)
def test_statistics_stay_where_every_parameter_is_frozen(frozen, still):
    found = Modules({"model": Norms()})
    arrays = dict(zip(map(id, found.variables), read(found.variables), strict=True))
    ids = {id(p.value) for p in found.params if p.name in frozen}
    merged = found.merge(arrays, training=True, edits=found.edits_of_frozen_norms(ids))
    norms = {
        "body.1": merged["model"].body[1],
        "head.norm": merged["model"].head["norm"],
        "tail.1": merged["model"].tail[1],
    }
    assert [path for path, norm in norms.items() if norm.use_running_average] == still


def test_statistics_of_a_module_under_two_names_follow_its_own_parameters():
    """The head is frozen, the normalisation trains, and a second name leads to it."""
    model = Norms()
    found = Modules({"body": model.body, "model": model})
    arrays = dict(zip(map(id, found.variables), read(found.variables), strict=True))
    frozen = {id(p.value) for p in found.params if p.path.startswith("model.")}
    merged = found.merge(
        arrays, training=True, edits=found.edits_of_frozen_norms(frozen)
    )
    assert not merged["body"][1].use_running_average
    assert merged["model"].head["norm"].use_running_average


def replace_attribute(model):
    model.tail = nnx.List([])


def replace_variable(model):
    model.body[0].kernel = nnx.Param(jnp.ones((2, 2)))


def replace_in_list(model):
    model.body[0] = kernel()


def replace_in_dict(model):
    model.head["out"] = kernel()


def append(model):
    model.body.append(kernel())


def add(model):
    model.extra = kernel()


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (replace_attribute, "model.tail"),
        (replace_variable, "model.body.0.kernel"),
        (replace_in_list, "model.body.0.kernel"),
        (replace_in_dict, "model.head.out.kernel"),
        (append, "model.body.2.kernel"),
        (add, "model.extra.kernel"),
    ],
)
def test_replaced_names_what_changed(change, path):
    model = Norms()
    found = Modules({"model": model})
    assert found.first_change() is None
    change(model)
    assert found.first_change().startswith(path)


@pytest.mark.parametrize("key", ["layers", "heads"])
def test_replaced_sees_into_plain_containers(key):
    attributes = {"layers": [kernel(), kernel()], "heads": {"a": kernel()}}
    found = Modules(attributes)
    attributes[key][0 if key == "layers" else "a"] = kernel()
    assert (found.first_change() or "nothing").startswith(key)


def test_constants_and_values_may_change():
    model = Norms()
    found = Modules({"model": model})
    model.note, model.width = "text", 8
    kernel = model.body[0].kernel
    kernel.set_value(jnp.zeros((2, 2)))
    assert found.first_change() is None
    del model.note
    assert found.first_change() is None


def test_an_attribute_of_other_keys_is_a_constant():
    found = Modules({"model": kernel(), "names": {1: "one", "two": 2}})
    assert found.paths == ["model.kernel"]


def test_typed_keys_are_read_as_they_are():
    key = nnx.Variable(jax.random.key(0))
    assert jnp.issubdtype(read([key])[0].dtype, jax.dtypes.prng_key)
