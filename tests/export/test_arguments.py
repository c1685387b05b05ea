"""Arguments of an exported step: taken as the graph takes them, or refused by name."""

import jax.numpy as jnp
import pytest

from graphlr.export.arguments import LEFT_OUT, call_signature
from tests.models import IMAGE, LABEL


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "message"),
    [
        (
            (IMAGE,),
            {},
            TypeError,
            r"Classify: missing a required argument: 'label'; Classify \(expo",
        ),
        (
            (IMAGE, LABEL, LABEL),
            {},
            TypeError,
            r"too many positional arguments; .* takes image: float",
        ),
        ((IMAGE,), {"z": LABEL}, TypeError, r"missing a required argument: 'label'"),
        (
            (IMAGE[0], LABEL),
            {},
            ValueError,
            r"image is float32\[4\], .* takes float32\[b,4\]: give",
        ),
        (
            (IMAGE[:, :3], LABEL),
            {},
            ValueError,
            r"image is float32\[16,3\], .* float32\[b,4\]",
        ),
        (
            (IMAGE, LABEL[:5]),
            {},
            ValueError,
            r"label is int32\[5\], .* where b is 16 as in image: give",
        ),
        (
            (IMAGE > 0, LABEL),
            {},
            TypeError,
            r"image is bool\[16,4\], .*image\.astype\('float32'\), or",
        ),
        (
            (IMAGE, IMAGE[:, 0]),
            {},
            TypeError,
            r"label is float32\[16\], .* takes int32\[b\]: convert",
        ),
        (
            ([[1.0]], LABEL),
            {},
            TypeError,
            r"image is a list, and .* takes float32\[b,4\]",
        ),
        (
            (IMAGE, LABEL + 3),
            {},
            ValueError,
            r"label\[0\] is \d, but it indexes 3 entries",
        ),
        ((IMAGE, None), {}, TypeError, r"label is a NoneType, and .* takes int32\[b\]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_arguments_are_told_before_anything_runs(
    exported, args, kwargs, error, message
):
    with pytest.raises(error, match=message):
        exported(*args, **kwargs)
    assert exported.step == 0


def test_arguments_by_name_and_from_the_device(exported):
    state = exported.state_dict()
    expected = float(exported(IMAGE, LABEL))
    exported.load_state_dict(state)
    given = {"label": jnp.asarray(LABEL), "image": jnp.asarray(IMAGE)}
    assert float(exported(**given)) == expected


def test_only_what_was_left_out_may_be_left_out_again():
    signature = call_signature(
        [
            ["image", "POSITIONAL_OR_KEYWORD", False, 0],
            ["mode", "POSITIONAL_OR_KEYWORD", True, None],
            ["rest", "VAR_POSITIONAL", True, []],
            ["scale", "KEYWORD_ONLY", False, 1],
            ["named", "VAR_KEYWORD", True, {}],
        ]
    )
    assert str(signature) == "(image, mode=Ellipsis, *rest, scale, **named)"
    bound = signature.bind("image", scale=2.0)
    bound.apply_defaults()
    assert bound.arguments["mode"] is LEFT_OUT
    with pytest.raises(TypeError, match="missing a required argument: 'scale'"):
        signature.bind("image")
