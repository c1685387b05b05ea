"""Numbers of an exported step: read by the next call, checked when they are set."""

import pytest

from tests.models import IMAGE, LABEL, assert_same, state_of


def test_numbers_are_live(exported, graph, lowered):
    exported(IMAGE, LABEL), graph(IMAGE, LABEL)
    compilations = graph.compiles.count
    lowered.clear()
    groups = graph.optimizers[0].param_groups
    for step in range(4):
        assert float(exported(IMAGE, LABEL)) == float(graph(IMAGE, LABEL))
        exported.numbers["bias.lr_scale"] = groups["bias"]["lr_scale"] = 0.1 * step
        exported.numbers["kernel.betas"] = groups["kernel"]["betas"] = (0.8, 0.9)
        assert exported.lr == pytest.approx(graph.lr)
    assert exported.state_dict()["groups.bias.lr_scale"] == 0.1 * step
    assert_same(state_of(exported), state_of(graph))
    assert graph.compiles.count == compilations
    assert "run" not in lowered


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("bias.lr_sclae", 0.1, KeyError, "did you mean 'bias.lr_scale'"),
        ("head.lr", 0.1, KeyError, "numbers has no 'head.lr'"),
        ("bias.lr", -0.1, ValueError, "Invalid learning rate: -0.1"),
        ("bias.lr", "fast", TypeError, "lr must be a number"),
        ("bias.lr", lambda step: 0.1, TypeError, "bias.lr is 0.1 in the exported step"),
        ("bias.betas", (0.9, 1.5), ValueError, "Invalid beta parameter at index 1"),
        ("bias.betas", 0.9, TypeError, "betas must be two numbers"),
    ],
)
def test_bad_numbers_change_nothing(exported, name, value, error, message):
    before = dict(exported.numbers)
    with pytest.raises(error, match=message):
        exported.numbers[name] = value
    assert dict(exported.numbers) == before
    assert len(before) == 10
