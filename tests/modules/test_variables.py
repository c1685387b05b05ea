"""Arrays of Variables: read and written, and copied where anybody else holds them."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from graphlr.modules.variables import accessors, as_arrays, read, unshared, write


@pytest.mark.parametrize("kind", [nnx.Variable, nnx.Param])
def test_both_ways_to_an_array_are_the_public_one(kind):
    """`nnx.Param` has no slot of its own, as if nnx kept arrays somewhere else."""
    get, put = accessors(kind)
    for variable in (nnx.Param(jnp.arange(2.0)), nnx.BatchStat(jnp.ones(1))):
        assert get(variable) is variable.get_raw_value() is variable.get_value()
        new = jnp.zeros(2)
        put(variable, new)
        assert variable.get_value() is new


def test_read_and_written_in_order():
    variables = [nnx.Param(jnp.arange(2.0)), nnx.BatchStat(jnp.ones(1))]
    new = [jnp.zeros(2), jnp.zeros(1)]
    write(variables, new)
    assert all(a is b for a, b in zip(read(variables), new, strict=True))


def test_python_numbers_become_arrays_that_compile_once():
    whole, half = as_arrays([nnx.Variable(3), nnx.Variable(0.5)])
    assert (whole.dtype, half.dtype) == (jnp.int32, jnp.float32)
    assert not any(array.weak_type for array in (whole, half))


def test_unshared_copies_only_what_somebody_else_holds():
    variables = [nnx.Param(jnp.full(3, float(i))) for i in range(3)]
    kept = variables[1].get_value()
    owned = unshared(read(variables))
    same = [a is v.get_raw_value() for a, v in zip(owned, variables, strict=True)]
    assert same == [True, False, True]
    np.testing.assert_array_equal(owned[1], kept)
    kept.block_until_ready()
    owned[1].delete()
    assert not kept.is_deleted()


def test_unshared_copies_an_array_that_two_variables_hold():
    array = jnp.ones(2)
    twins = [nnx.Param(array), nnx.Param(array)]
    del array
    a, b = unshared(read(twins))
    assert a is not b
    assert a is not twins[0].get_value()
