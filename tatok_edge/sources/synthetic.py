"""The rendered camera clip: a static security camera on a yard, with moving objects.

It replaces a camera in ``make demo``, tests and examples. The scene has the contents of such pictures: smooth gradients
(sky, glass, falling light), regular structure (bricks, lane marks), fine irregular texture (asphalt, leaves), moving
textured objects with shadows, a running clock and sensor noise. A frame depends on its number and on the settings of
the clip only, so frames can be rendered in any order and are always the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from tatok_edge.geometry import Image

NOISE_SIGMA = 1.6
"""Standard deviation of the sensor noise, in grey levels: that of a small sensor by day."""
SUPERSAMPLE = 2
"""Factor by which the background and the sprites are drawn larger, then averaged down to smooth their edges."""

LOOP_FRAMES = 60
"""Largest number of frames of :func:`render_loop`."""
LOOP_BYTES = 64 << 20
"""Largest size of the frames of :func:`render_loop`, in bytes."""

Float = NDArray[np.float32]
Color = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Scene:
    """Settings of a rendered clip."""

    frames: int = 150
    """Length of the clip in frames."""
    width: int = 640
    """Width in pixels."""
    height: int = 480
    """Height in pixels."""
    fps: float = 30.0
    """Frames per second; sets how far objects move from one frame to the next."""
    seed: int = 0
    """Seed of the bricks, asphalt and noise."""


def render(scene: Scene, index: int) -> Image:
    """Renders frame ``index`` of ``scene``.

    Args:
        scene: The clip's settings.
        index: Frame number from 0; may lie beyond ``scene.frames``.

    Returns:
        RGB image, uint8 (height, width, 3).
    """
    width, height = scene.width, scene.height
    seconds = index / scene.fps
    image = _background(width, height, scene.seed).copy()
    _draw_car(image, seconds, scene.seed)
    _draw_person(image, seconds)
    _draw_cart(image, seconds, scene.seed)
    _draw_clock(image, seconds)
    noise = np.random.default_rng((scene.seed, index)).standard_normal(image.shape, dtype=np.float32)
    return _to_bytes(image + noise * np.float32(NOISE_SIGMA))


def render_loop(scene: Scene) -> list[Image]:
    """Renders the first frames of ``scene``, to be shown forwards and backwards in turn, as a live camera.

    Rendering is slower than real time, so a live clip is rendered beforehand. Moving objects turn back at the ends of
    the loop, and the noise repeats from one turn to the next; neighbouring frames have different noise.

    Returns:
        RGB images, uint8 (height, width, 3): at least two, and otherwise at most ``LOOP_FRAMES`` and ``LOOP_BYTES``.
    """
    fitting = LOOP_BYTES // (3 * scene.width * scene.height)
    return [render(scene, index) for index in range(max(2, min(LOOP_FRAMES, scene.frames, fitting)))]


def _to_bytes(values: Float) -> Image:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _fractal(rng: np.random.Generator, height: int, width: int, coarsest: int) -> Float:
    """Random texture, float32 (height, width), zero mean, unit deviation, features up to ``coarsest`` pixels large."""
    total = np.zeros((height, width), np.float32)
    size, weight = coarsest, 1.0
    while size >= 1:
        grid = rng.standard_normal((height // size + 3, width // size + 3), dtype=np.float32)
        layer = cv2.resize(grid, (grid.shape[1] * size, grid.shape[0] * size), interpolation=cv2.INTER_CUBIC)
        total += np.float32(weight) * layer[:height, :width]
        size, weight = size // 2, weight * 0.75
    return np.asarray((total - total.mean()) / max(float(total.std()), 1e-6), np.float32)


def _rect(image: Float, box: tuple[float, float, float, float], color: Color) -> None:
    """Fills a box given as shares (left, top, right, bottom) of the image."""
    height, width = image.shape[:2]
    left, top, right, bottom = box
    image[round(top * height) : round(bottom * height), round(left * width) : round(right * width)] = color


@lru_cache(maxsize=2)
def _background(width: int, height: int, seed: int) -> Image:
    """The still part of the scene, uint8 RGB (height, width, 3)."""
    rng = np.random.default_rng((seed, 1 << 20))
    h, w = height * SUPERSAMPLE, width * SUPERSAMPLE
    y, x = np.mgrid[0:h, 0:w].astype(np.float32)
    sky_end, wall_end, walk_end = round(0.16 * h), round(0.50 * h), round(0.57 * h)

    image = np.empty((h, w, 3), np.float32)
    dusk = (y / max(sky_end, 1))[..., None]
    image[:] = np.array([150, 182, 218], np.float32) + dusk * np.array([62, 42, 18], np.float32)
    image += 5 * _fractal(rng, h, w, max(h // 4, 1))[..., None]

    _paint_wall(image, rng, sky_end, wall_end)

    walk = 148 + 5 * _fractal(rng, h, w, 8)
    walk -= 24 * ((x % (w / 9)) < SUPERSAMPLE)
    image[wall_end:walk_end] = (walk[..., None] * np.array([1.0, 0.98, 0.94], np.float32))[wall_end:walk_end]
    image[walk_end - round(0.012 * h) : walk_end] = (92, 92, 90)

    depth = np.clip((y - walk_end) / (h - walk_end), 0, 1)
    asphalt = 74 + 22 * depth + 6 * _fractal(rng, h, w, max(h // 8, 1)) + (3 + 6 * depth) * _fractal(rng, h, w, 2)
    image[walk_end:] = (asphalt[..., None] * np.array([0.98, 1.0, 1.04], np.float32))[walk_end:]
    for share in (0.08, 0.30, 0.52, 0.74, 0.96):
        top, bottom = 0.5 + (share - 0.5) * 0.8, 0.5 + (share - 0.5) * 1.7
        corners = np.array([[top - 0.004, 0.60], [top + 0.004, 0.60], [bottom + 0.009, 0.80], [bottom - 0.009, 0.80]])
        cv2.fillPoly(image, [np.rint(corners * [w, h]).astype(np.int32)], (206, 204, 190))

    _paint_tree(image, rng)
    light = 1.06 - 0.22 * (x / w - 0.35) ** 2 - 0.20 * (y / h - 0.45) ** 2
    return _to_bytes(np.asarray(cv2.resize(image * light[..., None], (width, height), interpolation=cv2.INTER_AREA)))


def _paint_wall(image: Float, rng: np.random.Generator, top: int, bottom: int) -> None:
    """A brick house front with windows and a door between two rows."""
    h, w = image.shape[:2]
    y, x = np.mgrid[0:h, 0:w]
    brick_h = max(h // 44, 3 * SUPERSAMPLE)
    brick_w = 5 * brick_h // 2
    row = y // brick_h
    shifted = x + (row % 2) * (brick_w // 2)
    shade = rng.normal(0, 9, (h // brick_h + 2, w // brick_w + 3)).astype(np.float32)[row, shifted // brick_w]
    wall = np.array([146, 92, 74], np.float32) + shade[..., None] * np.array([1.0, 0.8, 0.7], np.float32)
    mortar = (y % brick_h < SUPERSAMPLE) | (shifted % brick_w < SUPERSAMPLE)
    wall[mortar] = (168, 158, 146)
    wall += 4 * _fractal(rng, h, w, 4)[..., None]
    image[top:bottom] = wall[top:bottom]
    for left in (0.07, 0.27, 0.66):
        _rect(image, (left, 0.22, left + 0.13, 0.40), (226, 222, 212))
        _rect(image, (left + 0.008, 0.23, left + 0.122, 0.39), (64, 82, 100))
        pane = image[round(0.23 * h) : round(0.39 * h), round((left + 0.008) * w) : round((left + 0.122) * w)]
        slope = np.linspace(60, 0, pane.shape[0], dtype=np.float32)[:, None] + np.linspace(
            0, 34, pane.shape[1], dtype=np.float32
        )
        pane += slope[..., None]
        _rect(image, (left + 0.062, 0.22, left + 0.068, 0.40), (226, 222, 212))
    _rect(image, (0.47, 0.26, 0.58, 0.50), (70, 56, 44))
    _rect(image, (0.478, 0.275, 0.572, 0.50), (52, 84, 72))
    cv2.circle(image, (round(0.56 * w), round(0.39 * h)), max(round(0.004 * w), 1), (210, 190, 110), -1, cv2.LINE_AA)
    _rect(image, (0.0, 0.155, 1.0, 0.178), (96, 92, 88))


def _paint_tree(image: Float, rng: np.random.Generator) -> None:
    """A tree on the right: fine, irregular texture that does not move."""
    h, w = image.shape[:2]
    _rect(image, (0.885, 0.30, 0.915, 0.57), (72, 56, 42))
    leaves = round(900 * min(1.0, w / 640) + 150)
    angle, radius = rng.uniform(0, 2 * np.pi, leaves), np.sqrt(rng.uniform(0, 1, leaves))
    cx, cy = (0.90 + 0.10 * radius * np.cos(angle)) * w, (0.22 + 0.17 * radius * np.sin(angle)) * h
    green = rng.uniform(0, 1, leaves)
    for px, py, g in zip(cx, cy, green, strict=True):
        axes = (round(0.009 * w), round(0.005 * w))
        color = (38 + 60 * g, 70 + 76 * g, 34 + 30 * g)
        cv2.ellipse(image, (round(px), round(py)), axes, float(360 * g), 0, 360, color, -1, cv2.LINE_AA)


@lru_cache(maxsize=4)
def _car_sprite(width: int, seed: int) -> Float:
    """A side view of a van, float32 RGBA (height, width, 4) with alpha 0..1."""
    w = width * SUPERSAMPLE
    h = w // 2
    rng = np.random.default_rng((seed, 1 << 21))
    sprite = np.zeros((h, w, 4), np.float32)
    body = np.array([[0.02, 0.78], [0.02, 0.16], [0.08, 0.08], [0.66, 0.08], [0.84, 0.40], [0.98, 0.48], [0.98, 0.78]])
    cv2.fillPoly(sprite, [np.rint(body * [w, h]).astype(np.int32)], (196, 60, 44, 1.0))
    sprite[..., :3] *= np.linspace(1.16, 0.72, h, dtype=np.float32)[:, None, None]
    _rect(sprite, (0.05, 0.42, 0.60, 0.47), (240, 236, 220, 1.0))  # type: ignore[arg-type]
    stripes = rng.uniform(0, 1, 30) > 0.5
    for number in np.flatnonzero(stripes):
        left = 0.10 + 0.014 * float(number)
        _rect(sprite, (left, 0.24, left + 0.008, 0.36), (250, 244, 226, 1.0))  # type: ignore[arg-type]
    glass = np.array([[0.64, 0.16], [0.68, 0.16], [0.80, 0.40], [0.64, 0.40]])
    cv2.fillPoly(sprite, [np.rint(glass * [w, h]).astype(np.int32)], (58, 78, 96, 1.0))
    for cx in (0.20, 0.80):
        for radius, color in ((0.085, (26, 26, 28, 1.0)), (0.042, (150, 152, 156, 1.0))):
            cv2.circle(sprite, (round(cx * w), round(0.80 * h)), round(radius * w), color, -1, cv2.LINE_AA)
    sprite[..., :3] += 4 * _fractal(rng, h, w, 4)[..., None]
    return np.asarray(cv2.resize(sprite, (width, width // 2), interpolation=cv2.INTER_AREA), np.float32)


@lru_cache(maxsize=4)
def _cart_sprite(width: int, seed: int) -> Float:
    """A small delivery robot with a checked side, float32 RGBA (width, width, 4)."""
    side = width * SUPERSAMPLE
    sprite = np.zeros((side, side, 4), np.float32)
    _rect(sprite, (0.08, 0.14, 0.92, 0.84), (232, 232, 236, 1.0))  # type: ignore[arg-type]
    checks = np.random.default_rng((seed, 1 << 22)).integers(0, 2, (4, 7))
    for (row, column), dark in np.ndenumerate(checks):
        left, top = 0.15 + 0.10 * column, 0.30 + 0.10 * row
        color = (34, 92, 150, 1.0) if dark else (240, 196, 60, 1.0)
        _rect(sprite, (left, top, left + 0.10, top + 0.10), color)  # type: ignore[arg-type]
    for cx in (0.22, 0.78):
        cv2.circle(
            sprite, (round(cx * side), round(0.86 * side)), round(0.12 * side), (30, 30, 32, 1.0), -1, cv2.LINE_AA
        )
    return np.asarray(cv2.resize(sprite, (width, width), interpolation=cv2.INTER_AREA), np.float32)


def _blend(image: Image, sprite: Float, left: float, top: float, *, mirror: bool = False) -> None:
    """Blends an RGBA sprite into the image at a position in fractions of a pixel; parts outside are cut off."""
    height, width = image.shape[:2]
    x0, y0 = int(np.floor(left)), int(np.floor(top))
    source = sprite[:, ::-1] if mirror else sprite
    size = (sprite.shape[1] + 1, sprite.shape[0] + 1)
    shift = np.array([[1, 0, left - x0], [0, 1, top - y0]], np.float32)
    # Colours are multiplied by alpha first, so that the edge takes no colour from the empty pixels around the sprite.
    weighted = np.dstack([source[..., :3] * source[..., 3:], source[..., 3]])
    moved = cv2.warpAffine(weighted, shift, size, flags=cv2.INTER_LINEAR)
    xa, xb, ya, yb = max(x0, 0), min(x0 + size[0], width), max(y0, 0), min(y0 + size[1], height)
    if xa >= xb or ya >= yb:
        return
    part = moved[ya - y0 : yb - y0, xa - x0 : xb - x0]
    area = image[ya:yb, xa:xb]
    area[:] = _to_bytes(area * (1 - part[..., 3:]) + part[..., :3])


def _shadow(image: Image, center: tuple[float, float], axes: tuple[float, float]) -> None:
    """Darkens an elliptic patch of ground with soft edges."""
    height, width = image.shape[:2]
    xa, xb = max(int(center[0] - axes[0]), 0), min(int(center[0] + axes[0]) + 1, width)
    ya, yb = max(int(center[1] - axes[1]), 0), min(int(center[1] + axes[1]) + 1, height)
    if xa >= xb or ya >= yb:
        return
    y, x = np.mgrid[ya:yb, xa:xb].astype(np.float32)
    distance = ((x - center[0]) / axes[0]) ** 2 + ((y - center[1]) / axes[1]) ** 2
    area = image[ya:yb, xa:xb]
    area[:] = _to_bytes(area * (1 - 0.55 * np.clip(1 - distance, 0, 1))[..., None])


def _draw_car(image: Image, seconds: float, seed: int) -> None:
    """A van that crosses the yard every nine seconds."""
    height, width = image.shape[:2]
    size = max(round(0.34 * width), 8)
    left = (((seconds + 1.5) / 9) % 1) * 1.5 * width - 0.36 * width
    top = 0.555 * height
    _shadow(image, (left + size / 2, top + 0.47 * size), (0.56 * size, 0.07 * size))
    _blend(image, _car_sprite(size, seed), left, top)


def _draw_person(image: Image, seconds: float) -> None:
    """A person in a striped shirt who walks the other way, swinging arms and legs."""
    height, width = image.shape[:2]
    tall = 0.30 * height
    x = width * (1.08 - ((seconds + 3) / 13 % 1) * 1.2)
    foot = 0.90 * height
    swing = float(np.sin(seconds * 5.2))
    hip, neck = foot - 0.47 * tall - 0.01 * tall * abs(swing), foot - 0.83 * tall - 0.01 * tall * abs(swing)
    _shadow(image, (x, foot), (0.20 * tall, 0.05 * tall))
    thick = max(round(0.075 * tall), 1)

    def limb(start: tuple[float, float], end: tuple[float, float], color: Color, thickness: int) -> None:
        # Sixteenths of a pixel, so that slow motion does not jump.
        (ax, ay), (bx, by) = (tuple(round(v * 16) for v in point) for point in (start, end))
        cv2.line(image, (ax, ay), (bx, by), color, thickness, cv2.LINE_AA, 4)

    limb((x, hip), (x + 0.17 * tall * swing, foot), (48, 54, 78), thick)
    limb((x, hip), (x - 0.17 * tall * swing, foot), (40, 46, 68), thick)
    limb((x, neck + 0.03 * tall), (x - 0.13 * tall * swing, hip), (178, 128, 60), max(thick * 2 // 3, 1))
    stripes = 7
    for stripe in range(stripes):
        color = (224, 178, 84) if stripe % 2 else (60, 74, 128)
        top, bottom = (neck + (hip - neck) * share / stripes for share in (stripe, stripe + 1))
        corners = np.array([[-0.075, top], [0.075, top], [0.075, bottom], [-0.075, bottom]]) * [tall, 1] + [x, 0]
        cv2.fillConvexPoly(image, np.rint(corners * 16).astype(np.int32), color, cv2.LINE_AA, 4)
    limb((x, neck + 0.03 * tall), (x + 0.13 * tall * swing, hip), (206, 158, 74), max(thick * 2 // 3, 1))
    head = (round(x * 16), round((neck - 0.075 * tall) * 16))
    cv2.circle(image, head, round(0.068 * tall * 16), (206, 160, 132), -1, cv2.LINE_AA, 4)
    cv2.ellipse(image, head, (round(0.07 * tall * 16),) * 2, 0, 180, 360, (62, 44, 32), -1, cv2.LINE_AA, 4)


def _draw_cart(image: Image, seconds: float, seed: int) -> None:
    """A small robot that drives an ellipse in front."""
    height, width = image.shape[:2]
    size = max(round(0.085 * width), 8)
    angle = 2 * np.pi * seconds / 12
    x = width * (0.30 + 0.20 * float(np.cos(angle)))
    y = height * (0.86 + 0.055 * float(np.sin(angle)))
    _shadow(image, (x, y + 0.46 * size), (0.62 * size, 0.12 * size))
    _blend(image, _cart_sprite(size, seed), x - size / 2, y - size / 2, mirror=float(np.sin(angle)) > 0)


def _draw_clock(image: Image, seconds: float) -> None:
    """The camera's name and running time, burnt into the picture."""
    height, width = image.shape[:2]
    scale = max(height / 960, 0.25)
    text = f"CAM 1  {int(seconds // 3600):02d}:{int(seconds // 60) % 60:02d}:{seconds % 60:04.1f}"
    origin = (round(0.02 * width), round(0.055 * height))
    for offset, color in ((1, (20.0, 20.0, 20.0)), (0, (240.0, 240.0, 240.0))):
        place = (origin[0] + offset, origin[1] + offset)
        cv2.putText(image, text, place, cv2.FONT_HERSHEY_SIMPLEX, scale, color, 1, cv2.LINE_AA)
