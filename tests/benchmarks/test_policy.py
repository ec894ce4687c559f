"""The policy benchmark at toy size: the task, its observations, and a policy that learns."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the policy needs PyTorch")
pytest.importorskip("matplotlib", reason="the plot needs matplotlib")

from tatok_edge import TokenBudget, Tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def policy(script: Callable[[str], ModuleType]) -> ModuleType:
    """The script as a module."""
    return script("benchmarks/policy.py")


def test_the_controller_reaches_every_goal(policy: ModuleType) -> None:
    table = policy.Table(8, 64, seed=3)
    images = table.render()
    assert len({image.tobytes() for image in images}) == 8
    assert not table.reached().all()
    for _ in range(20):
        motion = table.expert()
        assert (np.linalg.norm(motion, axis=1) <= 1 + 1e-9).all()
        table.move(motion)
    assert table.reached().all()


def test_observations_are_the_tokens(policy: ModuleType, tokenizer: Tokenizer) -> None:
    images = policy.Table(3, 64, seed=3).render()
    fixed = policy.observe(tokenizer, images, TokenBudget(max_depth=1))
    assert fixed.lengths.tolist() == [4 + 64] * 3
    assert fixed.places[0, 4:].unique(dim=0).shape == (64, 2)
    ours = policy.observe(tokenizer, images, TokenBudget(keep=0.25))
    assert (ours.lengths == 4 + 16).all() and ours.depths.max() >= 1
    frame = tokenizer.encode(images[1], budget=TokenBudget(keep=0.25))
    values = tokenizer.values(frame)
    assert np.array_equal(ours.values[1, 4:, : values.shape[1]], values)
    cell = frame.positions // 8 // 4 * 2 + frame.positions % 8 // 4
    assert np.array_equal(ours.values[1, 4:, values.shape[1] :], ours.values[1, cell, : values.shape[1]])
    row, column = divmod(int(frame.positions[0]), 8)
    assert ours.places[1, 4].tolist() == [(column + 0.5) / 8, (row + 0.5) / 8]


def test_padding_does_not_matter_and_the_policy_learns(policy: ModuleType, tokenizer: Tokenizer) -> None:
    setup = policy.Setup(
        side=64, demonstrations=6, demonstration_length=3, steps=60, batch=8, width=32, layers=1, heads=2
    )
    images, motions = policy.demonstrations(setup)
    seen = policy.observe(tokenizer, images, TokenBudget(keep=0.25))
    depth = tokenizer.bundle.depth
    with torch.no_grad():
        torch.manual_seed(0)
        fresh = policy.Policy(seen.values.shape[2], depth, setup).eval()
        padded = policy.Observations(
            *(torch.nn.functional.pad(part, (0, 0) * (part.ndim - 2) + (0, 5), value=1) for part in seen[:3]),
            seen.lengths,
        )
        torch.testing.assert_close(fresh(padded), fresh(seen))
        before = torch.nn.functional.mse_loss(fresh(seen), torch.from_numpy(motions))
    trained, seconds = policy.train(setup, seen, torch.from_numpy(motions), depth, 0)
    with torch.no_grad():
        after = torch.nn.functional.mse_loss(trained(seen), torch.from_numpy(motions))
    assert after < 0.8 * before and seconds > 0


def test_a_tiny_run(policy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = [
        "--side",
        "64",
        "--demonstrations",
        "3",
        "--demonstration_length",
        "2",
        "--episodes",
        "3",
        "--length",
        "2",
        "--steps",
        "3",
        "--batch",
        "4",
    ]
    size += ["--width", "16", "--layers", "1", "--heads", "2", "--seeds", "2", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["policy.py", *size])
    policy.main()
    report = json.loads((tmp_path / "policy.json").read_text())
    fixed, ours = report["results"]
    assert (fixed["tokens"], len(fixed["success"])) == (68, 2) and ours["tokens"] < 20
    text = (tmp_path / "policy.md").read_text()
    assert "4.0 times fewer tokens" in text and "over 2 seeds" in text
    assert (tmp_path / "policy.png").stat().st_size > 5000
