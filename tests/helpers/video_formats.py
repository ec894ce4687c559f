"""Videos in many formats: made by ffmpeg, counted by ffprobe, and listed in docs/videos.md.

``python tests/helpers/video_formats.py`` writes the list into the page.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers.live_sources import needs
from helpers.paths import ROOT

PAGE = ROOT / "docs" / "videos.md"
START, END = "<!-- formats -->\n", "<!-- /formats -->\n"
FRAMES = 8
SOUND = ["-f", "lavfi", "-i", "sine=duration=3"]


@dataclass(frozen=True)
class Format:
    """A container with a codec and a pixel format."""

    ending: str
    encoder: str
    pixels: str
    also: str = ""
    """What is special about the video, for the page."""
    options: str = ""
    """Further options of ffmpeg."""
    muxer: str = ""
    size: str = "64x48"
    sound: bool = False


_FEWER = "-vf select=not(mod(n\\,3))+lt(n\\,3) -fps_mode vfr"
FORMATS = [
    Format("mp4", "libx264", "yuv420p", "B-frames, sound longer than the video", "-bf 2", sound=True),
    Format("mp4", "libx264", "yuv422p10le"),
    Format("mp4", "libx264", "yuv444p", "full range", "-color_range pc"),
    Format("mp4", "libx264", "gray"),
    Format("mp4", "libx264", "yuv420p", "interlaced", "-vf tinterlace=4 -flags +ilme+ildct"),
    Format("mp4", "libx264", "yuv420p", "fragments", "-movflags frag_keyframe+empty_moov -g 4"),
    Format("mp4", "libx264", "yuv420p", "variable rate", _FEWER),
    Format("mp4", "libx265", "yuv420p", "B-frames", "-x265-params log-level=error"),
    Format("mp4", "libx265", "yuv420p10le", options="-x265-params log-level=error"),
    Format("mp4", "libx265", "yuv444p12le", options="-x265-params log-level=error"),
    Format("mp4", "libaom-av1", "yuv420p", options="-cpu-used 8"),
    Format("mp4", "libaom-av1", "yuv420p10le", options="-cpu-used 8"),
    Format("mp4", "libvpx-vp9", "yuv420p", options="-cpu-used 8"),
    Format("mp4", "mpeg4", "yuv420p", "B-frames", "-bf 2"),
    Format("mp4", "mjpeg", "yuvj420p"),
    Format("mov", "prores_ks", "yuv422p10le"),
    Format("mov", "prores_ks", "yuva444p10le", "alpha", "-profile:v 4444"),
    Format("mov", "qtrle", "rgb24"),
    Format("mov", "png", "rgba", "alpha"),
    Format("mov", "rawvideo", "uyvy422"),
    Format("mkv", "libx264", "yuv420p", "variable rate, sound", _FEWER, sound=True),
    Format("mkv", "ffv1", "gray16le"),
    Format("mkv", "ffv1", "gbrp12le"),
    Format("mkv", "ffv1", "yuv422p"),
    Format("mkv", "libaom-av1", "yuv420p", options="-cpu-used 8"),
    Format("webm", "libvpx", "yuva420p", "alpha", "-auto-alt-ref 0 -cpu-used 8"),
    Format("webm", "libvpx-vp9", "yuv444p10le", options="-cpu-used 8"),
    Format("avi", "mpeg4", "yuv420p", "packed B-frames", "-bf 2"),
    Format("avi", "mjpeg", "yuvj422p"),
    Format("avi", "huffyuv", "rgb24"),
    Format("avi", "rawvideo", "yuyv422"),
    Format("avi", "rawvideo", "bgr24"),
    Format("ts", "libx264", "yuv420p", "B-frames, sound", "-bf 2", sound=True),
    Format("ts", "mpeg2video", "yuv420p", "interlaced", "-vf tinterlace=4 -flags +ilme+ildct"),
    Format("ts", "libx265", "yuv420p", options="-x265-params log-level=error"),
    Format("mpg", "mpeg1video", "yuv420p", "B-frames", "-bf 2"),
    Format("mpg", "mpeg2video", "yuv422p"),
    Format("flv", "flv", "yuv420p"),
    Format("flv", "libx264", "yuv420p"),
    Format("3gp", "h263", "yuv420p", size="176x144"),
    Format("ogv", "libtheora", "yuv420p"),
    Format("wmv", "wmv2", "yuv420p"),
    Format("mxf", "mpeg2video", "yuv420p"),
    Format("nut", "rawvideo", "nv12"),
    Format("y4m", "wrapped_avframe", "yuv420p"),
    Format("y4m", "wrapped_avframe", "yuv444p"),
    Format("ivf", "libvpx-vp9", "yuv420p", options="-cpu-used 8"),
    Format("gif", "gif", "pal8"),
    Format("h264", "libx264", "yuv420p", "no container, no times"),
    Format("hevc", "libx265", "yuv420p", "no container, no times", "-x265-params log-level=error"),
    Format("mjpeg", "mjpeg", "yuvj444p", "no container, no times"),
]


@dataclass(frozen=True)
class Counted:
    """What ffprobe says about a video."""

    codec: str
    pixels: str
    times_us: list[int | None]
    """Time of each frame from the first one; None where ffprobe knows none."""
    rate: float


def make(chosen: Format, folder: Path) -> Path:
    """Makes the video; the test is skipped where this ffmpeg has no such encoder."""
    needs(shutil.which("ffmpeg") is not None and shutil.which("ffprobe") is not None, "apt install ffmpeg")
    path = folder / f"clip.{chosen.ending}"
    # Soft edges, because versions of FFmpeg place the colours between the pixels differently.
    picture = f"testsrc2=size={chosen.size}:rate=25:duration={FRAMES / 25},gblur=sigma=4"
    video = ["-f", "lavfi", "-i", picture]
    command = ["ffmpeg", "-v", "error", "-y", *video, *(SOUND if chosen.sound else []), "-pix_fmt", chosen.pixels]
    command += ["-c:v", chosen.encoder, *chosen.options.split(), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    needs("Unknown encoder" not in done.stderr, f"this ffmpeg has no {chosen.encoder}")
    assert done.returncode == 0, done.stderr
    return path


def count(path: Path) -> Counted:
    """Counts frames and times with ffprobe."""
    entries = "frame=best_effort_timestamp:stream=codec_name,pix_fmt,time_base,r_frame_rate"
    command = ["ffprobe", "-v", "error", "-select_streams", "v:0", "-show_entries", entries, "-of", "json", str(path)]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    stream = found["streams"][0]
    base = Fraction(stream["time_base"])
    ticks = [frame.get("best_effort_timestamp") for frame in found["frames"]]
    times = [None if tick is None else round((tick - ticks[0]) * base * 1_000_000) for tick in ticks]
    return Counted(stream["codec_name"], stream["pix_fmt"], times, float(Fraction(stream["r_frame_rate"])))


def table() -> str:
    """The list of formats, for the page."""
    rows = ["| container | codec (encoder) | pixel format | with |", "|---|---|---|---|"]
    for one in FORMATS:
        rows.append(f"| `.{one.ending}` | {one.encoder} | `{one.pixels}` | {one.also} |")
    return "\n".join(rows) + "\n"


def listed() -> str:
    """The list that is in the page."""
    return PAGE.read_text().split(START)[1].split(END)[0]


if __name__ == "__main__":
    before, rest = PAGE.read_text().split(START)
    PAGE.write_text(before + START + table() + END + rest.split(END)[1])
