"""A graph as the user wrote it: attributes that would do nothing are refused."""

import pytest

from graphlr.optim import SGD
from graphlr.step.definition import check_attribute, check_open
from tests.models import Train, X, linear


def test_an_optimizer_is_added_and_not_assigned():
    with pytest.raises(AttributeError, match=r"self\.opt = .*self\.add_optimizer\(opt"):
        check_attribute("opt", SGD("**"), taken=False)


def test_names_of_the_library_stay_its_own():
    with pytest.raises(AttributeError, match="step is Graph's own: call the attribute"):
        check_attribute("step", 3, taken=True)
    check_attribute("steps", 3, taken=False)


@pytest.mark.parametrize(
    ("tracing", "compiled", "where"),
    [(True, False, r"inside build\(\)"), (False, True, "after a call")],
)
def test_edits_that_no_step_would_see(tracing, compiled, where):
    with pytest.raises(AttributeError, match=rf"self\.scale is set {where}, where it"):
        check_open("self.scale is set", tracing=tracing, compiled=compiled)
    check_open("self.scale is set", tracing=False, compiled=False)


def test_a_graph_refuses_them():
    class Hides(Train):
        def build(self, x):
            self.hidden = x
            return super().build(x)

    graph = Hides(linear(), SGD("**"))
    with pytest.raises(AttributeError, match="lr is Graph's own"):
        graph.lr = 0.1
    with pytest.raises(AttributeError, match=r"inside build\(\)"):
        graph(X)
    del graph.optimizers  # nothing is compiled yet
    with pytest.raises(AttributeError, match="no attribute 'optimizers'"):
        del graph.optimizers
