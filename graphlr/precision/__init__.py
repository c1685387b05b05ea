"""In how many bits: modules that compute in 16, and the scale of the loss."""

from graphlr.precision.scalers import GradScaler as GradScaler
from graphlr.precision.scalers import StaticGradScaler as StaticGradScaler

__all__ = ["GradScaler", "StaticGradScaler"]
