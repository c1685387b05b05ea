"""The progress bar: what it shows, how seldom it reads a loss, that it stops."""

import io

import jax.numpy as jnp
import pytest
from rich.console import Console

from graphlr.report.progress import StepProgress


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
