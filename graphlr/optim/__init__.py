"""Optimizers with parameter groups, and learning-rate schedules."""

from graphlr.optim import lr_scheduler as lr_scheduler
from graphlr.optim.optimizer import Optimizer as Optimizer
from graphlr.optim.optimizer import lr_of as lr_of
from graphlr.optim.rules import SGD as SGD
from graphlr.optim.rules import Adam as Adam
from graphlr.optim.rules import AdamW as AdamW
