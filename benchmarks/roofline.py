"""The least time that MobileNetV2's training step can take on this machine.

A step computes at least

    36.7 MFLOP · images

(6.12 million multiply-adds an image forwards, twice as many backwards), and moves at
least

    5.5 MB · images + 45 MB

(float32: every convolution reads its input three times and writes or reads its output
seven times over forward and backward pass; SGD with momentum moves 20 bytes for each
of 2.24 million parameters). If the two overlap perfectly, the step takes the longer of
them at the measured peaks: the rate of a large matrix product, the bandwidth of a
large array that is scaled in place.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

FLOP, IMAGE_BYTES, STEP_BYTES = 36.7e6, 5.5e6, 45e6
USUAL_BOUND_MS = 13.1  # of 64 images on two cores: 180 GFLOP/s, 40 GB/s


def bound_ms(images: int, gflops: float, gbytes: float) -> float:
    """The bound for a batch, at peaks in GFLOP/s and GB/s.

    Example:
        >>> bound_ms(64, gflops=180, gbytes=40)
        13.048888888888888
    """
    computing = FLOP * images / gflops
    moving = (IMAGE_BYTES * images + STEP_BYTES) / gbytes
    return max(computing, moving) / 1e6


def _fastest(call: Callable[[], Any], times: int) -> float:
    durations = []
    for _ in range(times):
        start = time.perf_counter()
        jax.block_until_ready(call())
        durations.append(time.perf_counter() - start)
    return min(durations)


def gemm_gflops(side: int = 2048, times: int = 20) -> float:
    """Peak of a float32 matrix product, GFLOP/s."""
    matrix, product = jnp.ones((side, side)), jax.jit(jnp.matmul)
    return 2 * side**3 / _fastest(lambda: product(matrix, matrix), times) / 1e9


def copy_gbytes(megabytes: int = 1024, times: int = 20) -> float:
    """Peak bandwidth, GB/s: an array is read, scaled, and written in its own place."""
    held = [jnp.ones(megabytes * 250_000)]
    scale = jax.jit(lambda x: x * 1.5, donate_argnums=0)

    def call() -> jax.Array:
        held[0] = scale(held[0])
        return held[0]

    return 2 * megabytes * 1e6 / _fastest(call, times) / 1e9
