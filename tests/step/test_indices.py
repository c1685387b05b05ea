"""Integer arguments that index something: which, and values out of range."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from graphlr.step.indices import check_range, index_limits

TABLE = jnp.ones((5, 2))
EMBED = nnx.Embed(5, 2, rngs=nnx.Rngs(0))


def under_grad(i):
    def loss(table):
        chosen = jnp.take_along_axis(table, i[:, None], axis=-1)
        return jnp.sum(chosen**2)

    return jax.grad(loss)(TABLE)


@pytest.mark.parametrize(
    ("function", "size"),
    [
        (lambda i: TABLE[i], 5),
        (lambda i: TABLE[:, i], 2),
        (lambda i: jnp.take(TABLE, i, axis=0), 5),
        (lambda i: jnp.take_along_axis(TABLE, i[:, None], axis=1), 2),
        (lambda i: TABLE[i[::-1] * 1], None),  # no longer the argument itself
        (lambda i: TABLE[i.astype(jnp.int8).reshape(-1, 1)], 5),
        (lambda i: EMBED(i), 5),
        (lambda i: optax.softmax_cross_entropy_with_integer_labels(TABLE, i), 2),
        (lambda i: jax.vmap(lambda k: jnp.take(TABLE, k, axis=0))(i), 5),
        (lambda i: jax.jit(lambda k: TABLE[k])(i), 5),
        (under_grad, 2),
        (lambda i: (TABLE[i], TABLE[:, i]), 2),  # the smallest counts
        (lambda i: jax.nn.one_hot(i, 5), None),
        (lambda i: TABLE[jnp.clip(i, 0, 4)], None),
        (lambda i: TABLE[i + 1], None),
        (lambda i: TABLE[jnp.where(i < 0, 0, i)], None),
        (lambda i: jnp.take(TABLE, i, axis=0, mode="clip"), None),
        (lambda i: TABLE.at[i].get(mode="fill", fill_value=0.0), None),
    ],
)
def test_index_limits(function, size):
    jaxpr = jax.jit(function).trace(jnp.zeros(5, jnp.int32)).jaxpr.jaxpr
    expected = {} if size is None else {0: size}
    assert index_limits(jaxpr, {jaxpr.invars[0]: 0}) == expected


@pytest.mark.parametrize("values", [[0, 3], [], 3, [[0, 1], [2, 3]]])
def test_allowed_indices(values):
    check_range(np.array(values, int), 4, lambda: "label")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, 4], r"^label\[1\] is 4, but it indexes 4 entries \(0 to 3\)"),
        ([-1], r"^label\[0\] is -1,"),
        (7, "^label is 7,"),
        ([[0, 0], [0, 9]], r"^label\[1, 1\] is 9,"),
    ],
)
def test_refused_indices(values, message):
    with pytest.raises(ValueError, match=message):
        check_range(np.array(values), 4, lambda: "label")
