"""Update rules: PyTorch's names, signatures and formulas, composed from optax.

A rule is a function of hyperparameters that returns the *direction* of a step as an
`optax.GradientTransformation`; `Optimizer` multiplies it by `-lr(t) * lr_scale`. A rule
that takes `lr` returns the whole step instead. Its signature is the optimizer's:
PyTorch's order and defaults. Numbers arrive traced, so changing one never recompiles.
"""

from graphlr.optim.rules.adam import Adam as Adam
from graphlr.optim.rules.adam import AdamW as AdamW
from graphlr.optim.rules.adam import SparseAdam as SparseAdam
from graphlr.optim.rules.adam_variants import Adamax as Adamax
from graphlr.optim.rules.adam_variants import NAdam as NAdam
from graphlr.optim.rules.adam_variants import RAdam as RAdam
from graphlr.optim.rules.adaptive import Adadelta as Adadelta
from graphlr.optim.rules.adaptive import Adafactor as Adafactor
from graphlr.optim.rules.adaptive import Adagrad as Adagrad
from graphlr.optim.rules.adaptive import RMSprop as RMSprop
from graphlr.optim.rules.lamb import LAMB as LAMB
from graphlr.optim.rules.sgd import ASGD as ASGD
from graphlr.optim.rules.sgd import LARS as LARS
from graphlr.optim.rules.sgd import SGD as SGD
from graphlr.optim.rules.sign import Lion as Lion
from graphlr.optim.rules.sign import Muon as Muon
from graphlr.optim.rules.sign import Rprop as Rprop
