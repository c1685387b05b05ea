"""MobileNetV2's training step in graphlr and its peers, and its convolutions alone.

10 classes, 32×32 images, batch 64, float32, SGD with momentum 0.9, three groups with
rates scaled by 0.1, 0.9 and 0.7, dropout 0.2. Every system is a process of its own, and
they take turns. Allocators: `plain` is the C library's; `tune_cpu` is the same after
`glr.runtime.tune_cpu()`; `tcmalloc` is preloaded. `roofline.py` says what the bound is.
"""

import argparse
import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks import roofline, timing
from benchmarks.peers import (
    ONEFLOW,
    Variant,
    against,
    before_and_after,
    rows,
    sample,
)
from benchmarks.systems import KERNELS

STOCK = "stock flax, jax.jit"
STOCK_NNX = "stock flax, nnx.jit + nnx.Optimizer"
EAGER, COMPILED = "PyTorch eager, channels-last", "torch.compile, channels-last"
OURS = {name: Variant("graphlr", name) for name in ("plain", "tune_cpu", "tcmalloc")}
PEERS = [
    Variant("flat jax.jit", "tune_cpu"),
    Variant(STOCK),
    Variant(STOCK, "tcmalloc"),
    Variant(STOCK_NNX),
    Variant(STOCK_NNX, "tcmalloc"),
    Variant("nnx.jit + nnx.Optimizer, graphlr's layers"),
    Variant("nnx.cached_partial, graphlr's layers"),
    Variant(EAGER),
    Variant(EAGER, "tcmalloc"),
    Variant(COMPILED),
    Variant(COMPILED, "tcmalloc"),
    Variant("Keras on JAX, one group"),
    Variant(ONEFLOW),
]
QUICK = [Variant("flat jax.jit", "tune_cpu"), Variant(EAGER), Variant(ONEFLOW)]

# What, ours, the peers of which the fastest counts, and the target.
TARGETS: list[tuple[str, Variant, list[Variant], float]] = [
    ("step vs stock flax, jax.jit, both plain", OURS["plain"], [Variant(STOCK)], 0.10),
    (
        "step vs stock flax, jax.jit, both tcmalloc",
        OURS["tcmalloc"],
        [Variant(STOCK, "tcmalloc")],
        0.10,
    ),
    (
        "step vs stock flax, nnx.jit + nnx.Optimizer, both plain",
        OURS["plain"],
        [Variant(STOCK_NNX)],
        0.09,
    ),
    (
        "step vs stock flax, nnx.jit + nnx.Optimizer, both tcmalloc",
        OURS["tcmalloc"],
        [Variant(STOCK_NNX, "tcmalloc")],
        0.09,
    ),
    ("step with tcmalloc vs OneFlow", OURS["tcmalloc"], [Variant(ONEFLOW)], 0.125),
    ("step with tune_cpu vs OneFlow", OURS["tune_cpu"], [Variant(ONEFLOW)], 0.18),
    ("step, plain, vs OneFlow", OURS["plain"], [Variant(ONEFLOW)], 0.24),
    (
        "step vs the best of PyTorch, both tcmalloc",
        OURS["tcmalloc"],
        [Variant(EAGER, "tcmalloc"), Variant(COMPILED, "tcmalloc")],
        0.70,
    ),
    (
        "step with tune_cpu vs the best of PyTorch, plain",
        OURS["tune_cpu"],
        [Variant(EAGER), Variant(COMPILED)],
        0.90,
    ),
    (
        "step vs the same by hand, flat jax.jit, both tune_cpu",
        OURS["tune_cpu"],
        [Variant("flat jax.jit", "tune_cpu")],
        1.02,
    ),
]


def ratios(medians: dict[Variant, float]) -> list[dict[str, Any]]:
    """The lines of the table of targets whose systems were all measured."""
    return [
        timing.ratio(what, medians[ours] / min(medians[peer] for peer in peers), target)
        for what, ours, peers, target in TARGETS
        if {ours, *peers} <= set(medians)
    ]


def of_roofline(best_ms: float, images: int) -> tuple[list[Any], dict[str, float]]:
    """How near the fastest of our steps comes to the bound; ratios and figures."""
    gflops, gbytes = roofline.gemm_gflops(), roofline.copy_gbytes()
    bound = roofline.bound_ms(images, gflops, gbytes)
    figures = {
        "float32 matrix product, GFLOP/s": gflops,
        "copy, GB/s": gbytes,
        "bound of a step at these peaks, ms": bound,
    }
    usual = roofline.USUAL_BOUND_MS * images / 64
    lines = [
        timing.ratio(
            f"share of the roofline, {usual:.3g} ms", usual / best_ms, 0.40, "higher"
        ),
        timing.ratio("share of the roofline measured", bound / best_ms, 0.40, "higher"),
    ]
    return lines, figures


def batches(
    sizes: Sequence[int],
    options: argparse.Namespace,
    skipped: dict[str, str],
    turns: Any,
) -> dict[str, Any]:
    """The step by batch size."""
    systems = [("graphlr", "tune_cpu"), (EAGER, "plain")]
    lines: dict[str, list[float]] = {}
    for size in sizes:
        variants = [Variant(*system, size) for system in systems]
        taken = sample(variants, options, skipped, *turns)
        for variant, durations in taken.items():
            median = 1e3 * statistics.median(durations)
            lines.setdefault(variant.name, []).append(median)
    return timing.series(
        "MobileNetV2 step by batch size",
        "images in a batch",
        sizes,
        {name: line for name, line in lines.items() if len(line) == len(sizes)},
        each="image",
    )


def convolutions(
    size: int, options: argparse.Namespace, skipped: dict[str, str], turns: Any
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Convolutions alone, forward and backward: tables and ratios."""
    allocator = "tcmalloc" if options.tcmalloc else "plain"
    tables, lines = [], []
    for kernel in KERNELS:
        ours, theirs = (
            Variant(f"{kernel}, {by}", allocator, size)
            for by in ("graphlr.layers", "jax.lax")
        )
        taken = sample([ours, theirs], options, skipped, *turns)
        title = f"{kernel} convolutions, forward and backward, batch {size}"
        tables.append({"title": title, "unit": "ms", "rows": rows(taken, ours)})
        if kernel == "depthwise 3×3" and len(taken) == 2:
            first, second = (statistics.median(taken[v]) for v in (ours, theirs))
            what = "depthwise forward + backward vs XLA's grouped convolution"
            lines.append(timing.ratio(what, first / second, 0.025))
    return tables, lines


def measure(options: argparse.Namespace) -> None:
    """Measure, print, write."""
    size, turns = (8, (2, 2)) if options.quick else (64, (8, 5))
    skipped: dict[str, str] = {}
    variants = [*OURS.values(), *(QUICK if options.quick else PEERS)]
    for ours in OURS.values():
        variants += against(ours, options.against)
    taken = sample([v._replace(size=size) for v in variants], options, skipped, *turns)
    medians = {v._replace(size=64): 1e3 * statistics.median(taken[v]) for v in taken}
    before = before_and_after(f"step, batch {size}", taken)
    best = min(medians[ours] for ours in OURS.values() if ours in medians)
    shares, figures = of_roofline(best, size)
    kernels, kernel_ratios = convolutions(size, options, skipped, turns)
    title = f"MobileNetV2 step, batch {size}"
    steps = rows(taken, OURS["tune_cpu"]._replace(size=size))
    sizes = (4, 8) if options.quick else (16, 64, 256, 1024)
    timing.save(
        "step",
        command="python -m benchmarks step",
        folder=options.results,
        tables=[{"title": title, "unit": "ms", "rows": steps}, *kernels],
        series=[batches(sizes, options, skipped, (4, 3))],
        ratios=[*ratios(medians), *kernel_ratios, *shares, *before],
        figures=figures,
        skipped=skipped,
    )
