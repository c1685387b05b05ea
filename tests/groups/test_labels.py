"""Every parameter in exactly one group, or an error that says what to type."""

import jax.numpy as jnp
import pytest
from flax import nnx

from graphlr.groups.group import ParamGroup
from graphlr.groups.labels import label_params
from graphlr.groups.paths import Param
from graphlr.modules.tree import Modules
from graphlr.optim import SGD
from tests.models import Blocks, linear


@pytest.fixture
def net():
    return Blocks()


def labels(net, *groups, name="model"):
    """{path: group name} of a model held as `model`."""
    optimizer = SGD([*groups], lr=0.1)
    params = Modules({name: net}).params
    chosen = label_params(params, optimizer.param_groups)
    return {path: optimizer.param_groups[i].name for path, i in chosen.items()}


def test_rest_is_everything_not_named_elsewhere(net):
    chosen = labels(net, {"params": "**.bias"}, {"params": ...})
    assert {p for p, name in chosen.items() if name == "group0"} == {
        "model.classifier.bias",
        *(
            f"model.features.{i}.{name}.bias"
            for i in (0, 1)
            for name in ("conv", "norm")
        ),
    }


@pytest.mark.parametrize("whole", [lambda net: net, lambda net: ..., lambda net: "**"])
def test_a_selector_in_place_of_the_list_is_one_group(net, whole):
    optimizer = SGD(whole(net), lr=0.1)
    params = Modules({"model": net}).params
    assert set(label_params(params, optimizer.param_groups).values()) == {0}


def test_patterns_that_overlap(net):
    with pytest.raises(ValueError, match=r"model\.classifier\.bias.*'a'.*'b'"):
        labels(
            net,
            {"params": "classifier.*", "name": "a"},
            {"params": "**.bias", "name": "b"},
            {"params": ...},
        )


def test_uncovered_parameters_are_listed_with_the_line_to_add(net):
    with pytest.raises(ValueError, match="8 parameters are in no group") as error:
        labels(net, {"params": net.classifier})
    text = str(error.value)
    assert "model.features.0.conv.bias" in text
    assert "and 3 more" in text  # at most five paths
    assert "{'params': 'model.features.**', 'frozen': True}" in text


def test_one_uncovered_parameter_is_named_alone(net):
    with pytest.raises(ValueError, match=r"\{'params': 'model.classifier.bias'\}"):
        labels(net, {"params": net.features}, {"params": "classifier.kernel"})


def test_a_module_without_parameters_is_a_warning(net):
    with pytest.warns(UserWarning, match="'pool'.*holds no parameters"):
        labels(
            net,
            {"params": net.features},
            {"params": net.pool, "name": "pool"},
            {"params": net.classifier},
        )


def test_a_pattern_without_parameters_is_an_error_with_near_paths(net):
    with pytest.raises(ValueError, match="matches no parameter") as error:
        labels(net, {"params": "classifer.**"}, {"params": ...})
    assert "model.classifier.kernel" in str(error.value)


def test_a_misspelt_pattern_is_named_before_what_it_leaves_out(net):
    groups = [{"params": "featurs.**", "name": "body"}, {"params": "classifier.*"}]
    with pytest.raises(ValueError, match=r"'body': 'featurs\.\*\*' matches no param"):
        labels(net, *groups)
    with pytest.raises(ValueError, match=r"everything under it write 'features\.\*\*'"):
        labels(net, {"params": "features"}, {"params": ...})


def test_the_tutorials_misspelt_head_is_caught(net):
    """`model.classifer = Linear` adds a head beside the one that is used."""
    net.classifer = linear(2, 10)
    groups = [{"params": net.features}, {"params": net.classifier}]
    with pytest.raises(ValueError, match=r"no group.*model\.classifer\.bias"):
        labels(net, *groups)
    groups[1] = {"params": net.classifer}  # and where the groups have the typo too
    with pytest.raises(ValueError, match=r"no group.*model\.classifier\.bias"):
        labels(net, *groups)


def test_a_generator_is_consumed_once_and_kept(net):
    optimizer = SGD(
        [{"params": (b.conv.kernel for b in net.features)}, {"params": ...}]
    )
    params = Modules({"model": net}).params
    first = label_params(params, optimizer.param_groups)
    assert first == label_params(params, optimizer.param_groups)
    assert sum(i == 0 for i in first.values()) == 2


def test_a_replaced_module_is_named(net):
    optimizer = SGD([{"params": net.classifier}, {"params": ...}])
    net.classifier = linear(2, 5)
    with pytest.raises(ValueError, match=r"no module of the graph has.*replaced"):
        label_params(Modules({"model": net}).params, optimizer.param_groups)


def test_tied_weights_appear_once_under_their_first_path():
    class Tied(nnx.Module):
        def __init__(self):
            self.embed = nnx.Param(jnp.ones((3, 2)))
            self.head = self.embed

    assert labels(Tied(), {"params": ...}) == {"model.embed": "group0"}


def test_label_params_counts_groups_not_names():
    params = [Param("m.a", ("a",), None)]
    groups = [ParamGroup({"params": "a", "name": "same"}, lambda v, _: dict(v))]
    assert label_params(params, groups) == {"m.a": 0}
