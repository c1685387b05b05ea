"""Where batches come from: small labelled image sets, and their shuffled batches."""

from graphlr.data.cifar10 import CIFAR10_MD5 as CIFAR10_MD5
from graphlr.data.cifar10 import CIFAR10_MEAN as CIFAR10_MEAN
from graphlr.data.cifar10 import CIFAR10_STD as CIFAR10_STD
from graphlr.data.cifar10 import CIFAR10_URL as CIFAR10_URL
from graphlr.data.cifar10 import cifar10 as cifar10
from graphlr.data.digits import digits as digits
from graphlr.data.images import Dataset as Dataset
from graphlr.data.images import Images as Images
from graphlr.data.images import pad as pad

__all__ = [
    "CIFAR10_MD5",
    "CIFAR10_MEAN",
    "CIFAR10_STD",
    "CIFAR10_URL",
    "Dataset",
    "Images",
    "cifar10",
    "digits",
    "pad",
]
