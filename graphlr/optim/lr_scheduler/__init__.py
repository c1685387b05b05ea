"""Schedules: pure values, called as ``schedule(base_lr, step)``, that give an lr.

`step` is the number of updates already applied, so the first update uses step 0. Python
and NumPy arguments are evaluated on the host in float64. If either argument is a JAX
array, the same formula is computed inside the program in `base_lr`'s float dtype: exact
int32 steps and sums of positive terms keep it within 1e-6 of the host's value.
"""

from graphlr.optim.lr_scheduler.base import FunctionLR as FunctionLR
from graphlr.optim.lr_scheduler.base import Schedule as Schedule
from graphlr.optim.lr_scheduler.base import TableLR as TableLR
from graphlr.optim.lr_scheduler.base import as_schedule as as_schedule
from graphlr.optim.lr_scheduler.composed import SWALR as SWALR
from graphlr.optim.lr_scheduler.composed import ChainedScheduler as ChainedScheduler
from graphlr.optim.lr_scheduler.composed import SequentialLR as SequentialLR
from graphlr.optim.lr_scheduler.composed import WarmupLR as WarmupLR
from graphlr.optim.lr_scheduler.cycles import (
    CosineAnnealingWarmRestarts as CosineAnnealingWarmRestarts,
)
from graphlr.optim.lr_scheduler.cycles import CyclicLR as CyclicLR
from graphlr.optim.lr_scheduler.cycles import OneCycleLR as OneCycleLR
from graphlr.optim.lr_scheduler.decays import ConstantLR as ConstantLR
from graphlr.optim.lr_scheduler.decays import CosineAnnealingLR as CosineAnnealingLR
from graphlr.optim.lr_scheduler.decays import CosineDecayLR as CosineDecayLR
from graphlr.optim.lr_scheduler.decays import ExponentialLR as ExponentialLR
from graphlr.optim.lr_scheduler.decays import InverseSqrtLR as InverseSqrtLR
from graphlr.optim.lr_scheduler.decays import LambdaLR as LambdaLR
from graphlr.optim.lr_scheduler.decays import LinearLR as LinearLR
from graphlr.optim.lr_scheduler.decays import MultiplicativeLR as MultiplicativeLR
from graphlr.optim.lr_scheduler.decays import MultiStepLR as MultiStepLR
from graphlr.optim.lr_scheduler.decays import PiecewiseLR as PiecewiseLR
from graphlr.optim.lr_scheduler.decays import PolynomialLR as PolynomialLR
from graphlr.optim.lr_scheduler.decays import StepLR as StepLR
from graphlr.optim.lr_scheduler.decays import WarmupCosineLR as WarmupCosineLR
from graphlr.optim.lr_scheduler.decays import WarmupStableDecayLR as WarmupStableDecayLR
from graphlr.optim.lr_scheduler.plateau import ReduceLROnPlateau as ReduceLROnPlateau

__all__ = [
    "SWALR",
    "ChainedScheduler",
    "ConstantLR",
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "CosineDecayLR",
    "CyclicLR",
    "ExponentialLR",
    "FunctionLR",
    "InverseSqrtLR",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "MultiplicativeLR",
    "OneCycleLR",
    "PiecewiseLR",
    "PolynomialLR",
    "ReduceLROnPlateau",
    "Schedule",
    "SequentialLR",
    "StepLR",
    "TableLR",
    "WarmupCosineLR",
    "WarmupLR",
    "WarmupStableDecayLR",
    "as_schedule",
]
