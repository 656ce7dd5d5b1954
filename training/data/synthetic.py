"""A small labelled data set drawn by rules, to try training without a download (`maskbit data synthetic`)."""

from __future__ import annotations

import colorsys
import io
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from models.validation import require
from training.data.shard_writer import Picture, new_data_set, write_shards

OVERSAMPLING = 4  # pictures are drawn so much larger and then reduced, which smooths their edges
SAMPLES_PER_SHARD = 2000

Colour = tuple[int, int, int]
Point = tuple[float, float]


class Canvas:
    """Draws in units of the object: (0, 0) is its centre, 1 its half size, y points down."""

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        self.rng = rng
        self.pixels = size * OVERSAMPLING
        self.image = Image.new("RGB", (self.pixels, self.pixels))
        self.draw = ImageDraw.Draw(self.image)
        self.scale = self.pixels * rng.uniform(0.3, 0.42)
        self.centre = self.pixels / 2 + rng.uniform(-0.08, 0.08, 2) * self.pixels

    def colour(self, hue: float, saturation: float, value: float, spread: float = 0.03) -> Colour:
        """A random colour near the given one, all in [0, 1]; `spread` is that of the hue."""
        s, v = np.clip(
            [saturation + self.rng.uniform(-0.08, 0.08), value + self.rng.uniform(-0.07, 0.07)], 0, 1
        )
        r, g, b = colorsys.hsv_to_rgb((hue + self.rng.uniform(-spread, spread)) % 1, float(s), float(v))
        return round(r * 255), round(g * 255), round(b * 255)

    def background(self, top: Colour, bottom: Colour) -> None:
        """Fill everything with a vertical gradient."""
        column = np.linspace(np.array(top), np.array(bottom), self.pixels).round().astype(np.uint8)
        rows = np.broadcast_to(column[:, None], (self.pixels, self.pixels, 3))
        self.image.paste(Image.fromarray(np.ascontiguousarray(rows)))

    def sky(self) -> None:
        """A day's background."""
        self.background(self.colour(0.57, 0.35, 0.93), self.colour(0.55, 0.12, 0.97))

    def place(self, x: float, y: float) -> Point:
        """Pixels of a point in object units."""
        return float(self.centre[0] + x * self.scale), float(self.centre[1] + y * self.scale)

    def polygon(self, points: Sequence[Point], fill: Colour) -> None:
        """A filled polygon."""
        self.draw.polygon([self.place(*point) for point in points], fill=fill)

    def box(self, left: float, top: float, right: float, bottom: float, fill: Colour) -> None:
        """A filled rectangle."""
        self.draw.rectangle([self.place(left, top), self.place(right, bottom)], fill=fill)

    def oval(self, x: float, y: float, half_width: float, half_height: float, fill: Colour) -> None:
        """A filled ellipse around (x, y)."""
        corners = [self.place(x - half_width, y - half_height), self.place(x + half_width, y + half_height)]
        self.draw.ellipse(corners, fill=fill)

    def picture(self) -> Image.Image:
        """The finished picture."""
        return self.image.reduce(OVERSAMPLING)


def ring(count: int, radius: float, turn: float) -> list[Point]:
    """`count` points evenly around the centre, the first at angle `turn` in radians."""
    angles = [turn + 2 * math.pi * k / count for k in range(count)]
    return [(radius * math.cos(a), radius * math.sin(a)) for a in angles]


def balloon(c: Canvas) -> None:
    """A balloon of any warm or cold colour on its string."""
    c.sky()
    body = c.colour(0.93, 0.75, 0.9, spread=0.1)
    c.box(-0.03, 0.5, 0.03, 1.3, c.colour(0.1, 0.2, 0.45))
    c.polygon([(-0.16, 0.72), (0.16, 0.72), (0, 0.45)], body)
    c.oval(0, -0.2, 0.68, 0.8, body)
    c.oval(-0.26, -0.5, 0.14, 0.2, (255, 240, 245))


def boat(c: Canvas) -> None:
    """A sailing boat on the sea."""
    c.sky()
    sea = c.colour(0.6, 0.7, 0.72)
    c.draw.rectangle([(0, c.place(0, 0.72)[1]), (c.pixels, c.pixels)], fill=sea)
    c.polygon([(-0.95, 0.4), (0.95, 0.4), (0.6, 0.9), (-0.6, 0.9)], c.colour(0.06, 0.65, 0.5))
    c.box(-0.05, -0.95, 0.05, 0.4, c.colour(0.08, 0.5, 0.35))
    c.polygon([(0.12, -0.9), (0.12, 0.25), (0.85, 0.25)], (255, 255, 250))
    c.polygon([(-0.12, -0.6), (-0.12, 0.25), (-0.7, 0.25)], c.colour(0.02, 0.7, 0.9))


def fish(c: Canvas) -> None:
    """An orange fish under water, looking left or right."""
    c.background(c.colour(0.5, 0.65, 0.75), c.colour(0.56, 0.8, 0.5))
    side = 1 if c.rng.random() < 0.5 else -1
    body = c.colour(0.07, 0.85, 0.97)
    c.polygon([(-0.4 * side, 0), (-1.05 * side, -0.5), (-1.05 * side, 0.5)], c.colour(0.03, 0.8, 0.9))
    c.polygon([(-0.25 * side, -0.3), (0.3 * side, -0.3), (-0.15 * side, -0.75)], c.colour(0.03, 0.8, 0.9))
    c.oval(0.1 * side, 0, 0.75, 0.48, body)
    c.oval(0.48 * side, -0.12, 0.14, 0.14, (255, 255, 255))
    c.oval(0.52 * side, -0.12, 0.07, 0.07, (20, 20, 30))


def flower(c: Canvas) -> None:
    """A pink blossom with a yellow heart on a meadow."""
    c.background(c.colour(0.28, 0.4, 0.85), c.colour(0.33, 0.6, 0.55))
    petal = c.colour(0.87, 0.5, 0.93, spread=0.06)
    for x, y in ring(int(c.rng.integers(5, 8)), 0.58, c.rng.uniform(0, 2 * math.pi)):
        c.oval(x, y, 0.36, 0.36, petal)
    c.oval(0, 0, 0.34, 0.34, c.colour(0.14, 0.85, 0.98))


def heart(c: Canvas) -> None:
    """A red heart on pale ground."""
    c.background(c.colour(0.08, 0.12, 0.97), c.colour(0.05, 0.18, 0.93))
    red = c.colour(0.98, 0.85, 0.82, spread=0.02)
    angles = np.linspace(0, 2 * math.pi, 60)
    outline = [
        (
            float(math.sin(a) ** 3),
            float(-(13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)) / 16),
        )
        for a in angles
    ]
    c.polygon(outline, red)


def house(c: Canvas) -> None:
    """A house with a red roof on grass."""
    c.sky()
    c.draw.rectangle([(0, c.place(0, 0.78)[1]), (c.pixels, c.pixels)], fill=c.colour(0.3, 0.6, 0.62))
    c.box(0.4, -0.85, 0.62, -0.2, c.colour(0.02, 0.4, 0.45))
    c.box(-0.75, -0.15, 0.75, 0.85, c.colour(0.12, 0.25, 0.95))
    c.polygon([(-1, -0.1), (1, -0.1), (0, -0.95)], c.colour(0.01, 0.75, 0.68))
    c.box(-0.55, 0.1, -0.12, 0.48, c.colour(0.55, 0.45, 0.75))
    c.box(0.15, 0.15, 0.52, 0.85, c.colour(0.07, 0.65, 0.42))


def moon(c: Canvas) -> None:
    """A crescent among stars."""
    c.background(c.colour(0.66, 0.7, 0.2), c.colour(0.68, 0.6, 0.35))
    for x, y in c.rng.uniform(-1.2, 1.2, (9, 2)):
        c.oval(x, y, 0.06, 0.06, (255, 250, 220))
    shadow_x, shadow_y, shadow_radius = 0.42, -0.12, 0.72
    towards = math.atan2(shadow_y, shadow_x)  # both arcs begin in the gap of the crescent
    shadow = [(x + shadow_x, y + shadow_y) for x, y in ring(120, shadow_radius, towards)]
    outer = [p for p in ring(120, 0.85, towards) if math.dist(p, (shadow_x, shadow_y)) > shadow_radius]
    inner = [p for p in shadow if math.hypot(*p) < 0.85]
    c.polygon(outer + inner[::-1], c.colour(0.15, 0.3, 0.98))


def mushroom(c: Canvas) -> None:
    """A toadstool with white dots in the wood."""
    c.background(c.colour(0.3, 0.45, 0.42), c.colour(0.25, 0.55, 0.25))
    c.polygon([(-0.22, 0.0), (0.22, 0.0), (0.34, 0.95), (-0.34, 0.95)], c.colour(0.11, 0.18, 0.95))
    corners = [c.place(-0.95, -0.85), c.place(0.95, 0.9)]
    c.draw.pieslice(corners, 180, 360, fill=c.colour(0.0, 0.85, 0.85))
    for x, y, radius in ((-0.5, -0.25, 0.14), (0.02, -0.5, 0.17), (0.52, -0.2, 0.13)):
        c.oval(x, y, radius, radius, (255, 250, 245))


def sun(c: Canvas) -> None:
    """A sun with rays in a deep blue sky."""
    c.background(c.colour(0.58, 0.7, 0.85), c.colour(0.56, 0.45, 0.95))
    rays, turn = 10, c.rng.uniform(0, 2 * math.pi)
    gold = c.colour(0.12, 0.85, 0.98)
    for tip, left, right in zip(
        ring(rays, 1.1, turn), ring(rays, 0.6, turn - 0.2), ring(rays, 0.6, turn + 0.2), strict=True
    ):
        c.polygon([tip, left, right], gold)
    c.oval(0, 0, 0.58, 0.58, c.colour(0.15, 0.8, 1.0))


def tree(c: Canvas) -> None:
    """A fir on grass."""
    c.sky()
    c.draw.rectangle([(0, c.place(0, 0.8)[1]), (c.pixels, c.pixels)], fill=c.colour(0.24, 0.5, 0.72))
    c.box(-0.13, 0.4, 0.13, 0.95, c.colour(0.07, 0.6, 0.38))
    for number, width in enumerate((0.5, 0.66, 0.82)):
        top = -1.05 + 0.45 * number
        c.polygon([(0, top), (-width, top + 0.7), (width, top + 0.7)], c.colour(0.38, 0.65, 0.42))


DRAWINGS: tuple[Callable[[Canvas], None], ...] = (
    balloon, boat, fish, flower, heart, house, moon, mushroom, sun, tree,
)  # fmt: skip


def draw_picture(class_id: int, size: int, rng: np.random.Generator) -> Image.Image:
    """An RGB picture of `size` x `size` pixels of the class `class_id`; all variety comes from `rng`."""
    canvas = Canvas(size, rng)
    DRAWINGS[class_id](canvas)
    return canvas.picture()


def synthetic_shards(
    out: Path,
    *,
    classes: int = 8,
    per_class: int = 200,
    val_per_class: int = 20,
    image_size: int = 32,
    seed: int = 0,
) -> tuple[str, ...]:
    """Write `train-*.tar`, `val-*.tar` and `classes.json` to `out` and return the class names.

    Raises ConfigError for numbers out of range or when `out` is in use.
    """
    require(2 <= classes <= len(DRAWINGS), f"classes is {classes}; allowed are 2 to {len(DRAWINGS)}")
    require(per_class >= 1, f"per_class is {per_class}; it must be at least 1")
    require(val_per_class >= 1, f"val_per_class is {val_per_class}; it must be at least 1")
    require(image_size >= 8, f"image_size is {image_size}; it must be at least 8 pixels")
    names = tuple(drawing.__name__ for drawing in DRAWINGS[:classes])
    with new_data_set(out, names) as folder:
        for number, (split, count) in enumerate((("train", per_class), ("val", val_per_class))):
            order = np.random.default_rng([seed, number]).permutation(classes * count)
            entries = [(int(index) % classes, [seed, number, int(index)]) for index in order]
            chunks = [entries[i : i + SAMPLES_PER_SHARD] for i in range(0, len(entries), SAMPLES_PER_SHARD)]
            write_shards(folder, split, (_pictures(chunk, image_size) for chunk in chunks))
    return names


def _pictures(entries: list[tuple[int, list[int]]], size: int) -> Iterator[Picture]:
    for label, seeds in entries:
        buffer = io.BytesIO()
        draw_picture(label, size, np.random.default_rng(seeds)).save(buffer, "PNG")
        yield Picture(buffer.getvalue(), "png", label)
