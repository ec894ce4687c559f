"""The table of goals: what reaches a goal, what misses it, and results that are not there."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="module")
def goals(script: Callable[[str], ModuleType]) -> ModuleType:
    """The script as a module."""
    return script("benchmarks/goals.py")


def quality(psnr: float, ms_ssim: float, seam: float) -> dict[str, Any]:
    """A report of quality.py with the same figures at every budget."""
    row = {"psnr_residual": psnr, "ms_ssim_residual": ms_ssim, "ms_ssim_visual": 0.5, "seam8": seam}
    return {"results": [{"keep": keep, **row} for keep in (4.0, 2.0, 1.0, 0.35, 0.1)]}


def verdicts(text: str) -> list[tuple[str, bool]]:
    """What each line is about, and whether it is reached."""
    rows = [line.strip("|").split("|") for line in text.splitlines()[2:]]
    assert {row[3].strip() for row in rows} <= {"reached", "**missed**"}
    return [(row[0].strip(), row[3].strip() == "reached") for row in rows]


def test_larger_is_better_for_fidelity_and_smaller_for_seams(goals: ModuleType) -> None:
    good = verdicts(goals.table({"quality": quality(31.0, 0.972, 1.15)}))
    assert len(good) == 5 + 4 + 1 and all(reached for _, reached in good)
    bad = verdicts(goals.table({"quality": quality(23.99, 0.868, 1.16)}))
    assert [what for what, _ in bad] == [what for what, _ in good] and not any(reached for _, reached in bad)


def test_budgets_have_their_own_goals(goals: ModuleType) -> None:
    found = dict(verdicts(goals.table({"quality": quality(28.5, 0.94, 1.0)})))
    assert found["Kodak, PSNR, 1 per patch"] and not found["Kodak, PSNR, 2 per patch"]
    assert found["Kodak, MS-SSIM, 1 per patch"] and not found["Kodak, MS-SSIM, all tokens"]


def test_results_that_are_missing_are_left_out(goals: ModuleType) -> None:
    assert len(goals.table(dict.fromkeys(goals.READERS)).splitlines()) == 2


def test_a_policy_loses_little_and_gets_faster(goals: ModuleType) -> None:
    def row(tokens: float, success: float, ms: float) -> dict[str, Any]:
        return {"tokens": tokens, "success": [success, success], "inference_ms": [ms], "large_inference_ms": [4 * ms]}

    fixed, ours = row(160, 0.9, 6), row(40, 0.88, 1.5)
    assert all(reached for _, reached in verdicts(goals.table({"policy": {"results": [fixed, ours]}})))
    swapped = verdicts(goals.table({"policy": {"results": [ours, fixed]}}))
    assert [reached for _, reached in swapped] == [False, True, False]
