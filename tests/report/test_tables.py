"""Tables of what the groups do."""

import io

from rich.console import Console

from graphlr.report.progress import StepProgress
from graphlr.report.tables import stats_table

STATS = {
    "body": {"grad_norm": 2.0, "update_norm": 0.5, "update_ratio": 1e-3, "lr": 0.1},
    "head": {"grad_norm": 4.0, "update_norm": 1.5, "update_ratio": 2e-2, "lr": 0.2},
}


def test_a_table_of_what_the_groups_do():
    out = io.StringIO()
    with StepProgress(1, Console(file=out, width=80)) as progress:
        progress.print(stats_table(STATS))
    lines = [line.split() for line in out.getvalue().splitlines()]
    assert ["group", "grad_norm", "update_norm", "update_ratio", "lr"] in lines
    assert ["head", "4", "1.5", "0.02", "0.2"] in lines
    assert stats_table({}).row_count == 0
