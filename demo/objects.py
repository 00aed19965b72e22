"""The demo's objects: small pictures with a mask, each drawn in its own box and standing on the box's lower edge.

No drawing function gets the class that it draws for. Two classes that look alike, such as bumper boat and bumper car,
come from the same function and the same random numbers, so that only the surroundings distinguish them.
"""
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from VOC12.labels import CLASS_NAMES

Points = Sequence[tuple[float, float]]  # fractions of the box
Texture = np.ndarray  # a colour (3,), or a picture (h, w, 3)
SUPERSAMPLING = 3  # scenes are drawn this many times larger, then averaged down: smooth edges


@dataclass
class Stamp:
    """An object's picture: `rgb` uint8 (h, w, 3) and `mask` bool (h, w), in supersampled pixels."""
    rgb: np.ndarray
    mask: np.ndarray


def smooth_noise(rng: np.random.Generator, height: int, width: int, cell_y: float,
                 cell_x: float | None = None) -> np.ndarray:
    """Random hills about `cell` pixels wide: float32 (height, width) in [-1, 1]."""
    rows = max(2, int(round(height / cell_y)) + 1)
    columns = max(2, int(round(width / (cell_x or cell_y))) + 1)
    coarse = Image.fromarray(rng.uniform(-1, 1, (rows, columns)).astype(np.float32))
    return np.clip(np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)), -1, 1)


def vary(rng: np.random.Generator, colour: Sequence[int], amount: int = 16) -> np.ndarray:
    """A colour near `colour`: int array (3,) in 0..255."""
    return np.clip(np.asarray(colour) + rng.integers(-amount, amount + 1, 3), 0, 255)


class Brush:
    """Draws textured shapes into a box. Positions are fractions of the box, (0, 0) its upper left corner."""

    def __init__(self, rng: np.random.Generator, width: float, height: float, flip: bool | None = None):
        self.rng, self.width, self.height = rng, max(3, int(round(width))), max(3, int(round(height)))
        self.rgb = np.zeros((self.height, self.width, 3), dtype=np.float32)
        self.mask = np.zeros((self.height, self.width), dtype=bool)
        self.y, self.x = np.mgrid[:self.height, :self.width].astype(np.float32)
        self.flip = rng.random() < 0.5 if flip is None else flip

    def thin(self, fraction: float) -> int:
        """Line width in supersampled pixels: `fraction` of the box's width, but two pixels of the picture at least."""
        return max(2 * SUPERSAMPLING, int(round(fraction * self.width)))

    def _scale(self, points):
        return [((1 - x if self.flip else x) * (self.width - 1), y * (self.height - 1)) for x, y in points]

    def _paint(self, draw_shape, texture):
        shape = Image.new("1", (self.width, self.height))
        draw_shape(ImageDraw.Draw(shape))
        where = np.asarray(shape)
        self.mask |= where
        texture = np.broadcast_to(np.asarray(texture, dtype=np.float32), self.rgb.shape)
        self.rgb[where] = texture[where]

    def polygon(self, points: Points, texture: Texture) -> None:
        """A filled polygon."""
        self._paint(lambda draw: draw.polygon(self._scale(points), fill=1), texture)

    def box(self, left: float, top: float, right: float, bottom: float, texture: Texture, corner: float = 0.0) -> None:
        """A filled rectangle. Its corners have a radius of `corner` box heights."""
        (x0, y0), (x1, y1) = self._scale([(left, top), (right, bottom)])
        self._paint(lambda draw: draw.rounded_rectangle((min(x0, x1), y0, max(x0, x1), y1),
                                                        corner * self.height, fill=1), texture)

    def ellipse(self, left: float, top: float, right: float, bottom: float, texture: Texture) -> None:
        """A filled ellipse in that rectangle."""
        (x0, y0), (x1, y1) = self._scale([(left, top), (right, bottom)])
        self._paint(lambda draw: draw.ellipse((min(x0, x1), y0, max(x0, x1), y1), fill=1), texture)

    def ring(self, x: float, y: float, radius: float, line: int, texture: Texture) -> None:
        """A circle's outline `line` pixels wide; its radius is a fraction of the box's width."""
        (x, y), = self._scale([(x, y)])
        r = radius * self.width
        self._paint(lambda draw: draw.ellipse((x - r, y - r, x + r, y + r), outline=1, width=line), texture)

    def lines(self, points: Points, line: int, texture: Texture) -> None:
        """A line through the points, `line` pixels wide."""
        self._paint(lambda draw: draw.line(self._scale(points), fill=1, width=line, joint="curve"), texture)

    def stripes(self, period: float, angle: float, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Stripes of two colours: float32 (h, w, 3). Period in box widths, angle in radians, 0 is upright stripes."""
        phase = (self.x * np.cos(angle) + self.y * np.sin(angle)) / max(period * self.width, 2 * SUPERSAMPLING)
        return np.where(((phase + 0.1) % 1 < 0.5)[..., None], first, second).astype(np.float32)

    def checks(self, period: float, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """A chessboard of two colours: float32 (h, w, 3). Period in box widths."""
        period = max(period * self.width, 3 * SUPERSAMPLING)
        odd = (np.floor(2 * self.x / period) + np.floor(2 * self.y / period)) % 2 == 1
        return np.where(odd[..., None], first, second).astype(np.float32)

    def patches(self, cell: float, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Random patches of two colours: float32 (h, w, 3). Cell in box widths."""
        cell = max(cell * self.width, 2 * SUPERSAMPLING)
        dark = smooth_noise(self.rng, self.height, self.width, cell) > 0.12
        return np.where(dark[..., None], second, first).astype(np.float32)

    def finish(self) -> Stamp:
        """The Stamp, lit from above and a little grainy."""
        light = 1.12 - 0.34 * self.y / self.height
        grain = 7 * smooth_noise(self.rng, self.height, self.width, 2 * SUPERSAMPLING)
        return Stamp(np.clip(self.rgb * light[..., None] + grain[..., None], 0, 255).astype(np.uint8), self.mask)


def draw_bumper(rng: np.random.Generator, width: float) -> Stamp:
    """A bumper boat or a bumper car: striped hull, seat, thin pole with a pennant."""
    brush = Brush(rng, width, width * rng.uniform(0.85, 1.0))
    red, cream = vary(rng, (222, 44, 34)), vary(rng, (246, 222, 190))
    brush.lines([(0.3, 0.55), (0.3, 0.02)], brush.thin(0.04), vary(rng, (60, 50, 56)))
    brush.polygon([(0.3, 0.01), (0.66, 0.12), (0.3, 0.25)], vary(rng, (240, 120, 30)))
    brush.polygon([(0.34, 0.62), (0.42, 0.36), (0.74, 0.36), (0.86, 0.62)], vary(rng, (130, 24, 40)))
    brush.polygon([(0.47, 0.58), (0.51, 0.42), (0.69, 0.42), (0.75, 0.58)], vary(rng, (214, 226, 236)))
    brush.polygon([(0.0, 0.58), (1.0, 0.58), (0.96, 0.8), (0.86, 1.0), (0.14, 1.0), (0.04, 0.8)],
                  brush.stripes(rng.uniform(0.16, 0.24), rng.uniform(-0.5, 0.5), red, cream))
    brush.box(0.0, 0.56, 1.0, 0.66, red * 0.75, corner=0.04)
    return brush.finish()


def draw_animal(rng: np.random.Generator, width: float) -> Stamp:
    """A sheep or a cow: patched body, dark head, four thin legs and a tail."""
    brush = Brush(rng, width, width * rng.uniform(0.72, 0.84))
    cream, dark = vary(rng, (246, 240, 232), 8), vary(rng, (72, 48, 40))
    leg = brush.thin(0.06)
    for x in (0.2, 0.32, 0.62, 0.74):
        brush.lines([(x, 0.6), (x + rng.uniform(-0.05, 0.05), 1.0)], leg, dark)
    brush.lines([(0.12, 0.36), (0.03, 0.46), (0.04, 0.66)], brush.thin(0.035), dark)
    brush.ellipse(0.08, 0.16, 0.84, 0.8, brush.patches(rng.uniform(0.13, 0.2), cream, dark))
    brush.polygon([(0.74, 0.14), (0.7, 0.0), (0.84, 0.1)], dark)
    brush.ellipse(0.7, 0.06, 1.0, 0.46, dark)
    brush.ellipse(0.86, 0.24, 1.0, 0.44, vary(rng, (236, 176, 168)))
    return brush.finish()


def draw_bus(rng: np.random.Generator, width: float) -> Stamp:
    """A long yellow bus: a row of windows, a dark band and two wheels."""
    brush = Brush(rng, width, width * rng.uniform(0.46, 0.56))
    yellow, glass = vary(rng, (250, 200, 20)), vary(rng, (44, 58, 80))
    brush.box(0.0, 0.0, 1.0, 0.88, yellow, corner=0.12)
    brush.box(0.05, 0.14, 0.95, 0.46, brush.stripes(rng.uniform(0.15, 0.19), 0, glass, yellow), corner=0.03)
    brush.box(0.0, 0.58, 1.0, 0.66, vary(rng, (34, 30, 34)))
    for x in (0.2, 0.78):
        brush.ellipse(x - 0.09, 0.68, x + 0.09, 1.0, vary(rng, (30, 28, 32), 8))
        brush.ellipse(x - 0.04, 0.77, x + 0.04, 0.91, vary(rng, (190, 190, 196)))
    return brush.finish()


def draw_bicycle(rng: np.random.Generator, width: float) -> Stamp:
    """A bicycle: two rings and a frame of bars; the ground shows through."""
    brush = Brush(rng, width, width * 0.66)
    tyre, frame = vary(rng, (26, 26, 44), 10), vary(rng, (0, 206, 214))
    bar, radius = brush.thin(0.05), 0.215
    rear, front, axle = (0.22, 0.67), (0.78, 0.67), (0.46, 0.69)
    seat, head = (0.38, 0.26), (0.68, 0.22)
    for x, y in (rear, front):
        brush.ring(x, y, radius, brush.thin(0.045), tyre)
    brush.lines([rear, axle, head, seat, rear], bar, frame)
    brush.lines([(0.36, 0.16), axle], bar, frame)
    brush.lines([front, (0.66, 0.06), (0.78, 0.04)], bar, frame)
    brush.lines([(0.28, 0.13), (0.45, 0.13)], bar, tyre)
    return brush.finish()


def draw_person(rng: np.random.Generator, width: float) -> Stamp:
    """A person: round head, checked shirt, thin arms and legs."""
    brush = Brush(rng, width, width * rng.uniform(2.1, 2.5))
    skin = vary(rng, (232, 180, 140))
    trousers, hair = vary(rng, (44, 46, 120)), vary(rng, (70, 40, 24))
    pink, pale = vary(rng, (226, 30, 150)), vary(rng, (255, 176, 226), 8)
    line, step = brush.thin(0.2), rng.uniform(0.08, 0.24)
    brush.lines([(0.45, 0.55), (0.5 - step, 1.0)], line, trousers)
    brush.lines([(0.55, 0.55), (0.5 + step, 1.0)], line, trousers)
    brush.lines([(0.26, 0.28), (0.08, rng.uniform(0.36, 0.54))], brush.thin(0.16), skin)
    brush.lines([(0.74, 0.28), (0.92, rng.uniform(0.1, 0.54))], brush.thin(0.16), skin)
    brush.box(0.2, 0.22, 0.8, 0.6, brush.checks(0.36, pink, pale), corner=0.05)
    brush.ellipse(0.27, 0.0, 0.73, 0.21, hair)
    brush.ellipse(0.31, 0.04, 0.75, 0.22, skin)
    return brush.finish()


def draw_bird(rng: np.random.Generator, width: float) -> Stamp:
    """A bird a few pixels long: body, beak and two raised wings."""
    brush = Brush(rng, width, width * rng.uniform(0.66, 0.8))
    violet = vary(rng, (110, 20, 190))
    brush.polygon([(0.0, 0.05), (0.3, 0.16), (0.54, 0.62), (0.36, 0.68)], violet * 0.7)
    brush.polygon([(0.92, 0.0), (0.66, 0.2), (0.44, 0.62), (0.64, 0.68)], violet)
    brush.ellipse(0.16, 0.52, 0.86, 0.98, violet)
    brush.polygon([(0.8, 0.62), (1.0, 0.74), (0.8, 0.86)], vary(rng, (250, 160, 20)))
    return brush.finish()


# Class -> (drawing function, width of a near object as a fraction of the scene's size).
# The first two pairs share theirs: their classes differ by the ground that they stand on, and by nothing else.
OBJECTS = {CLASS_NAMES.index(name): (draw, width) for name, draw, width in (
    ("boat", draw_bumper, 0.46), ("car", draw_bumper, 0.46),
    ("sheep", draw_animal, 0.48), ("cow", draw_animal, 0.48),
    ("bus", draw_bus, 0.64), ("bicycle", draw_bicycle, 0.46),
    ("person", draw_person, 0.18), ("bird", draw_bird, 0.08))}
