"""A batch with NaN or infinity leaves everything as it was, counted and named."""

import collections
import logging

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from graphlr.engine.skips import News, SkipWatch, why_skipped
from graphlr.optim import SGD, Adam
from graphlr.step.carried import Skips
from graphlr.step.plan import make_plan
from graphlr.step.types import Report
from tests.models import IMAGE, LABEL, Classify, linear, state_of

COUNTS = {"skipped.total", "skipped.in_a_row"}


class Net(nnx.Module):
    """Statistics, random numbers, parameters, and a count of the calls."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.bn = nnx.BatchNorm(4, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.head = linear(4, 3)
        self.calls = nnx.Variable(jnp.zeros((), jnp.int32))

    def __call__(self, x):
        self.calls.set_value(self.calls.get_value() + 1)
        return self.head(self.drop(self.bn(x)))


def made(kind=Classify, **config):
    groups = [
        {"params": "bn.**", "name": "norm"},
        {"params": "head.**", "name": "head"},
    ]
    options = {"skip_nonfinite": 3, "ema_decay": 0.9, **config}
    return kind(Net(), Adam(groups, lr=0.1), lr_sch=[0.1, 0.2, 0.3], **options)


@pytest.fixture(scope="module", params=[1, 2], ids=["whole", "in parts"])
def compiled(request):
    """A graph that is compiled once, and its state before any step."""
    graph = made(gradient_accumulation_steps=request.param)
    start = state_of(graph)
    graph.compile(IMAGE, LABEL)
    return graph, start


@pytest.fixture
def graph(compiled):
    """It, as it was before its first step."""
    graph, start = compiled
    graph.load_state_dict(start)
    yield graph
    assert graph.compiles.count == 1


def bad(value=np.nan):
    x = IMAGE.copy()
    x[3, 2] = value
    return x


def changed(before, after):
    return {k for k in before if not np.array_equal(before[k], after[k])}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_whole_state_stays_bit_for_bit(graph, value):
    graph(IMAGE, LABEL)
    before = graph.state_dict()
    loss = graph(bad(value), LABEL)
    assert not np.isfinite(loss).all()
    assert changed(before, graph.state_dict()) == COUNTS
    assert (graph.skipped, graph.step) == (1, 1)
    assert graph.lr == {"norm": 0.2, "head": 0.2}


def test_training_goes_on_as_if_the_batch_had_not_been(graph, compiled):
    for x in (IMAGE, bad(), 2 * IMAGE, bad(np.inf), IMAGE):
        graph(x, LABEL)
    assert (graph.skipped, graph.compiles.count) == (2, 1)
    skipping = state_of(graph)
    graph.load_state_dict(compiled[1])
    for x in (IMAGE, 2 * IMAGE, IMAGE):
        graph(x, LABEL)
    assert changed(skipping, graph.state_dict()) <= COUNTS


def test_too_many_in_a_row_stop_with_a_diagnosis(graph):
    graph(IMAGE, LABEL)
    for _ in range(2):
        graph(bad(), LABEL)
    graph(IMAGE, LABEL)  # not in a row
    before = graph.state_dict()
    # Reading `skipped` waits for the step: only one call in three does by itself.
    steps = ((graph(bad(), LABEL), graph.skipped) for _ in range(8))
    with pytest.raises(FloatingPointError) as caught:
        collections.deque(steps, 0)
    message = str(caught.value)
    assert "3 batches in a row" in message
    assert (
        "gradient of model.bn.bias (group 'norm') isn't finite, and 3 more" in message
    )
    assert "graph.eager" in message
    assert changed(before, graph.state_dict()) <= {"skipped.total"}
    graph(IMAGE, LABEL)  # after a remedy it goes on
    assert graph.step == 3


def test_statistics_alone_may_be_bad():
    """The loss and all gradients are finite, and the running mean isn't."""

    class Peek(Classify):
        def build(self, x, y):
            self.model.bn(jnp.where(x > 1e30, jnp.inf, x))
            loss = (self.model.head.kernel.get_value() ** 2).sum()
            self.backward(loss)
            return loss

    graph = made(Peek)
    with pytest.warns(UserWarning, match="no loss depends on"):
        graph(IMAGE, LABEL)
    before = graph.state_dict()
    graph(bad(1e31), LABEL)
    assert changed(before, graph.state_dict()) == COUNTS


def test_skips_are_named_in_the_log(caplog):
    groups = [{"params": ..., "name": "all"}]
    graph = Classify(linear(4, 3), SGD(groups, lr=0.1), skip_nonfinite=True)
    graph(IMAGE, LABEL)
    with caplog.at_level(logging.WARNING, "graphlr"):
        graph(bad(), LABEL)
        assert graph.skipped == 1
        graph(IMAGE, LABEL)
    assert (
        "Classify: 1 skipped; the gradient of model.bias (group 'all')" in caplog.text
    )


def test_without_the_option_the_nan_goes_in():
    graph = Classify(linear(4, 3), SGD("**", lr=0.1))
    graph(bad(), LABEL)
    assert np.isnan(graph.model.kernel.get_value()).all()
    assert graph.skipped == 0


# --- what is known of skips, and when -------------------------------------------------


class Late:
    """A count of a step that still runs: reading it waits for its end."""

    def __init__(self, count):
        self.count, self.read = count, False

    def is_ready(self):
        return self.read

    def __int__(self):
        self.read = True
        return self.count


def test_a_step_that_still_runs_is_waited_for_once_in_a_while():
    watch, total = SkipWatch(), Late(2)
    skips = Skips(total, np.int32(1))
    assert [watch.look(skips, limit=3) for _ in range(2)] == [None, None]
    assert not total.read
    assert watch.look(skips, limit=3) == News(2, 1, are_new=True)
    assert watch.look(skips, limit=3) == News(2, 1, are_new=False)  # now it is ready
    assert SkipWatch().look(Skips(Late(2), np.int32(1)), limit=0) is None


def test_the_first_gradient_that_is_not_finite_is_named():
    optimizer = SGD([{"params": "bias", "name": "head"}, {"params": ...}])
    plan = make_plan({"m": linear()}, [optimizer])
    assert plan.names == ["m.bias", "m.kernel"]
    said = {
        finite: why_skipped(Report(finite=jnp.array(finite)), plan)
        for finite in ((True, True), (False, False), (True, False))
    }
    assert said == {
        (True, True): "the loss or a statistic isn't finite",
        (False, False): (
            "the gradient of m.bias (group 'head') isn't finite, and 1 more"
        ),
        (True, False): "the gradient of m.kernel (group 'group1') isn't finite",
    }
    assert why_skipped(Report(), plan) == "the loss or a statistic isn't finite"


def test_skips_are_told_again_after_an_older_state_was_loaded(caplog):
    graph = made(skip_nonfinite=True)
    start = state_of(graph)
    for _ in range(2):
        for _ in range(2):
            graph(bad(), LABEL)
            assert graph.skipped  # waits for it
        graph(IMAGE, LABEL)
        graph.load_state_dict(start)
        graph(IMAGE, LABEL)
    told = [record.message for record in caplog.records if "skipped" in record.message]
    counts = [text.split(": ")[1].partition(" ")[0] for text in told]
    assert counts == ["1", "2", "1", "2"]
