"""Arguments of `build`: constants, arrays, and what they are called."""

import dataclasses
import enum

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from graphlr.step.signature import Constant, read_arguments, registered


def build(image, label=None, *rest, flag=False, **named):
    """Only its parameters' names matter."""


class Mode(enum.Enum):
    FAST = 1


class Lookalike:
    """What data frames and tensors of other libraries look like."""

    def __array__(self, dtype=None, copy=None):
        return np.ones(3, np.float32)


@pytest.mark.parametrize(
    "value", ["text", b"raw", True, Mode.FAST, float, np.dtype("f4"), jnp.tanh]
)
def test_constants_are_no_inputs(value):
    signature, arrays = read_arguments(build, (value,), {})
    assert arrays == []
    assert signature.kinds == (Constant(type(value), value),)
    assert hash(signature) == hash(read_arguments(build, (value,), {})[0])
    assert signature.fill([]) == ((value,), {})


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (np.ones((2, 3), np.float64), "float32[2,3]"),
        (np.arange(2), "int32[2]"),
        (np.float32(1), "float32[]"),
        (np.bool_(True), "bool[]"),
        (jnp.ones(2, jnp.bfloat16), "bfloat16[2]"),
        (3, "int32[]"),
        (2.5, "float32[]"),
        (1j, "complex64[]"),
        (jax.random.key(0), "key<fry>[]"),
        (Lookalike(), "float32[3]"),
    ],
)
def test_numbers_and_arrays_are_inputs(value, kind):
    signature, arrays = read_arguments(build, (value,), {})
    assert len(arrays) == 1
    assert signature.describe(build) == {"image": kind}


def test_true_and_one_are_two_signatures():
    kinds = {
        read_arguments(build, (value,), {})[0] for value in (True, 1, "1", Mode.FAST)
    }
    assert len(kinds) == 4


def test_a_number_and_none_are_two_trees():
    assert (
        read_arguments(build, (None,), {})[0].tree
        != read_arguments(build, (1,), {})[0].tree
    )


def test_dataclasses_are_registered_with_what_they_hold():
    @dataclasses.dataclass
    class Inner:
        x: object

    @dataclasses.dataclass(frozen=True)
    class Outer:
        inner: Inner
        name: str = "n"

    signature, (array,) = read_arguments(build, (Outer(Inner(np.ones(2))),), {})
    assert signature.describe(build) == {
        "image.inner.x": "float32[2]",
        "image.name": "the str 'n'",
    }
    (filled,), _ = signature.fill([array])
    assert filled.inner.x is array
    assert jax.tree.leaves(registered({"k": Inner(5)})) == [5]


def test_names_are_the_users_own():
    nested = [{"x": np.ones(1)}, (2.0,)]
    signature, _ = read_arguments(
        build, (nested, 1), {"flag": True, "extra": {"y": 3.0}}
    )
    assert set(signature.describe(build)) == {
        "image[0]['x']", "image[1][0]", "label", "flag", "extra['y']"}  # fmt: skip


def test_what_star_takes_is_not_called_like_another_argument():
    signature, _ = read_arguments(build, (1, 2, 3, 4, 5), {"flag": 6})
    names = signature.names(build)
    assert len(set(names)) == 6
    assert names[:2] == ["image", "label"]
    assert all("flag" not in name for name in names[:5])
    with pytest.raises(TypeError, match="argument rest"):
        read_arguments(build, (1, 2, 3, object()), {})


def test_difference_names_only_what_changed():
    old, _ = read_arguments(build, (np.ones((8, 3)), np.ones(8)), {"flag": True})
    new, _ = read_arguments(build, (np.ones((5, 3)), np.ones(8)), {"flag": False})
    assert new.difference(old, build) == (
        "image float32[5,3] (was float32[8,3]), flag the bool False (was the bool True)"
    )
    added, _ = read_arguments(build, (np.ones((8, 3)),), {"flag": True})
    assert added.difference(old, build) == "label absent (was float32[8])"


def test_width_is_part_of_a_signature():
    narrow, _ = read_arguments(build, (np.ones(2),), {})
    with jax.enable_x64(True):
        wide, _ = read_arguments(build, (np.ones(2),), {})
    assert wide != narrow
    assert "64-bit types on" in wide.difference(narrow, build)


def test_an_unhashable_constant_is_named():
    class Unhashable:
        __hash__ = None

        def __call__(self):
            return 0

    with pytest.raises(TypeError, match="image"):
        hash(read_arguments(build, (Unhashable(),), {})[0])
