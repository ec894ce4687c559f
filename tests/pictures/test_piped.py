"""Pictures through a pipe: Y4M and RGB bytes."""

import io

import numpy as np
import pytest
from helpers.cli_runs import psnr

from tatok_edge.errors import InputError
from tatok_edge.pictures.piped import RawOutput, Y4mOutput
from tatok_edge.sources.open import open_source
from tatok_edge.sources.synthetic import Scene, render


@pytest.mark.parametrize(("width", "height", "fps"), [(64, 48, 25), (71, 45, 29.97)])
def test_y4m_is_read_back(width: int, height: int, fps: float, tmp_path_factory: pytest.TempPathFactory) -> None:
    images = [render(Scene(width=width, height=height), number) for number in range(3)]
    stream = io.BytesIO()
    with Y4mOutput(fps, stream) as output:
        for number, image in enumerate(images):
            output.write(image, number)
    path = tmp_path_factory.mktemp("pipe") / "clip.y4m"
    path.write_bytes(stream.getvalue())
    with open_source(path) as source:
        frames = list(source)
    assert source.fps == pytest.approx(fps, rel=1e-3)
    assert [frame.timestamp_us for frame in frames] == [round(number * 1e6 / source.fps) for number in range(3)]
    for frame, image in zip(frames, images, strict=True):
        assert frame.image.shape == (height, width, 3)
        assert psnr(frame.image, image) > 28


def test_raw_is_the_pixels_and_nothing_else() -> None:
    image = render(Scene(width=64, height=48), 0)
    stream = io.BytesIO()
    with RawOutput(stream) as output:
        output.write(image, 0)
        output.write(image[:, ::-1], 1)
    assert np.array_equal(np.frombuffer(stream.getvalue(), np.uint8).reshape(2, 48, 64, 3), [image, image[:, ::-1]])


def test_another_size_is_refused() -> None:
    output = RawOutput(io.BytesIO())
    output.write(np.zeros((48, 64, 3), np.uint8), 0)
    with pytest.raises(InputError, match="standard output: frame 1 is 32x48 but the video is 64x48"):
        output.write(np.zeros((48, 32, 3), np.uint8), 1)
