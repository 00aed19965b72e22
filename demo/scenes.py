"""The demo's scenes: sky, one to three kinds of ground, and objects. Of some, only the ground determines the class."""
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from scipy import ndimage

from demo.objects import OBJECTS, SUPERSAMPLING, Stamp, smooth_noise, vary
from VOC12.labels import CLASS_NAMES, VOID

SKY, WATER, ROAD, MEADOW, STUBBLE = range(5)
GROUNDS = (WATER, ROAD, MEADOW, STUBBLE)
# What stands where, and how often. The grounds themselves are background.
MENU = {WATER: {"boat": 0.85, "bird": 0.15},
        ROAD: {"car": 0.46, "bus": 0.22, "bicycle": 0.20, "person": 0.12},
        MEADOW: {"sheep": 0.50, "bicycle": 0.22, "person": 0.18, "bird": 0.10},
        STUBBLE: {"cow": 0.50, "person": 0.20, "bicycle": 0.20, "bird": 0.10}}
BIRD, BICYCLE = CLASS_NAMES.index("bird"), CLASS_NAMES.index("bicycle")


@dataclass
class Scene:
    """`image` uint8 (H, W, 3); `classes` uint8 (H, W), 0..20; `instances` uint8 (H, W), 0 or 1..n without a gap."""
    image: np.ndarray
    classes: np.ndarray
    instances: np.ndarray


@dataclass
class _Item:
    """An object with its place: `x`, `y` is the middle of its lower edge, in supersampled pixels."""
    label: int
    stamp: Stamp
    x: int
    y: int


def draw_scene(seed: int, index: int, size: int) -> Scene:
    """Scene `index` of the demo: a pure function of the three numbers. The longer side has `size` pixels."""
    rng = np.random.default_rng([seed, index, size])
    height, width = size, max(24, int(round(size * rng.choice([0.75, 0.8, 1.0]))))
    if rng.random() < 0.7:
        height, width = width, height
    tall, wide = height * SUPERSAMPLING, width * SUPERSAMPLING
    region, horizon, across, along = _layout(rng, tall, wide)
    canvas = _paint_regions(rng, region, horizon, across, along, size * SUPERSAMPLING)
    items = _place(rng, region, horizon, size * SUPERSAMPLING)
    classes = np.zeros((tall, wide), dtype=np.uint8)
    instances = np.zeros((tall, wide), dtype=np.uint8)
    _shadows(canvas, items)
    for number, item in enumerate(sorted(items, key=lambda item: item.y), start=1):  # the nearest is drawn last
        _paste(canvas, classes, instances, item, number)
    _fence(rng, canvas, classes, instances, horizon, size * SUPERSAMPLING)
    image = _photograph(rng, canvas, width, height)
    middle = SUPERSAMPLING // 2
    classes = np.ascontiguousarray(classes[middle::SUPERSAMPLING, middle::SUPERSAMPLING])
    instances = instances[middle::SUPERSAMPLING, middle::SUPERSAMPLING]
    present, dense = np.unique(np.append(instances.ravel(), 0), return_inverse=True)
    return Scene(image, classes, dense.ravel()[:-1].reshape(instances.shape).astype(np.uint8))


def void_border(labels: np.ndarray, instances: np.ndarray) -> np.ndarray:
    """A copy of `labels` with VOC's void around every object: the pixels outside it that touch it, one pixel wide.

    Where two objects touch, the upper or left one's last pixel is void. The thin parts of objects stay whole.
    """
    grown = ndimage.grey_dilation(instances, footprint=np.ones((3, 3)))
    border = (instances == 0) & (grown > 0)
    right, below = instances[:, 1:], instances[1:]
    border[:, :-1] |= (instances[:, :-1] > 0) & (right > 0) & (instances[:, :-1] != right)
    border[:-1] |= (instances[:-1] > 0) & (below > 0) & (instances[:-1] != below)
    return np.where(border, np.uint8(VOID), labels)


def _layout(rng, tall, wide):
    """Which ground is where: region ids (tall, wide), the horizon's row, and two coordinates across and along it."""
    y, x = np.mgrid[:tall, :wide].astype(np.float32)
    horizon = int(tall * rng.uniform(0.12, 0.26))
    count = rng.choice([1, 2, 3], p=[0.08, 0.52, 0.40])
    grounds = rng.permutation(GROUNDS)[:count]
    angle = rng.uniform(-0.5, 0.5) + (np.pi / 2 if rng.random() < 0.45 else 0.0)
    across = (x * np.cos(angle) + y * np.sin(angle)) / wide
    along = (y * np.cos(angle) - x * np.sin(angle)) / wide
    across = across + 0.035 * smooth_noise(rng, tall, wide, tall / 3)
    below = y > horizon + 0.02 * tall * smooth_noise(rng, 1, wide, 1, wide / 4)
    cuts = np.quantile(across[below], [(i + rng.uniform(-0.14, 0.14)) / count for i in range(1, count)])
    return np.where(below, grounds[np.searchsorted(cuts, across)], SKY).astype(np.uint8), horizon, across, along


def _paint_regions(rng, region, horizon, across, along, unit):
    """The background: float32 (tall, wide, 3). `unit` is the scene's size in supersampled pixels."""
    tall, wide = region.shape
    row = np.arange(tall, dtype=np.float32)[:, None]
    canvas = np.zeros((tall, wide, 3), dtype=np.float32)

    def fill(where, colour, *lights):
        """Paints pixels in one colour, made lighter or darker by maps (tall, wide)."""
        canvas[where] = colour + sum(light[where] for light in lights)[:, None]

    hills = smooth_noise(rng, tall, wide, unit / 7)
    for ground in np.unique(region):
        where = region == ground
        if ground == SKY:
            clouds = np.clip(smooth_noise(rng, tall, wide, unit / 12, unit / 5) * 1.6 - 0.2, 0, 1)[where][:, None]
            haze = np.broadcast_to(70 * np.clip(row / max(horizon, 1), 0, 1), region.shape)
            fill(where, vary(rng, (110, 172, 236)), haze)
            canvas[where] = canvas[where] * (1 - clouds) + 244 * clouds
        elif ground == WATER:
            far = 1 / (np.clip((row - horizon) / (tall - horizon), 0, 1) + 0.3)  # finer waves at the horizon
            ripple = smooth_noise(rng, tall, wide, unit / 30, unit / 8)
            fill(where, vary(rng, (24, 98, 176)), 26 * np.sin(rng.uniform(34, 46) * far + 2.2 * ripple), 10 * hills)
        elif ground == ROAD:
            grain = rng.standard_normal(region.shape, dtype=np.float32)
            fill(where, vary(rng, (112, 110, 114), 10), 11 * grain, 8 * hills)
            dash = (np.abs(across - np.median(across[where])) < 0.008) & (along * 9 % 1 < 0.55)
            canvas[where & dash] = 232
        elif ground == MEADOW:
            fill(where, vary(rng, (72, 148, 46)), 24 * smooth_noise(rng, tall, wide, unit / 36, unit / 110), 16 * hills)
            flowers = smooth_noise(rng, tall, wide, unit / 64) > 0.93
            canvas[where & flowers] = vary(rng, (246, 226, 110))
        else:
            furrows = np.sin(along * rng.uniform(100, 150) + 1.5 * hills)
            straw = smooth_noise(rng, tall, wide, unit / 36, unit / 110)
            fill(where, vary(rng, (196, 158, 98)), 15 * furrows, 12 * straw)
    edge = ndimage.grey_dilation(region, size=(5, 5)) != ndimage.grey_erosion(region, size=(5, 5))
    canvas[edge & (row > horizon + tall * 0.03)] *= 0.82  # a darker bank between two grounds
    return canvas


class _Placement:
    """Places objects on the ground where their class occurs, so that they hide little of each other. Fills `items`."""

    def __init__(self, rng, region, horizon, unit):
        self.rng, self.region, self.horizon, self.unit = rng, region, horizon, unit
        self.taken = np.zeros(region.shape, dtype=bool)
        self.items = []

    def try_to_place(self, label, ground, scale=1.0, tries=12):
        """Places an object of a class somewhere on a ground; none if `tries` random places do not fit."""
        draw, near_width = OBJECTS[label]
        tall, wide = self.region.shape
        rows, columns = np.nonzero(self.region[::4, ::4] == ground)
        for _ in range(tries if len(rows) else 0):
            pick = self.rng.integers(len(rows))
            y, x = int(rows[pick]) * 4, int(columns[pick]) * 4
            depth = 0.8 if label == BIRD else 0.4 + 0.6 * np.clip((y - self.horizon) / (tall - self.horizon), 0, 1)
            width = self.unit * near_width * depth * scale * self.rng.uniform(0.8, 1.2)
            feet = np.clip(x + width * np.linspace(-0.55, 0.55, 7), 0, wide - 1).astype(int)
            if (self.region[y, feet] != ground).any():  # on two grounds its class would be ambiguous
                continue
            probes = self.taken[np.clip((y, y - int(0.35 * width)), 0, tall - 1)[:, None], feet]
            if probes.sum() > 3:  # too crowded: save the time of drawing it
                continue
            item = _Item(label, draw(self.rng, width), x, y)
            target, source = _overlap(item, self.region.shape)
            visible = item.stamp.mask[source]
            if visible.sum() < 0.6 * item.stamp.mask.sum():
                continue
            if (self.taken[target] & visible).sum() > 0.14 * visible.sum():
                continue
            self.taken[target] |= visible
            self.items.append(item)
            return


def _place(rng, region, horizon, unit):
    """Objects for the scene, each on a ground where its class occurs: a list of _Item."""
    placement = _Placement(rng, region, horizon, unit)
    grounds = [ground for ground in np.unique(region) if ground != SKY]
    for ground in grounds:  # the class that occurs on this ground alone is always tried first
        placement.try_to_place(CLASS_NAMES.index(max(MENU[ground], key=MENU[ground].get)), ground)
        if ground == ROAD and rng.random() < 0.7:
            placement.try_to_place(CLASS_NAMES.index("bus"), ground, tries=40)
    if rng.random() < 0.5:
        for _ in range(rng.integers(1, 6)):
            placement.try_to_place(BIRD, SKY, scale=rng.uniform(0.5, 1.0))
    wanted = rng.uniform(0.27, 0.42)
    for _ in range(24):
        if placement.taken.mean() > wanted:
            break
        ground = rng.choice(grounds)
        names = list(MENU[ground])
        label = CLASS_NAMES.index(names[rng.choice(len(names), p=list(MENU[ground].values()))])
        far = rng.random() < 0.3 and label not in (BIRD, BICYCLE)  # a small one, 5 to 20 pixels wide
        placement.try_to_place(label, ground, scale=rng.uniform(0.2, 0.5) if far else 1.0, tries=8)
    return placement.items


def _overlap(item, shape):
    """Where an item's box overlaps the canvas: slices into the canvas, slices into the stamp."""
    tall, wide = item.stamp.mask.shape
    top, left = item.y - tall + 1, item.x - wide // 2
    y0, x0, y1, x1 = max(top, 0), max(left, 0), min(top + tall, shape[0]), min(left + wide, shape[1])
    return (slice(y0, y1), slice(x0, x1)), (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))


def _paste(canvas, classes, instances, item, number):
    target, source = _overlap(item, classes.shape)
    mask = item.stamp.mask[source]
    canvas[target][mask] = item.stamp.rgb[source][mask]
    classes[target][mask] = item.label
    instances[target][mask] = number


def _shadows(canvas, items):
    """Darkens the ground under the feet of every object: part of the background, as in VOC."""
    shade = Image.new("1", (canvas.shape[1], canvas.shape[0]))
    for item in items:
        if item.label != BIRD:
            half = item.stamp.mask.shape[1] * 0.56
            box = (item.x - half, item.y - half * 0.2, item.x + half, item.y + half * 0.2)
            ImageDraw.Draw(shade).ellipse(box, fill=1)
    canvas[np.asarray(shade)] *= 0.72


def _fence(rng, canvas, classes, instances, horizon, unit):
    """In a third of the scenes, a thin wooden fence in front of everything. It is background, and cuts objects."""
    if rng.random() > 0.33:
        return
    tall, wide = classes.shape
    foot, rise = int(rng.uniform(horizon + 0.35 * (tall - horizon), tall)), int(unit * rng.uniform(0.08, 0.13))
    line, gap = max(2, unit // 64), max(6, unit // rng.integers(6, 10))
    where = np.zeros(classes.shape, dtype=bool)
    for top in (foot - rise * 3 // 4, foot - rise // 3):
        where[max(top, 0):top + line] = True
    for x in range(int(rng.integers(gap)), wide, gap):
        where[max(foot - rise, 0):foot, x:x + line * 3 // 2] = True
    canvas[where] = vary(rng, (150, 116, 84))
    classes[where] = instances[where] = 0


def _photograph(rng, canvas, width, height):
    """The canvas as a camera would give it: averaged down, blurred, lit from a side, with noise. uint8 (H, W, 3)."""
    image = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8)).resize((width, height), Image.Resampling.BOX)
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.0, 0.6)))
    y, x = np.mgrid[-1:1:height * 1j, -1:1:width * 1j]
    angle = rng.uniform(0, 2 * np.pi)
    light = rng.uniform(0.82, 1.12) * (1 + rng.uniform(0, 0.14) * (x * np.cos(angle) + y * np.sin(angle)))
    tint = rng.uniform(0.94, 1.06, 3)
    noise = rng.normal(0, rng.uniform(1, 6), (height, width, 3))
    return np.clip(np.asarray(image) * light[..., None] * tint + noise, 0, 255).astype(np.uint8)
