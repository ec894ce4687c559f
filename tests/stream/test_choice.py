"""The choice of actions, its limits, the price and the error curves: pure functions."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tatok_edge.stream.choice import HELD, HIGHEST, RENEWAL_COST, Offers, lowest_price
from tatok_edge.stream.curves import ErrorCurves, anchored
from tatok_edge.stream.limits import within_budget
from tatok_edge.stream.price import CREDIT, FEW, PROBES, VALUE_LIMITS, WRONG_DB, Price, target_of
from tatok_edge.tokens.budget import TokenBudget

DEPTH = 3


def offers(seed: int, count: int = 12, deepest: int = DEPTH) -> Offers:
    """Random offers of renewing and refining."""
    rng = np.random.default_rng(seed)
    errors = -np.sort(-rng.uniform(0, 400, (count, DEPTH + 1)).astype(np.float32), axis=1)
    return Offers(
        patches=np.sort(rng.choice(10 * count, count, replace=False)).astype(np.int32),
        now=rng.uniform(0, 500, count).astype(np.float32),
        errors=errors,
        worth=rng.uniform(1, 32, count).astype(np.float32),
        held=rng.choice([HELD, HELD, 1, 2], count).astype(np.int32),
        forced=np.zeros(count, np.bool_),
        visible=np.zeros(count, np.bool_),
        cells=rng.integers(0, 4, count).astype(np.int32),
        deepest=deepest,
    )


def value(all_: Offers, number: int, depth: int, price: float) -> float:
    """What an action is worth, in plain Python."""
    held = int(all_.held[number])
    cost = depth + RENEWAL_COST if held == HELD else depth - held
    return float((all_.now[number] - all_.errors[number, depth]) * all_.worth[number]) - price * cost


@given(st.integers(0, 2**32 - 1), st.floats(1, 1e5), st.integers(1, DEPTH))
def test_each_patch_gets_its_best_action(seed: int, price: float, deepest: int) -> None:
    all_ = offers(seed, deepest=deepest)
    for number, depth in enumerate(all_.at(price).tolist()):
        held = int(all_.held[number])
        possible = range(deepest + 1) if held == HELD else range(held + 1, deepest + 1)
        best = max((value(all_, number, d, price) for d in possible), default=-1.0)
        if depth == HELD:
            assert best <= 1e-2
        else:
            assert depth in possible and value(all_, number, depth, price) >= best - 1e-2


@given(st.integers(0, 2**32 - 1), st.floats(1, 1e5), st.floats(1, 100))
def test_a_higher_price_never_sends_more(seed: int, price: float, factor: float) -> None:
    all_ = offers(seed)
    low, high = all_.at(price), all_.at(price * factor)
    assert (high <= low).all() and all_.tokens(high) <= all_.tokens(low)


def test_what_is_visible_gets_a_token_at_any_price() -> None:
    all_ = offers(3)
    visible = all_.held == HELD
    marked = all_.of(np.ones(12, np.bool_))
    object.__setattr__(marked, "visible", visible)
    chosen = marked.at(HIGHEST)
    assert set(marked.cells[chosen > 0]) == set(marked.cells[visible])
    assert (np.bincount(marked.cells[chosen > 0]) <= 1).all()  # and no more than one in each cell
    forced = all_.of(np.ones(12, np.bool_))
    object.__setattr__(forced, "forced", visible)
    assert ((forced.at(HIGHEST) >= 0) == visible).all()


@given(st.integers(0, 2**32 - 1), st.integers(0, 40), st.integers(100, 600), st.floats(0.1, 1))
def test_a_budget_cuts_the_least_valuable(seed: int, most: int, bits: int, tau: float) -> None:
    all_ = offers(seed)

    def packed(chosen: NDArray[np.int32]) -> tuple[int, bytes]:
        tokens = all_.tokens(chosen)
        return tokens, b"x" * (10 + 2 * tokens)

    budget = TokenBudget(max_bits=bits, tau=tau)
    price, chosen, content, packet = within_budget(all_, 5.0, budget, most, packed)
    assert content == all_.tokens(chosen) <= most
    assert 8 * len(packet) <= bits or not content
    assert price >= 5.0 and np.array_equal(chosen, all_.at(price))
    free = within_budget(all_, 5.0, TokenBudget(), 100, packed)
    assert free[0] == 5.0 and np.array_equal(free[1], all_.at(5.0))
    assert all_.gain(chosen) <= max(tau, 1e-6) * all_.gain(free[1]) * (1 + 1e-5) + 1e-3 or tau == 1 or not content


def test_the_lowest_price_is_found_within_a_small_factor() -> None:
    assert lowest_price(7.0, lambda price: price >= 3) == 7.0
    assert 1234 <= lowest_price(7.0, lambda price: price >= 1234) <= 1234 * 1.001
    assert lowest_price(7.0, lambda price: price >= 1234, 500.0) == 500.0


# --- the price ---------------------------------------------------------------------------------------


def test_the_price_follows_the_error() -> None:
    price = Price(1000.0, debt=-CREDIT / 2)
    # The price is a multiple of the error to aim at: it fits a scene that gets brighter or busier.
    assert price.at(199) == 2 * price.at(99) == 200_000
    assert price.after(1.0, 0.5).value < 1000 < price.after(-1.0, 0.5).value
    assert price.after(0.0, 0.5).value == 1000
    # What was lost before is made up for.
    assert price.after(1.0, 0.5).after(0.0, 0.5).value < price.after(1.0, 0.5).value
    # Where nothing is sent a higher price gains nothing, and would be in the way when something happens.
    assert price.after(-1.0, 0.0).value == 1000
    assert price.after(-1.0, FEW / 10).value < price.after(-1.0, FEW).value
    for lost in (-50.0, 50.0):
        one = price
        for _ in range(200):
            one = one.after(lost, 1.0)
            assert VALUE_LIMITS[0] <= one.value <= VALUE_LIMITS[1]


@pytest.mark.parametrize("needed", [30.0, 3000.0])
def test_the_mean_loss_over_frames_is_what_was_allowed(needed: float) -> None:
    """A scene in which another price than the first one is needed; the loss follows the price slowly."""
    price, lost, total = Price(300.0), 0.0, 0.0
    for number in range(120):
        lost += 0.3 * (2 * math.log(price.value / needed) - lost)
        total += lost
        price = price.after(lost, 0.5)
        if number >= 40:
            assert total <= 0.5
    assert abs(lost) < 0.1


def test_gains_of_long_ago_are_not_spent() -> None:
    price = Price(1000.0)
    for _ in range(100):
        price = price.after(-1.0, 0.0)
    assert price.debt == -CREDIT


def test_what_an_estimate_hid_is_made_up_for() -> None:
    price = Price(1000.0)
    for _ in range(9):
        price = price.after(0.0, 0.5)
    # The fixed rate was 0.4 dB better than estimated; from measurement to measurement the difference grew evenly.
    probed = price.probed(0.4)
    assert probed.debt == pytest.approx(price.debt + 0.4 * (1 + 9) / 2)
    assert probed.unmeasured == 0 and not probed.probe_due
    # From then on an estimate counts as wrong by as much.
    assert probed.after(-0.4, 0.5).debt == pytest.approx(probed.debt)


def test_bits_of_tokens_are_learned() -> None:
    price = Price(1.0)
    for _ in range(20):
        price = price.filled(size=100.0, bits=900, cut=False)
    assert price.token_bits == pytest.approx(9, rel=0.01) and price.unmeasured == 20
    # A packet that was cut would have had more bits.
    assert price.filled(size=100.0, bits=900, cut=True).token_bits > price.token_bits


def test_measurements_become_rarer() -> None:
    price, intervals = Price(1.0), []
    for _ in range(20):
        price = price.probed(WRONG_DB / 2)
        intervals.append(price.interval)
    assert intervals[0] < intervals[1] and max(intervals) == intervals[-1] == PROBES[1]
    # They become more frequent where the estimate was wrong.
    assert price.probed(2 * WRONG_DB).interval == PROBES[1] // 2
    assert Price(1.0).probed(-2 * WRONG_DB).interval == PROBES[0]
    assert replace(price, unmeasured=PROBES[1]).probe_due


def test_the_target_is_the_fixed_rate_and_what_may_be_lost() -> None:
    assert 10 * np.log10(target_of(100, 1.0) / 100) == pytest.approx(1.0)
    assert target_of(100, 0.0) == 100


# --- error curves ------------------------------------------------------------------------------------


def test_curves_fall_with_depth_and_learn() -> None:
    rng = np.random.default_rng(0)
    residual = rng.uniform(50, 500, 30).astype(np.float32)
    scores = -np.sort(-rng.uniform(0, 20, (30, DEPTH)).astype(np.float32), axis=1)
    curves = ErrorCurves.start(DEPTH)
    errors = curves.of(residual, scores, noise=9.0)
    assert errors.shape == (30, DEPTH + 1) and (np.diff(errors, axis=1) <= 0).all() and errors.min() >= 9
    depths = np.full(30, 1, np.int32)
    for _ in range(100):
        expected = curves.of(residual, scores, noise=9.0)[:, 1]
        curves = curves.after(depths, expected, 0.7 * (errors[:, 1] - 9) + 9, noise=9.0)
    assert curves.corrections[1] == pytest.approx(0.7, rel=0.05)
    assert curves.corrections[[0, 2, 3]].tolist() == [1, 1, 1]
    assert curves.after_refining(np.ones(60, np.float32), np.zeros(60, np.float32)).gain_correction < 1
    nothing: Any = np.zeros(0, np.float32)
    assert curves.after_refining(nothing, nothing) is curves


def test_anchored_curves_go_through_what_was_measured() -> None:
    errors = np.array([[100, 50, 20], [100, 50, 20]], np.float32)
    measured = np.array([60, 15], np.float32)
    through = anchored(errors, np.array([1, 2], np.int32), measured, 0.0)
    assert through[0, 1] == pytest.approx(60, rel=0.03) and through[1, 2] == pytest.approx(15, rel=0.05)
    assert (np.diff(through, axis=1) < 0).all()
