"""Every parameter in exactly one group, or an error with paths and the line to type."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Sequence

from graphlr.groups.group import ParamGroup, in_two_groups
from graphlr.groups.paths import Param, dotted
from graphlr.groups.selectors import Selector
from graphlr.messages import listing


def label_params(
    params: Sequence[Param], groups: Sequence[ParamGroup]
) -> dict[str, int]:
    """The index in `groups` of the one group that each parameter belongs to.

    Args:
        params: Every parameter, each once.
        groups: Groups of one or several optimizers; their names are for messages.

    Returns:
        `{dotted path: index of the group}`, in the order of `params`.

    Raises:
        ValueError: A parameter is in two groups or in none; a pattern matches nothing;
            a group names a Variable that is not among `params`.

    Example:
        >>> params = [Param("m.w", ("w",), None), Param("m.b", ("b",), None)]
        >>> biases = ParamGroup({"params": "b", "name": "biases"}, lambda v, _: v)
        >>> others = ParamGroup({"params": ..., "name": "others"}, lambda v, _: v)
        >>> label_params(params, [biases, others])
        {'m.w': 1, 'm.b': 0}
    """
    _check_known(params, groups)
    rest = [i for i, group in enumerate(groups) if group.selector.rest]
    if len(rest) > 1:
        names = " and ".join(repr(groups[i].name) for i in rest[:2])
        raise ValueError(
            f"groups {names} both select ... (everything not named elsewhere): "
            "only one group can"
        )
    chosen = {
        param.path: [i for i, group in enumerate(groups) if group.selector(param)]
        for param in params
    }
    _check_overlap(chosen, groups)
    uncovered = [path for path, indices in chosen.items() if not indices]
    used = {i for indices in chosen.values() for i in indices}
    _check_matched(used | {*rest} if uncovered else used, groups, params)
    if uncovered and not rest:
        _raise_uncovered(uncovered)
    return {path: (*indices, *rest)[0] for path, indices in chosen.items()}


def _check_known(params: Sequence[Param], groups: Sequence[ParamGroup]) -> None:
    known = {id(param.value) for param in params}
    for group in groups:
        strangers = [
            path or f"one of shape {variable.shape}"
            for i, (path, variable) in group.selector.variables.items()
            if i not in known
        ]
        if strangers:
            raise ValueError(
                f"group {group.name!r} ({group.selector}) holds parameters that no "
                f"module of the graph has: {listing(strangers)}. Was the module "
                "replaced after the optimizer was made? Make the optimizer last, or "
                "name its parameters by path, {'params': 'classifier.**'}."
            )


def _check_overlap(chosen: dict[str, list[int]], groups: Sequence[ParamGroup]) -> None:
    twice = {path: found for path, found in chosen.items() if len(found) > 1}
    if twice:
        first, second = next(iter(twice.values()))[:2]
        same = [path for path, found in twice.items() if found[:2] == [first, second]]
        raise ValueError(in_two_groups(same, groups[first].name, groups[second].name))


def _raise_uncovered(paths: Sequence[str]) -> None:
    common = paths[0].split(".")
    for path in paths:
        parts = path.split(".")
        same = [a == b for a, b in zip(common, parts, strict=False)]
        common = common[: (*same, False).index(False)]
    pattern = dotted(common) if len(paths) == 1 else dotted((*common, "**"))
    raise ValueError(
        f"{len(paths)} parameters are in no group and would never train: "
        f"{listing(paths)}. Add a group, {{'params': {pattern!r}}}, or freeze them, "
        f"{{'params': {pattern!r}, 'frozen': True}}, or take everything not named "
        "elsewhere, {'params': ...}."
    )


def _check_matched(
    used: set[int], groups: Sequence[ParamGroup], params: Sequence[Param]
) -> None:
    for i, group in enumerate(groups):
        if i in used:
            continue
        if group.selector.may_be_empty or group.selector.rest:
            warnings.warn(
                f"group {group.name!r} ({group.selector}) holds no parameters; "
                "nothing of it trains: leave the group out",
                stacklevel=2,
            )
            continue
        paths = [param.path for param in params]
        text = str(group.selector).strip("'")
        near = difflib.get_close_matches(text, paths, n=3, cutoff=0.0)
        deeper = f"{text.rstrip('.*')}.**" if text.strip(".*") else ""
        hint = deeper if deeper and any(map(Selector(deeper), params)) else ""
        raise ValueError(
            f"group {group.name!r}: {group.selector} matches no parameter. "
            + (f"For everything under it write {hint!r}. " if hint else "")
            + f"The paths nearest to it are {listing(near)} (`*` stays within a name, "
            "`**` crosses dots)."
        )
