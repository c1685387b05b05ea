"""Gradient transformations that optax lacks or computes differently from PyTorch.

Each is a plain `optax.GradientTransformation` whose numbers may be traced. Where a
rule counts steps, it counts them per parameter: a state field named `steps`, int32[n],
holds one count for each of the n parameters in leaf order, so that a parameter that
joins late starts its own bias correction at 1.
"""

from graphlr.optim.transforms.adam import scale_by_adam as scale_by_adam
from graphlr.optim.transforms.adam import scale_by_adamax as scale_by_adamax
from graphlr.optim.transforms.adam import scale_by_lazy_adam as scale_by_lazy_adam
from graphlr.optim.transforms.adam import scale_by_nadam as scale_by_nadam
from graphlr.optim.transforms.adam import scale_by_radam as scale_by_radam
from graphlr.optim.transforms.adaptive import (
    scale_by_adafactor as scale_by_adafactor,
)
from graphlr.optim.transforms.adaptive import scale_by_rms as scale_by_rms
from graphlr.optim.transforms.adaptive import scale_by_sum as scale_by_sum
from graphlr.optim.transforms.gradients import ascend as ascend
from graphlr.optim.transforms.gradients import centralize as centralize
from graphlr.optim.transforms.gradients import clip_by_norm as clip_by_norm
from graphlr.optim.transforms.gradients import norm as norm
from graphlr.optim.transforms.leaves import Number as Number
from graphlr.optim.transforms.leaves import per_leaf as per_leaf
from graphlr.optim.transforms.momentum import averaged_sgd as averaged_sgd
from graphlr.optim.transforms.momentum import scale_by_layer_rate as scale_by_layer_rate
from graphlr.optim.transforms.momentum import scale_by_momentum as scale_by_momentum
from graphlr.optim.transforms.momentum import (
    scale_by_trust_ratio as scale_by_trust_ratio,
)
from graphlr.optim.transforms.sign import scale_by_lion as scale_by_lion
from graphlr.optim.transforms.sign import scale_by_muon as scale_by_muon
from graphlr.optim.transforms.sign import scale_by_rprop as scale_by_rprop
from graphlr.optim.transforms.sign import scale_by_shape as scale_by_shape
