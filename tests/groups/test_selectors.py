"""What each kind of selector selects."""

import re

import pytest
from flax import nnx

from graphlr.groups.paths import Param
from graphlr.groups.selectors import Selector, select_modules
from graphlr.modules.tree import Modules
from tests.models import Blocks


@pytest.fixture
def net():
    return Blocks()


def selected(net, params):
    """Paths inside a model, held as `model`, of what `params` selects."""
    selector = Selector(params)
    return [param.name for param in Modules({"model": net}).params if selector(param)]


FEATURES = [
    f"features.{i}.{name}"
    for i in (0, 1)
    for name in ("conv.bias", "conv.kernel", "norm.bias", "norm.scale")
]
BIASES = [p for p in FEATURES if p.endswith("bias")]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda net: net.classifier, ["classifier.bias", "classifier.kernel"]),
        (lambda net: net.features, FEATURES),
        (lambda net: net.classifier.kernel, ["classifier.kernel"]),
        (lambda net: [net.classifier.bias, net.features[0].norm],
         ["classifier.bias", "features.0.norm.bias", "features.0.norm.scale"]),
        (lambda net: (block.conv.bias for block in net.features),
         ["features.0.conv.bias", "features.1.conv.bias"]),
        (lambda net: nnx.state(net.classifier, nnx.Param),
         ["classifier.bias", "classifier.kernel"]),
        (lambda net: "classifier.*", ["classifier.bias", "classifier.kernel"]),
        (lambda net: "features.*.bias", []),  # `*` stays within a name
        (lambda net: "features.*.*.bias", BIASES),
        (lambda net: "features.**.bias", BIASES),
        (lambda net: "**.bias", ["classifier.bias", *BIASES]),
        (lambda net: "model.classifier.bias", ["classifier.bias"]),
        (lambda net: "features.?.norm.scale",
         ["features.0.norm.scale", "features.1.norm.scale"]),
        (lambda net: ["classifier.bias", "**.scale"],
         ["classifier.bias", "features.0.norm.scale", "features.1.norm.scale"]),
        (lambda net: re.compile(r"norm\."),
         [p for p in FEATURES if ".norm." in p]),
        (lambda net: re.compile(r"^model\.classifier"),
         ["classifier.bias", "classifier.kernel"]),
        (lambda net: nnx.PathContains("norm"),
         [p for p in FEATURES if ".norm." in p]),
        (lambda net: nnx.All(nnx.Param, nnx.PathContains("classifier")),
         ["classifier.bias", "classifier.kernel"]),
        (lambda net: nnx.Param, ["classifier.bias", "classifier.kernel", *FEATURES]),
        (lambda net: nnx.to_flat_state(nnx.state(net.classifier)),
         ["classifier.bias", "classifier.kernel"]),
        (lambda net: [("classifier.kernel", net.classifier.bias)],  # a name, no glob
         ["classifier.bias"]),
        (lambda net: lambda path, value: value.ndim == 4,
         ["features.0.conv.kernel", "features.1.conv.kernel"]),
        (lambda net: lambda path, value: path[-1] == "bias",
         ["classifier.bias", *BIASES]),
    ],
)  # fmt: skip
def test_selectors(net, make, expected):
    assert sorted(selected(net, make(net))) == sorted(expected)


def test_a_failing_predicate_says_what_it_was_given(net):
    with pytest.raises(AttributeError) as error:
        selected(net, lambda path, value: path.endswith("bias"))
    assert "path=('classifier', 'bias')" in error.value.__notes__[0]


NODES = {
    place: Param(f"model.{name}", (name,), value)
    for place, name, value in [((0, "a"), "a", nnx.Dict()), ((0, "b"), "b", nnx.List())]
}
A, B = NODES


@pytest.mark.parametrize(
    ("modules", "places"),
    [
        (None, []),
        ("model.b", [B]),
        ("*", [A, B]),
        (re.compile("a$"), [A]),
        (nnx.Dict, [A]),
        (lambda path, module: path == ("b",), [B]),
        (NODES[A].value, [A]),
        ([NODES[B].value, "a"], [A, B]),
    ],
)
def test_modules_are_selected_themselves(modules, places):
    assert select_modules(NODES, modules, "config.remat") == places


def test_a_selector_of_no_module_names_the_nearest():
    with pytest.raises(
        ValueError, match=r"config\.remat: 'c' selects no module.*nearest.* model\.a"
    ):
        select_modules(NODES, "c", "config.remat")
