"""Optimizers with parameter groups, and learning-rate schedules."""

from graphlr.optim import lr_scheduler as lr_scheduler
from graphlr.optim.as_optax import lr_of as lr_of
from graphlr.optim.groups_state import GroupsState as GroupsState
from graphlr.optim.optimizer import Optimizer as Optimizer
from graphlr.optim.rules import ASGD as ASGD
from graphlr.optim.rules import LAMB as LAMB
from graphlr.optim.rules import LARS as LARS
from graphlr.optim.rules import SGD as SGD
from graphlr.optim.rules import Adadelta as Adadelta
from graphlr.optim.rules import Adafactor as Adafactor
from graphlr.optim.rules import Adagrad as Adagrad
from graphlr.optim.rules import Adam as Adam
from graphlr.optim.rules import Adamax as Adamax
from graphlr.optim.rules import AdamW as AdamW
from graphlr.optim.rules import Lion as Lion
from graphlr.optim.rules import Muon as Muon
from graphlr.optim.rules import NAdam as NAdam
from graphlr.optim.rules import RAdam as RAdam
from graphlr.optim.rules import RMSprop as RMSprop
from graphlr.optim.rules import Rprop as Rprop
from graphlr.optim.rules import SparseAdam as SparseAdam

__all__ = [
    "ASGD",
    "LAMB",
    "LARS",
    "SGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "GroupsState",
    "Lion",
    "Muon",
    "NAdam",
    "Optimizer",
    "RAdam",
    "RMSprop",
    "Rprop",
    "SparseAdam",
    "lr_of",
    "lr_scheduler",
]
