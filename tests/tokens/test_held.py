"""The tokens that a stream holds: what frames and deltas leave there, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.token_frames import VOCABULARY, delta_of, frame_of, int32
from hypothesis import given
from hypothesis import strategies as st

from tatok_edge.errors import InputError
from tatok_edge.tokens.checks import depths_of
from tatok_edge.tokens.delta import DeltaFrame
from tatok_edge.tokens.frame import TokenFrame
from tatok_edge.tokens.held import HeldTokens, check_depth

PATCHES = 32
STACKS = st.lists(st.integers(0, 3), min_size=PATCHES, max_size=PATCHES)


def stacks_of(held: HeldTokens) -> list[list[int]]:
    """The ids of each patch; all behind its last token must be 0."""
    for ids, depth in zip(held.ids, held.depths, strict=True):
        assert not ids[depth:].any()
    return [ids[:depth].tolist() for ids, depth in zip(held.ids, held.depths, strict=True)]


def plain_stacks(frame: TokenFrame | DeltaFrame) -> dict[int, list[int]]:
    """The ids of each patch with a token."""
    stacks: dict[int, list[int]] = {}
    for position, number in zip(frame.positions.tolist(), frame.ids.tolist(), strict=True):
        stacks.setdefault(position, []).append(number)
    return stacks


@given(STACKS)
def test_a_frame_is_held_as_it_is(depths: list[int]) -> None:
    frame = frame_of(depths)
    held = HeldTokens.of_frame(frame, 3)
    assert held.depth == 3 and held.depths.tolist() == depths
    assert (held.ids.shape, held.ids.dtype, held.depths.dtype) == ((PATCHES, 3), np.int32, np.int32)
    stacks = plain_stacks(frame)
    assert stacks_of(held) == [stacks.get(patch, []) for patch in range(PATCHES)]
    assert np.array_equal(held.global_ids, frame.global_ids)


def test_a_delta_renews_and_refines() -> None:
    frame = frame_of([2] * PATCHES)
    held = HeldTokens.of_frame(frame, 4)
    before = stacks_of(held)
    delta = delta_of({3: 1, 4: 0, 9: 2, 10: 1}, refined=[9, 10], cells=[1])
    after = held.updated(delta)
    ids = delta.ids.tolist()
    expected = [list(stack) for stack in before]
    expected[3], expected[4] = [ids[0]], []  # renewed: the stack begins anew
    expected[9] += ids[1:3]  # refined: the stack goes on
    expected[10] += ids[3:]
    assert stacks_of(after) == expected
    assert after.global_ids.tolist() == [frame.global_ids[0], delta.global_ids[0]]
    assert stacks_of(held) == before  # what was held is not written to
    assert held.starts(delta).tolist() == [2 if patch in (9, 10) else 0 for patch in range(PATCHES)]


@given(STACKS, st.data())
def test_any_delta_does_what_lists_do(depths: list[int], draw: st.DataObject) -> None:
    held = HeldTokens.of_frame(frame_of(depths), 4)
    expected = stacks_of(held)
    for number in range(3):
        updates = draw.draw(st.dictionaries(st.integers(0, PATCHES - 1), st.integers(0, 4)))
        refined = []
        for patch in sorted(updates):
            room = 4 - int(held.depths[patch])
            if held.depths[patch] and 0 < updates[patch] <= room and draw.draw(st.booleans()):
                refined.append(patch)
        delta = delta_of(updates, refined=refined, seed=number, index=number + 1)
        stacks = plain_stacks(delta)
        for patch in updates:
            expected[patch] = (expected[patch] if patch in refined else []) + stacks.get(patch, [])
        starts = held.starts(delta)
        assert [int(starts[patch]) for patch in refined] == held.depths[refined].tolist()
        assert starts.sum() == held.depths[refined].sum()
        held = held.updated(delta)
        assert stacks_of(held) == expected
        assert held.ids.max(initial=0) < VOCABULARY


def test_deltas_that_do_not_fit() -> None:
    held = HeldTokens.of_frame(frame_of([0, 1, 3, *[0] * 29]), 3)
    with pytest.raises(InputError, match="refined must hold patches with a token only, got 0, which has none"):
        held.updated(delta_of({0: 1}, refined=[0]))
    with pytest.raises(InputError, match="refined must hold patches with a token only, got 0"):
        held.starts(delta_of({0: 1}, refined=[0]))
    message = "at most 3 times, the depth of the model, got patch {} {} times"
    with pytest.raises(InputError, match=message.format(2, 4)):
        held.updated(delta_of({2: 1}, refined=[2]))
    with pytest.raises(InputError, match=message.format(1, 4)):
        held.updated(delta_of({1: 3}, refined=[1]))
    with pytest.raises(InputError, match=message.format(5, 4)):
        held.updated(delta_of({5: 4}))
    with pytest.raises(InputError, match=r"of a picture of 32 patches and 2 cells.*got 192 and 12"):
        held.updated(delta_of({0: 1}, 100, 70))
    assert stacks_of(held.updated(delta_of({1: 2, 2: 3}, refined=[1])))[1:3] != [[], []]


def test_stacks_deeper_than_the_model_are_refused() -> None:
    with pytest.raises(InputError, match="each patch at most 2 times, the depth of the model, got patch 7 4 times"):
        HeldTokens.of_frame(frame_of([*[1] * 7, 4, *[0] * 24]), 2)
    check_depth(int32([]), 1)
    check_depth(int32([0, 2]), 2)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 8)), unique_by=lambda pair: pair[0]))
def test_depths_count_within_stacks(stacks: list[tuple[int, int]]) -> None:
    stacks.sort()
    positions = int32([patch for patch, depth in stacks for _ in range(depth)])
    depths = depths_of(positions)
    assert depths.dtype == np.int32
    assert depths.tolist() == [number for _, depth in stacks for number in range(1, depth + 1)]
