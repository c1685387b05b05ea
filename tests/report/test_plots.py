"""Pictures of a run and of the rates before it."""

import sys

import jax.numpy as jnp
import numpy as np
import pytest

from graphlr.optim import SGD
from graphlr.optim.lr_scheduler import ConstantLR, CosineDecayLR, StepLR
from graphlr.report.history import History
from graphlr.report.plots import plot_history, plot_lr


def history(steps=3, **groups):
    made = History()
    for step in range(steps):
        made.add(jnp.float32(2.0 / (step + 1)), groups or {"head": 0.1})
    return made


def is_png(path):
    return path.read_bytes().startswith(b"\x89PNG\r\n")


def height(path):
    return int.from_bytes(path.read_bytes()[20:24], "big")


def test_the_picture_is_a_png_in_a_new_folder(tmp_path):
    made = history()
    made.accuracy = {1: 0.5, 3: 0.9}
    path = plot_history(made, str(tmp_path / "new" / "plot.png"))
    assert path == tmp_path / "new" / "plot.png"
    assert is_png(path)


def test_a_group_that_was_added_in_mid_training_and_ratios(tmp_path):
    made = history(2, body=0.1)
    ratios = {"body": {"update_ratio": 1e-3}, "new": {"update_ratio": 2e-2}}
    made.add(1.0, {"body": 0.1, "new": 0.5}, ratios)
    path = plot_history(made, tmp_path / "plot.png")
    assert is_png(path)
    assert height(path) > height(plot_history(history(), tmp_path / "plain.png"))


def test_a_history_without_rates(tmp_path):
    made = History(loss=[1.0, 0.5])
    assert is_png(plot_history(made, tmp_path / "plot.png"))


def test_an_empty_history():
    with pytest.raises(ValueError, match=r"history is empty: history\.add"):
        plot_history(History(), "never.png")


def test_a_missing_matplotlib_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'graphlr\[plot\]'"):
        plot_history(history(), tmp_path / "plot.png")
    assert not list(tmp_path.iterdir())


def two_groups():
    groups = [
        {"params": "body.**", "name": "body", "lr_scale": 0.5},
        {"params": "head.**", "name": "head", "lr_sch": StepLR(2, 0.1)},
    ]
    return SGD(groups, lr=1.0)


def test_plot_lr_draws_every_group(tmp_path):
    optimizer = two_groups()
    figure = plot_lr(optimizer, [0.3, 0.2, 0.1], 5, tmp_path / "new" / "lr.png")
    (axes,) = figure.axes
    drawn = {line.get_label(): line.get_ydata() for line in axes.lines}
    np.testing.assert_allclose(drawn["body"], [0.15, 0.1, 0.05, 0.05, 0.05])
    np.testing.assert_allclose(drawn["head"], [1, 1, 0.1, 0.1, 0.01])
    assert (tmp_path / "new" / "lr.png").stat().st_size > 1000
    assert optimizer.lr_sch is None


def test_plot_lr_without_a_schedule_of_its_own():
    optimizer = two_groups()
    optimizer.param_groups["head"]["lr_sch"] = None
    for schedule in (None, ConstantLR(1.0)):
        lines = plot_lr(optimizer, schedule, 2).axes[0].lines
        assert [line.get_ydata().tolist() for line in lines] == [[0.5] * 2, [1.0] * 2]
    with pytest.raises(ValueError, match="steps is 0"):
        plot_lr(optimizer, None, 0)


def test_what_is_drawn_is_what_the_optimizer_says():
    optimizer = two_groups()
    optimizer.lr_sch = CosineDecayLR(7)
    rates = optimizer.sample_lr(12)
    for step in range(12):
        assert {k: v[step] for k, v in rates.items()} == optimizer.lr(step)
