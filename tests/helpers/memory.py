"""The memory of a command."""

import subprocess
import sys
from pathlib import Path

CODE = """
import resource, sys
from tatok_edge.cli.main import main
assert main(sys.argv[1:]) == 0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak_memory(*arguments: str, cwd: Path) -> float:
    """Largest resident memory of a ``tatok`` command in a process of its own, in KiB."""
    done = subprocess.run([sys.executable, "-c", CODE, *arguments], cwd=cwd, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])
