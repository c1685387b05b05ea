"""Which parameter belongs to which group: selectors, groups, labels."""

from graphlr.groups.group import ParamGroup as ParamGroup
from graphlr.groups.group import ParamGroups as ParamGroups
from graphlr.groups.labels import label_params as label_params
from graphlr.groups.paths import Param as Param
from graphlr.groups.selectors import Selector as Selector
from graphlr.groups.selectors import select_modules as select_modules

__all__ = [
    "Param",
    "ParamGroup",
    "ParamGroups",
    "Selector",
    "label_params",
    "select_modules",
]
