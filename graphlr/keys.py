"""The keys of a saved state: every one is made, and taken apart, here.

A Variable is saved under its path (`model.head.kernel`). Everything else begins with a
word of the library's own: slots (`slots.model.head.kernel.exp_avg`), averages
(`ema.model.head.kernel`), numbers and flags of groups (`groups.head.lr_scale`), the
loss scale, skipped batches, `step`. A path that begins with such a word, because an
attribute of the user's graph is called so, gets `self.` in front: `self.scaler.scale`.
So no two things can share a key, whatever attributes are called.
"""

from __future__ import annotations

LOSS_SCALE, GOOD_STEPS = "scaler.scale", "scaler.good"
SKIPPED, SKIPPED_IN_A_ROW = "skipped.total", "skipped.in_a_row"
AVERAGES_TAKEN = "ema.taken"
MEMBERS = "members"  # a field of a group in a state, and so no name of a number

_SELF = "self"
# The first words of the library's own keys, and the one that marks a path.
_OWN = {"slots", "groups", "ema", "scaler", "skipped", "step", _SELF}


def variable(path: str) -> str:
    """The key of a Variable.

    Example:
        >>> variable("model.head.kernel"), variable("scaler.scale")
        ('model.head.kernel', 'self.scaler.scale')
    """
    return f"{_SELF}.{path}" if _first(path) in _OWN else path


def average(path: str) -> str:
    """The key of a parameter's moving average.

    Example:
        >>> average("model.head.kernel"), average("taken")
        ('ema.model.head.kernel', 'ema.self.taken')
    """
    marked = _first(path) in ("taken", _SELF)  # `ema.taken` is the count of them
    return f"ema.{_SELF}.{path}" if marked else f"ema.{path}"


def path_of_average(key: str) -> str | None:
    """The path that `average` made `key` of; None if it is another key.

    Example:
        >>> path_of_average("ema.self.taken"), path_of_average("ema.taken")
        ('taken', None)
    """
    if _first(key) != "ema" or key == AVERAGES_TAKEN:
        return None
    return key.removeprefix("ema.").removeprefix(f"{_SELF}.")


def slot(path: str, name: str) -> str:
    """The key of a slot of a parameter.

    Example:
        >>> slot("model.head.kernel", "exp_avg")
        'slots.model.head.kernel.exp_avg'
    """
    return f"slots.{path}.{name}"


def field(group: str, name: str) -> str:
    """The key of a number or a flag of a group.

    Example:
        >>> field("head", "lr_scale")
        'groups.head.lr_scale'
    """
    return f"groups.{group}.{name}"


def split_field(key: str) -> tuple[str, str] | None:
    """The group and the name that `field` made `key` of; None if it is another key.

    Example:
        >>> split_field("groups.body.first.lr"), split_field("step")
        (('body.first', 'lr'), None)
    """
    if _first(key) != "groups":
        return None
    group, _, name = key.removeprefix("groups.").rpartition(".")
    return group, name


def steps(optimizers: int) -> list[str]:
    """The keys of the step counts of so many optimizers.

    Example:
        >>> steps(1), steps(2)
        (['step'], ['step.0', 'step.1'])
    """
    return ["step"] if optimizers == 1 else [f"step.{k}" for k in range(optimizers)]


def is_own(key: str) -> bool:
    """Whether `key` is of the library's own, and not of a Variable.

    Example:
        >>> is_own("scaler.scale"), is_own("self.scaler.scale"), is_own("model.w")
        (True, False, False)
    """
    return _first(key) in _OWN - {_SELF}


def owner(key: str) -> str:
    """The words of a key that say whose it is: without prefix and last word.

    Example:
        >>> owner("slots.model.head.kernel.exp_avg"), owner("model.head.kernel")
        ('model.head.kernel', 'model.head')
    """
    return key.removeprefix("slots.").rpartition(".")[0]


def _first(key: str) -> str:
    return key.partition(".")[0]
