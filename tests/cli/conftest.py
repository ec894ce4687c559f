"""Fixtures of the tests of the ``tatok`` command."""

from pathlib import Path

import pytest
from helpers.cli_runs import SMALL, Result, Run

from tatok_edge.cli.main import main


@pytest.fixture
def tatok(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs ``tatok`` in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Result:
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as error:
            code = int(error.code or 0)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A token file of the small rendered clip; do not write to it."""
    path = tmp_path_factory.mktemp("small") / "small.ttk"
    assert main(["encode", SMALL, "-o", str(path), "--keep", "0.35"]) == 0
    return path
