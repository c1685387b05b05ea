"""What a parameter is called: inside its module, and inside a graph."""

from graphlr.groups.paths import Param, dotted


def test_parts_are_joined_with_dots():
    assert dotted(("features", 0, "kernel")) == "features.0.kernel"
    assert dotted([]) == ""


def test_a_parameter_has_a_name_inside_its_module():
    param = Param("model.features.0.kernel", ("features", 0, "kernel"), None)
    assert param.name == "features.0.kernel"
    assert param.path == f"model.{param.name}"
    assert Param("scale", (), None).name == ""  # the graph holds it by itself
