"""Needles in haystacks: what a model still finds in a long prompt, by the prompt's length and the needle's depth.

Example:

    from vl.evaluation.niah import ROUND_DEPTHS, Grid, find_needles, read_rounds

    grid = Grid(lengths=(1024, 4096), depths=(0, 50, 100))
    result = find_needles(model, grid.cases(), grid.depths)
    print(result.score(), result.cells())                      # all, and by depth and length
    result = find_needles(model, read_rounds("english_2048.jsonl"), ROUND_DEPTHS)
"""

from vl.evaluation.niah.cases import Case, Failed, Grid
from vl.evaluation.niah.haystack import drawn_hay, file_hay
from vl.evaluation.niah.heatmap import draw_heat_map
from vl.evaluation.niah.output import NeedleFolder
from vl.evaluation.niah.results import Result, Row, short
from vl.evaluation.niah.rounds import ROUND_DEPTHS, read_rounds
from vl.evaluation.niah.run import check_grid, find_needles
from vl.evaluation.niah.scoring import repeat_score, value_score

__all__ = [
    "ROUND_DEPTHS",
    "Case",
    "Failed",
    "Grid",
    "NeedleFolder",
    "Result",
    "Row",
    "check_grid",
    "draw_heat_map",
    "drawn_hay",
    "file_hay",
    "find_needles",
    "read_rounds",
    "repeat_score",
    "short",
    "value_score",
]
