"""Worked models: `mobilenet_v2`."""

from graphlr.models.mobilenet_v2 import MobileNetV2, mobilenet_v2

__all__ = ["MobileNetV2", "mobilenet_v2"]
