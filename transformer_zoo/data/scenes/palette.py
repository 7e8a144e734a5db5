"""Names and colours of the world, in the order of their ids. Axes: x right, y down, z toward the viewer."""

import numpy as np
from jaxtyping import Int

SIDES = (32, 64, 128)
MAX_OBJECTS = 4  # rows of every table of objects; unused rows hold -1

COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
COLOUR_RGB = np.array(
    [
        (214, 40, 40),
        (240, 130, 20),
        (236, 216, 40),
        (40, 170, 60),
        (40, 200, 210),
        (50, 80, 220),
        (140, 50, 190),
        (245, 90, 170),
    ]
)
SHAPES = ("ball", "box", "cone", "gem", "ring", "cross")
PLURALS = ("balls", "boxes", "cones", "gems", "rings", "crosses")
SIZES = ("small", "medium", "large")

SKIES = ("day", "dusk", "night")
SKY_RGB = np.array([(196, 214, 228), (214, 190, 184), (42, 44, 56)])
GROUNDS = ("grass", "sand", "snow", "stone")
GROUND_RGB = np.array([(120, 138, 112), (176, 164, 140), (228, 228, 232), (104, 104, 110)])
STRIPE = 0.95  # factor of every other stripe of the ground
LIGHTS = ("left", "front", "right")
LIGHT_DIRECTIONS = np.array([(-0.6, -0.5, 0.62), (0.0, -0.3, 0.954), (0.6, -0.5, 0.62)])

PLAYER_RGB = (245, 245, 245)
FLAKE_RGB = (255, 255, 255)


def half_widths(side: int) -> Int[np.ndarray, "3"]:
    """R of small, medium and large: a sprite is 2 R + 1 pixels wide."""
    return np.array([max(3, round(side * share)) for share in (0.125, 0.18, 0.25)])
