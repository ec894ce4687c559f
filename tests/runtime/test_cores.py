"""The cores that a process may use, from the files of control groups as they are written in containers and services."""

import os
from pathlib import Path

import pytest

from tatok_edge.runtime.cores import cpu_quota, default_threads, usable_cores


def system(root: Path, **files: str) -> Path:
    """A root folder with files, whose names have ``__`` for ``/``."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


GROUPS = "sys/fs/cgroup/"
V1 = "11:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n0::/system.slice\n"
FILES: dict[str, tuple[dict[str, str], float | None]] = {
    "version 2, in a container with its own view": (
        {"proc/self/cgroup": "0::/\n", GROUPS + "cpu.max": "150000 100000\n"},
        1.5,
    ),
    "version 2, a service": (
        {
            "proc/self/cgroup": "0::/system.slice/tatok.service\n",
            GROUPS + "system.slice/tatok.service/cpu.max": "200000 100000\n",
        },
        2,
    ),
    "version 2, a limit on the group around it": (
        {
            "proc/self/cgroup": "0::/robot.slice/tatok.service\n",
            GROUPS + "robot.slice/cpu.max": "50000 100000\n",
            GROUPS + "robot.slice/tatok.service/cpu.max": "max 100000\n",
        },
        0.5,
    ),
    "version 2, the path is that on the host": (
        {"proc/self/cgroup": "0::/kubepods/pod7/c\n", GROUPS + "cpu.max": "300000 100000\n"},
        3,
    ),
    "version 2, no limit": ({"proc/self/cgroup": "0::/\n", GROUPS + "cpu.max": "max 100000\n"}, None),
    "version 1, in a container": (
        {
            "proc/self/cgroup": V1,
            GROUPS + "cpu,cpuacct/cpu.cfs_quota_us": "250000\n",
            GROUPS + "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        },
        2.5,
    ),
    "version 1, on the host, under the short name": (
        {
            "proc/self/cgroup": "4:cpu:/a/b\n",
            GROUPS + "cpu/a/b/cpu.cfs_quota_us": "10000\n",
            GROUPS + "cpu/a/b/cpu.cfs_period_us": "50000\n",
        },
        0.2,
    ),
    "version 1, no limit": (
        {
            "proc/self/cgroup": V1,
            GROUPS + "cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
            GROUPS + "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        },
        None,
    ),
    "a period of 0": ({"proc/self/cgroup": "0::/\n", GROUPS + "cpu.max": "1000 0\n"}, None),
    "other text": ({"proc/self/cgroup": "0\n::\nhello\n", GROUPS + "cpu.max": "a b c\n"}, None),
    "names that lead out": (
        {"proc/self/cgroup": "0::/../../../etc\n", "etc/cpu.max": "1 100000\n", GROUPS + "cpu.max": "max 100000"},
        None,
    ),
    "no files": ({}, None),
}


@pytest.mark.parametrize(("files", "quota"), FILES.values(), ids=FILES)
def test_quota(files: dict[str, str], quota: float | None, tmp_path: Path) -> None:
    assert cpu_quota(system(tmp_path, **files)) == quota


def test_cores_are_the_fewest_that_any_limit_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    for quota, cores in [("50000", 1), ("150000", 1), ("200000", 2), ("900000", 6), ("max", 6)]:
        files = {"proc/self/cgroup": "0::/\n", GROUPS + "cpu.max": f"{quota} 100000\n"}
        assert usable_cores(system(tmp_path, **files)) == cores


def test_threads_are_at_most_eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.setattr("tatok_edge.runtime.cores.cpu_quota", lambda _: None)
    assert default_threads() == 8
