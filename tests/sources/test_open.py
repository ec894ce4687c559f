"""Opening a source by its name: what is no source, and settings that are wrong."""

import pytest

from tatok_edge.errors import SourceError
from tatok_edge.sources.camera import find_cameras
from tatok_edge.sources.open import open_source


@pytest.mark.parametrize("spec", ["", "missing.mp4", "missing/clip.mp4"])
def test_missing_file(spec: str) -> None:
    with pytest.raises(SourceError, match="no such file; a source is"):
        open_source(spec)


def test_camera_that_is_not_there() -> None:
    taken = {path for path, _ in find_cameras()}
    assert "/dev/video97" not in taken
    for spec in (97, "97", "/dev/video97"):
        with pytest.raises(SourceError, match=r"camera 97 cannot be opened; video devices here: .*'synthetic'"):
            open_source(spec)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("synthetic:size=3", "unknown setting 'size'; settings are frames, width, height, fps, seed"),
        ("synthetic:width=8", "width must be from 32 to 4096, got 8"),
        ("synthetic:frames=many", "frames must be a number, got 'many'"),
        ("synthetic:fps=0", "fps must be from 1 to 1000, got 0"),
        ("synthetic:fps=nan", "fps must be from 1 to 1000, got nan"),
        ("csi:0,size=3", "unknown setting 'size'"),
        ("csi:x", "sensor must be a whole number, got 'x'"),
        ("csi:0,flip=9", "flip must be a whole number from 0 to 7, got 9"),
        ("csi:0,width=8", "width must be a whole number from 32"),
    ],
)
def test_settings_that_are_wrong(spec: str, says: str) -> None:
    with pytest.raises(SourceError, match=says):
        open_source(spec)


@pytest.mark.parametrize(
    ("options", "says"), [({"on_lag": "skip"}, "on_lag must be"), ({"retry_seconds": -1}, "retry_seconds must be")]
)
def test_options_that_are_wrong(options: dict[str, object], says: str) -> None:
    with pytest.raises(SourceError, match=says):
        open_source("synthetic", **options)  # type: ignore[arg-type]
