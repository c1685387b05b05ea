"""What `print(graph)` is made of."""

import pytest
from flax import nnx

from graphlr.modules import Modules
from graphlr.optim import SGD, Adam, lr_scheduler
from graphlr.summary import groups_table, modules_tree, table


def linear():
    return nnx.Linear(20, 60, rngs=nnx.Rngs(0))


ATTRIBUTES = {"net": linear(), "heads": [linear(), linear()], "n": 5}
MODULES = Modules(ATTRIBUTES)


def rows(*optimizers):
    lines = groups_table(MODULES, optimizers).splitlines()
    return [line.split("  ") for line in lines[2:]], lines


def test_columns_are_aligned_and_lines_have_no_tail():
    text = table([("a", "long head", "c"), ("cell", "x", ""), ("b", "yy", "z")])
    assert text.splitlines() == [
        "a     long head  c",
        "----  ---------  -",
        "cell  x",
        "b     yy         z",
    ]


def test_every_column_starts_where_its_head_does():
    _, lines = rows(
        SGD([{"params": "heads.0.**", "name": "a long name"}, {"params": ...}])
    )
    for head in ("parameters", "count", "lr now", "lr_scale", "decay", "schedule"):
        start = lines[0].index(head)
        assert all(line[start - 2 : start] == "  " for line in lines)
        assert all(line[start] != " " for line in lines)


def test_a_group_says_what_it_holds_and_does():
    groups = [
        {"params": "net.kernel", "name": "kernel", "weight_decay": 0.5},
        {"params": "net.bias", "name": "bias", "frozen": True},
        {"params": ..., "lr_sch": lr_scheduler.StepLR(3), "lr": [0.2, 0.1]},
    ]
    lines = groups_table(MODULES, [Adam(groups, lr=0.1, lr_scale=0.5)]).splitlines()
    kernel, bias, rest = (line.split() for line in lines[2:])
    assert kernel == ["kernel", "net.kernel", "1,200", "0.05", "0.5", "0.5", "constant"]
    assert bias == ["bias", "net.bias", "60", "frozen", "-", "-", "-"]
    assert rest[:6] == ["group2", "heads.**", "(4)", "2,520", "0.1", "0.5"]
    assert "TableLR" in lines[4]
    assert "StepLR(step_size=3)" in lines[4]


def test_a_rule_without_decay_and_equal_names():
    a, b = SGD("net.*"), SGD("heads.**")
    names = [line.split()[0] for line in groups_table(MODULES, [a, b]).splitlines()[2:]]
    assert names == ["optimizer0.group0", "optimizer1.group0"]


@pytest.mark.filterwarnings("ignore:group 'empty'")
def test_a_group_of_nothing():
    groups = [{"params": nnx.Dropout(0.5), "name": "empty"}, {"params": ...}]
    line = groups_table(MODULES, [SGD(groups)]).splitlines()[2]
    assert line.split()[:3] == ["empty", "none", "0"]


def test_modules_and_their_sizes():
    assert modules_tree(ATTRIBUTES).splitlines() == [
        "  net: Linear, 1,260 in 2 parameters",
        "  heads: list, 2,520 in 4 parameters",
    ]
