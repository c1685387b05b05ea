"""Drop-in layers: convolutions that are fast on CPU too, PyTorch's BatchNorm.

Parameters have the names and shapes of `nnx.Conv` and `nnx.BatchNorm`: checkpoints fit
both.
"""

from graphlr.layers.batch_norm import BatchNorm
from graphlr.layers.conv import Conv, conv_general_dilated
from graphlr.layers.depthwise import depthwise_conv

__all__ = ["BatchNorm", "Conv", "conv_general_dilated", "depthwise_conv"]
