"""What `print(graph)` is made of."""

import numpy as np
import pytest
from flax import nnx

import graphlr as glr
from graphlr.engine.optimizers import Optimizers
from graphlr.modules.tree import Modules
from graphlr.optim import SGD, Adam, lr_scheduler
from graphlr.report.summary import groups_rows, html_table, modules_tree, table
from tests import models

NET = models.linear(20, 60)
ATTRIBUTES = {"net": NET, "heads": [nnx.clone(NET), nnx.clone(NET)], "n": 5}
MODULES = Modules(ATTRIBUTES)


def groups_text(modules, optimizers):
    return table(groups_rows(modules, Optimizers(optimizers)))


def rows(*optimizers):
    lines = groups_text(MODULES, optimizers).splitlines()
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
    lines = groups_text(MODULES, [Adam(groups, lr=0.1, lr_scale=0.5)]).splitlines()
    kernel, bias, rest = (line.split() for line in lines[2:])
    assert kernel == ["kernel", "net.kernel", "1,200", "0.05", "0.5", "0.5", "constant"]
    assert bias == ["bias", "net.bias", "60", "frozen", "-", "-", "-"]
    assert rest[:6] == ["group2", "heads.**", "(4)", "2,520", "0.1", "0.5"]
    assert "TableLR" in lines[4]
    assert "StepLR(step_size=3)" in lines[4]


def test_a_rule_without_decay_and_equal_names():
    a, b = SGD("net.*"), SGD("heads.**")
    names = [line.split()[0] for line in groups_text(MODULES, [a, b]).splitlines()[2:]]
    assert names == ["optimizer0.group0", "optimizer1.group0"]


@pytest.mark.filterwarnings("ignore:group 'empty'")
def test_a_group_of_nothing():
    groups = [{"params": nnx.Dropout(0.5), "name": "empty"}, {"params": ...}]
    line = groups_text(MODULES, [SGD(groups)]).splitlines()[2]
    assert line.split()[:3] == ["empty", "none", "0"]


def test_modules_and_their_sizes():
    net, heads = modules_tree(ATTRIBUTES).splitlines()
    shapes = "bias float32[60], kernel float32[20, 60]"
    assert net == f"  net: Linear, 1,260 in 2 parameters: {shapes}"
    assert heads == (
        "  heads: list, 2,520 in 4 parameters: 0.bias float32[60], "
        "0.kernel float32[20, 60], 1.bias float32[60], 1.kernel float32[20, 60]"
    )


def test_large_trees_are_cut():
    model = glr.models.mobilenet_v2(10, rngs=nnx.Rngs(0))
    tree = modules_tree({"model": model})
    assert tree.splitlines()[0] == ("  model: MobileNetV2, 2,236,682 in 158 parameters")
    assert "1.bias float32[10], 1.kernel float32[1280, 10]" in tree
    assert "... and 11 more" in tree
    assert len(tree.splitlines()) < 40


class Train(models.Train):
    """Two groups, one with a name that HTML can't take as it is."""

    def __init__(self):
        optimizer = SGD([{"params": "kernel"}, {"params": "bias", "name": "<b>"}])
        super().__init__(nnx.clone(NET), optimizer, skip_nonfinite=True)

    def build(self, x, mode="mean"):
        loss = getattr(self.model(x), mode)()
        self.backward(loss)
        return loss


X = np.ones((2, 20), np.float32)


def test_a_graph_shows_its_programs_and_what_they_cost():
    graph = Train()
    assert "compiled for" not in str(graph)
    graph(X), graph(X, mode="sum"), graph.scan(X[None])
    text = str(graph)
    assert "Train (train, step 3; config: skip_nonfinite=20)" in text
    assert "x float32[2,20]  " in text
    assert "x float32[2,20], mode the str 'sum'" in text
    assert "1 steps of x float32[2,20]" in text
    assert text.count(" kB") >= 3
    graph(X * np.nan)
    assert "step 3, 1 skipped" in str(graph)


def test_a_notebook_shows_the_same():
    graph = Train()
    graph(X)
    page = graph._repr_html_()
    for cell in ("group0", "&lt;b&gt;", "x float32[2,20]", "kernel float32[20, 60]"):
        assert cell in page
    assert page.count("<table>") == page.count("</table>") == 2


def test_a_fault_is_shown_and_does_not_raise():
    graph = Train()
    graph.optimizers[0].param_groups[0]["params"] = "krenel"
    assert "'krenel' matches no parameter" in str(graph)
    assert "&#x27;krenel&#x27; matches no parameter" in graph._repr_html_()


@pytest.mark.parametrize(
    ("level", "seen", "unseen"),
    [
        (-1, "", "traced"),
        (0, "Train: traced in", "group0"),
        (1, "compiled for", "lambda"),
        (2, "lambda ;", "HloModule"),
        (3, "HloModule", "nothing"),
    ],
)
def test_debug_prints_what_is_compiled(level, seen, unseen, capsys):
    graph = Train()
    graph.debug(level)
    graph(X)
    first = capsys.readouterr().out
    assert seen in first
    assert unseen not in first
    graph(X)
    assert capsys.readouterr().out == ""


def test_no_such_level():
    with pytest.raises(ValueError, match="debug level is 4: give -1, 0, 1, 2 or 3"):
        Train().debug(4)


def test_tables_in_html():
    assert html_table([("a",), ("<",)]).endswith("<td>&lt;</td></tr></table>")
