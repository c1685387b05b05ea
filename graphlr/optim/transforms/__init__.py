"""What several update rules share: gradients before a rule, momentum, moments.

Each is a plain `optax.GradientTransformation` whose numbers may be traced. Where a
rule counts steps, it counts them per parameter: a state field named `steps`, int32[n],
holds one count for each of the n parameters in leaf order, so that a parameter that
joins late starts its own bias correction at 1.
"""
