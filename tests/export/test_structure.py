"""Nested arguments and results as JSON and back."""

import collections
import dataclasses
import enum
import json
from typing import NamedTuple

import pytest

from graphlr.export.structure import Array, describe, fill, nodes, take


class Scores(NamedTuple):
    loss: object
    parts: tuple


@dataclasses.dataclass
class Batch:
    image: object
    label: object = None


class Mode(enum.Enum):
    FAST = 1


A, B = Array(0), Array(1)
CASES = {
    "array": A,
    "nothing": None,
    "tuple": (A, (B,), ()),
    "list": [A, [B]],
    "dict": {"x": A, 3: {"y": B}},
    "named tuple": Scores(A, (B, "text")),
    "constants": [A, B, "text", True, 2, 0.5, None],
}


@pytest.mark.parametrize("value", CASES.values(), ids=CASES)
def test_there_and_back_through_json(value):
    node = json.loads(json.dumps(describe(value)))
    filled = fill(node, ["first", "second"])
    shown = repr(value).replace("Array(number=0)", "'first'")
    assert repr(filled) == shown.replace("Array(number=1)", "'second'")


@pytest.mark.parametrize("value", CASES.values(), ids=CASES)
def test_arrays_are_taken_from_where_they_were(value):
    node = json.loads(json.dumps(describe(value)))
    found = take(node, fill(node, ["first", "second"]), "x")
    assert found == dict(enumerate(["first", "second"][: len(found)]))
    assert sum(isinstance(inner, int) for inner in nodes(node)) == len(found)


def test_other_dicts_are_dicts():
    node = describe(collections.OrderedDict(y=B, x=A))
    assert fill(node, [1, 2]) == {"x": 1, "y": 2}


def test_records_are_known_by_their_fields():
    node = describe(Batch(A, B))
    filled = fill(node, [1, 2])
    assert repr(filled) == "Batch(image=1, label=2)"
    assert take(node, filled, "batch") == {0: 1, 1: 2}
    assert take(node, Batch(3, 4), "batch") == {0: 3, 1: 4}


@pytest.mark.parametrize(
    ("value", "given", "message"),
    [
        ({"x": A}, {}, r"batch must be a dict with the keys 'x', and it has none"),
        ({"x": A}, 3, r"batch must be a dict, not a int"),
        ({"x": [A]}, {"x": 3}, r"batch\['x'\] must be a list, not a int"),
        ((A, B), (1, 2, 3), r"batch must have 2 entries, and it has 3"),
        (Batch(A), (1,), r"batch must be a Batch with 'image', 'label', not a tuple"),
        ("fast", "slow", r"batch is 'slow', and .* made for 'fast': export it again"),
        (None, [1], r"batch is a list, and the exported program is made for None"),
        (Mode.FAST, 1, r"batch is 1, and .* made for the Mode <Mode.FAST: 1>"),
    ],
    ids=str,
)
def test_what_is_built_otherwise_is_refused_with_its_place(value, given, message):
    with pytest.raises(TypeError, match=message):
        take(describe(value), given, "batch")


def test_a_constant_that_is_the_same_is_taken():
    value = (Mode.FAST, "fast", None)
    assert take(describe(value), value, "x") == {}
