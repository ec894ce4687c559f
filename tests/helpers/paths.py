"""Where the repository and the shared data are."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The repository."""
GOLDEN = ROOT / "tests" / "golden"
"""Files whose bytes must not change."""
SHARED = ROOT.parent / "shared" / "data"
"""Pictures and videos beside the repository; tests that need them are skipped where they are missing."""
