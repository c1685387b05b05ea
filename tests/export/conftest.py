"""A step in a file, and the graph it was made of: compiled once for all tests here."""

import pytest

import graphlr as glr
from tests.models import IMAGE, LABEL, Classify, linear


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """The graph, the path of its file, the exported graph, the state of both."""
    groups = [
        {"params": "**.bias", "name": "bias", "lr_scale": 0.5},
        {"params": "**.kernel", "name": "kernel", "weight_decay": 0.1},
    ]
    schedule = glr.optim.lr_scheduler.ExponentialLR(gamma=0.5)
    graph = Classify(linear(4, 3), glr.optim.Adam(groups, lr=0.1), lr_sch=schedule)
    path = tmp_path_factory.mktemp("exported") / "train.zip"
    graph.export(path, IMAGE, LABEL)
    return graph, path, glr.export.load(path), graph.state_dict()


@pytest.fixture
def path(pair):
    return pair[1]


@pytest.fixture
def graph(pair):
    """As it was when it was exported."""
    graph, _, _, state = pair
    graph.load_state_dict(state)
    return graph


@pytest.fixture
def exported(pair):
    """As it was when it was loaded."""
    _, _, exported, state = pair
    exported.load_state_dict(state)
    return exported
