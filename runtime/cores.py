"""How many cores this process may use: the default numbers of threads and of workers."""

from __future__ import annotations

import os
from pathlib import Path

_MAX_THREADS = 8
_GROUPS = Path("sys/fs/cgroup")


def usable_cores(root: Path = Path("/")) -> int:
    """Cores that this process may use: those that it may run on, at most the CPU quota of its container.

    A quota of 1.5 cores is 1: a thread too many is stopped for the rest of every period (100 ms), in mid-frame.

    Args:
        root: Where ``proc`` and ``sys`` are.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota(root)
    return cores if quota is None else max(1, min(cores, int(quota)))


def default_threads() -> int:
    """Threads for the networks: the usable cores, at most 8: more cost more in waiting than they bring."""
    return min(usable_cores(), _MAX_THREADS)


def cpu_quota(root: Path = Path("/")) -> float | None:
    """The CPU time per time that the control groups of this process allow, in cores; None without a limit.

    Args:
        root: Where ``proc`` and ``sys`` are.
    """
    limits: list[list[str]] = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        # Version 2 has one line "0::/path"; version 1 has one line for each controller, as "4:cpu,cpuacct:/path".
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if not controllers:
            limits += [_text(group / "cpu.max").split() for group in _up(root / _GROUPS, path)]
        elif "cpu" in controllers.split(","):
            files = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            for name in dict.fromkeys((controllers, "cpu")):
                for group in _up(root / _GROUPS / name, path):
                    limits.append([_text(group / file).strip() for file in files])
    # Without a limit, the quota is "max" (version 2) or "-1".
    pairs = [pair for pair in limits if len(pair) == 2 and all(text.isdecimal() and int(text) for text in pair)]
    return min((int(quota) / int(period) for quota, period in pairs), default=None)


def _up(base: Path, path: str) -> list[Path]:
    """The folders of a group and of all groups around it.

    In a container, the path is often that on the host, and the folder of the group itself is the base.
    """
    parts = [part for part in path.split("/") if part not in ("", "..")]
    return [base.joinpath(*parts[:count]) for count in range(len(parts), -1, -1)]


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
