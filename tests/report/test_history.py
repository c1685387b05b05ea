"""Progress and pictures, from plain data."""

import io
import math
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from graphlr.optim import SGD
from graphlr.optim.lr_scheduler import ConstantLR, CosineDecayLR, StepLR
from graphlr.report.history import History
from graphlr.report.plots import plot_history, plot_lr
from graphlr.report.progress import StepProgress
from graphlr.report.tables import stats_table


def history(steps=3, **groups):
    made = History()
    for step in range(steps):
        made.add(jnp.float32(2.0 / (step + 1)), groups or {"head": 0.1})
    return made


def is_png(path):
    return path.read_bytes().startswith(b"\x89PNG\r\n")


def test_history_keeps_every_group():
    made = history(2, body=0.1, head=0.2)
    assert made.lr == {"body": [0.1, 0.1], "head": [0.2, 0.2]}
    assert len(made.loss) == 2


def test_the_picture_is_a_png_in_a_new_folder(tmp_path):
    made = history()
    made.accuracy = {1: 0.5, 3: 0.9}
    path = plot_history(made, str(tmp_path / "new" / "plot.png"))
    assert path == tmp_path / "new" / "plot.png"
    assert is_png(path)


def test_a_group_that_was_added_in_mid_training(tmp_path):
    made = history(2, body=0.1)
    made.add(1.0, {"body": 0.1, "new": 0.5})
    assert is_png(plot_history(made, tmp_path / "plot.png"))


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


def test_progress_on_a_quiet_console():
    with StepProgress(3, Console(quiet=True)) as progress:
        progress.advance(jnp.float32(2.5), {"body": 0.012345, "head": 1e-6})
        assert progress.text == "loss 2.5000  lr body 0.012  head 1e-06"


def test_the_last_step_is_always_shown():
    with StepProgress(50, Console(quiet=True)) as progress:
        for step in range(50):
            progress.advance(float(step), {})
    assert progress.text.startswith("loss 49.0000")


def test_the_loss_is_not_read_at_every_step():
    class Loss(float):
        read = 0

        def __float__(self):
            Loss.read += 1
            return 1.0

    with StepProgress(1000, Console(quiet=True)) as progress:
        for _ in range(100):
            progress.advance(Loss(), {})
    assert Loss.read < 20


def test_lines_are_printed_above_the_bar():
    out = io.StringIO()
    console = Console(file=out, width=40)
    with StepProgress(1, console) as progress:
        progress.print("epoch 1: " + "x" * 60)
    assert "epoch 1: " + "x" * 60 in out.getvalue()


def test_the_bar_stops_when_the_body_raises():
    progress = StepProgress(2, Console(quiet=True))
    with pytest.raises(OSError, match="body"), progress:
        raise OSError("body")
    with progress:  # a live display that had not stopped would refuse another
        pass


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


STATS = {
    "body": {"grad_norm": 2.0, "update_norm": 0.5, "update_ratio": 1e-3, "lr": 0.1},
    "head": {"grad_norm": 4.0, "update_norm": 1.5, "update_ratio": 2e-2, "lr": 0.2},
}


def test_a_table_of_what_the_groups_do():
    out = io.StringIO()
    with StepProgress(1, Console(file=out, width=80)) as progress:
        progress.print(stats_table(STATS))
    lines = [line.split() for line in out.getvalue().splitlines()]
    assert ["group", "grad_norm", "update_norm", "update_ratio", "lr"] in lines
    assert ["head", "4", "1.5", "0.02", "0.2"] in lines
    assert stats_table({}).row_count == 0


def test_ratios_are_noted_and_drawn(tmp_path):
    made = History()
    made.add(1.0, {"body": 0.1})
    made.add(1.0, {"body": 0.1}, STATS)
    assert made.update_ratio["head"][1] == 2e-2
    assert math.isnan(made.update_ratio["head"][0])
    plain = is_png(plot_history(history(), tmp_path / "plain.png"))
    assert plain
    assert is_png(plot_history(made, tmp_path / "ratios.png"))
    heights = [
        int.from_bytes((tmp_path / name).read_bytes()[20:24], "big")
        for name in ("plain.png", "ratios.png")
    ]
    assert heights[1] > heights[0]
