"""Budgets: the limits that they set, and what they do not take."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tatok_edge.errors import InputError
from tatok_edge.tokens.budget import TokenBudget


@pytest.mark.parametrize(
    ("budget", "depth", "limits"),
    [
        (TokenBudget(), 1, (0, 100)),
        (TokenBudget(), 4, (0, 400)),
        (TokenBudget(keep=0.25), 1, (0, 25)),
        (TokenBudget(keep=0.25), 4, (0, 25)),
        (TokenBudget(keep=2), 4, (0, 200)),
        (TokenBudget(keep=2.505), 4, (0, 250)),
        (TokenBudget(keep=4.0), 4, (0, 400)),
        (TokenBudget(keep=0.0), 4, (0, 0)),
        (TokenBudget(max_tokens=7), 1, (0, 7)),
        (TokenBudget(max_tokens=300), 4, (0, 300)),
        (TokenBudget(max_tokens=1000), 4, (0, 400)),
        (TokenBudget(max_depth=1), 4, (0, 100)),
        (TokenBudget(max_depth=3), 4, (0, 300)),
        (TokenBudget(max_depth=9), 4, (0, 400)),
        (TokenBudget(max_depth=1, keep=2.0), 4, (0, 100)),
        (TokenBudget(max_depth=2, keep=0.5), 4, (0, 50)),
        (TokenBudget(keep=0.5, max_tokens=60), 4, (0, 50)),
        (TokenBudget(keep=0.5, max_tokens=40), 4, (0, 40)),
        (TokenBudget(min_tokens=5), 4, (5, 400)),
        (TokenBudget(min_tokens=50, max_tokens=40), 4, (40, 40)),
        (TokenBudget(min_tokens=500), 4, (400, 400)),
        (TokenBudget(min_tokens=500, max_depth=2), 4, (200, 200)),
    ],
)
def test_limits_of_a_budget(budget: TokenBudget, depth: int, limits: tuple[int, int]) -> None:
    assert budget.limits(100, depth) == limits


def test_the_depth_of_stacks() -> None:
    assert TokenBudget().depth(4) == 4
    assert TokenBudget(max_depth=1).depth(4) == 1
    assert TokenBudget(max_depth=3).depth(2) == 2


@given(
    st.integers(1, 5000),
    st.integers(1, 8),
    st.none() | st.floats(0, 1),
    st.none() | st.integers(1, 9),
    st.none() | st.integers(0, 50_000),
    st.integers(0, 50_000),
)
def test_limits_stay_within_the_stacks(
    patches: int, depth: int, share: float | None, deepest: int | None, most: int | None, least: int
) -> None:
    keep = None if share is None else share * depth
    budget = TokenBudget(keep=keep, max_depth=deepest, max_tokens=most, min_tokens=least)
    smallest, largest = budget.limits(patches, depth)
    assert 0 <= smallest <= largest <= patches * budget.depth(depth) <= patches * depth
    assert smallest == min(least, largest)
    if most is not None:
        assert largest <= most
    if keep is not None:
        assert largest <= round(keep * patches)


def test_more_tokens_per_patch_than_the_model_has_are_refused() -> None:
    for depth in (1, 2, 4):
        message = f"keep must be from 0 to {depth} tokens per patch, the depth of this model, got 4.5"
        with pytest.raises(InputError, match=f"^{message}$"):
            TokenBudget(keep=4.5).limits(100, depth)


def test_budgets_take_numpy_numbers_and_are_values() -> None:
    budget = TokenBudget(tau=np.float32(0.5), max_tokens=np.int64(3), max_depth=np.int8(2))  # type: ignore[arg-type]
    assert type(budget.tau) is float
    assert type(budget.max_tokens) is type(budget.max_depth) is int
    assert budget == TokenBudget(tau=0.5, max_tokens=3, max_depth=2)
    assert len({budget, TokenBudget(tau=0.5, max_tokens=3, max_depth=2)}) == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tau": 0}, "tau must be above 0 and at most 1, got 0"),
        ({"tau": 1.01}, r"tau must be above 0 and at most 1, got 1\.01"),
        ({"tau": float("nan")}, "tau must be above 0 and at most 1, got nan"),
        ({"tau": "0.5"}, r"tau must be a number, got '0\.5'"),
        ({"tau": None}, "tau must be a number, got NoneType"),
        ({"keep": -0.1}, r"keep must be from 0 to 8 tokens per patch, got -0\.1"),
        ({"keep": 35}, "keep must be from 0 to 8 tokens per patch, got 35"),
        ({"keep": float("nan")}, "keep must be from 0 to 8 tokens per patch, got nan"),
        ({"max_tokens": -1}, "max_tokens must be at least 0, got -1"),
        ({"max_tokens": 2.5}, r"max_tokens must be an integer, got 2\.5"),
        ({"max_tokens": True}, "max_tokens must be an integer, got True"),
        ({"max_depth": 0}, "max_depth must be at least 1, got 0"),
        ({"max_depth": 1.5}, r"max_depth must be an integer, got 1\.5"),
        ({"max_bits": 0}, "max_bits must be at least 1, got 0"),
        ({"min_tokens": -3}, "min_tokens must be at least 0, got -3"),
        ({"floor_bits": -1}, "floor_bits must be a finite number of bits from 0, got -1"),
        ({"floor_bits": float("inf")}, "floor_bits must be a finite number"),
        ({"floor_bits": 2.0}, "floor_bits needs a score in bits: give score 'information' or 'entropy' with it"),
        ({"floor_bits": 2.0, "score": "visual"}, "floor_bits needs a score in bits"),
        ({"score": "variance"}, "score must be one of residual, visual, information, entropy, got 'variance'"),
    ],
)
def test_what_a_budget_does_not_take(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TokenBudget(**values)
