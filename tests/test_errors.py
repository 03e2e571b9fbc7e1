"""What errors say."""

import pytest

from cnnbench.errors import SHOWN_PROBLEMS, Problem, RecipeError


@pytest.mark.parametrize(("more", "last"), [(0, "r.yaml:50: wrong"), (2, "… and 2 more")])
def test_only_so_many_problems_are_shown_and_the_others_counted(more, last):
    count = SHOWN_PROBLEMS + more
    error = RecipeError([Problem(f"r.yaml:{i}", "wrong") for i in range(1, count + 1)])
    lines = str(error).splitlines()
    assert lines[SHOWN_PROBLEMS - 1] == "r.yaml:50: wrong" and lines[-1] == last
    assert len(lines) == SHOWN_PROBLEMS + (more > 0)
