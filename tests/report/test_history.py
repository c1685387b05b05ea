"""What happened at each step, noted by group."""

import math

from graphlr.report.history import History


def test_history_keeps_every_group():
    made = History()
    for loss in (2.0, 1.0):
        made.add(loss, {"body": 0.1, "head": 0.2})
    assert made.lr == {"body": [0.1, 0.1], "head": [0.2, 0.2]}
    assert made.loss == [2.0, 1.0]


def test_a_group_that_was_added_in_mid_training_has_no_rate_before():
    made = History()
    made.add(1.0, {"body": 0.1})
    made.add(1.0, {"new": 0.5})
    assert (made.lr["body"][0], made.lr["new"][1]) == (0.1, 0.5)
    assert math.isnan(made.lr["body"][1])
    assert math.isnan(made.lr["new"][0])


def test_ratios_are_noted_from_when_they_are_given():
    made = History()
    made.add(1.0, {"body": 0.1})
    made.add(1.0, {"body": 0.1}, {"head": {"update_ratio": 2e-2, "lr": 0.2}})
    assert made.update_ratio["head"][1] == 2e-2
    assert math.isnan(made.update_ratio["head"][0])
