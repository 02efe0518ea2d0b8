"""A canvas three times as fine as the picture, on which polygons are filled.

Everything is a polygon with whole coordinates on the fine grid, filled without blending; averaging
3x3 blocks afterwards is the antialiasing. A second plane holds the number of the bird that each
fine pixel shows (0: none), so a bird's visible silhouette is exact whatever is drawn over it.
"""

import numpy as np
from PIL import Image, ImageDraw

FINE = 3
Colour = tuple[int, int, int]


class Canvas:
    """The fine picture and the plane of bird numbers.

    Args:
      background: uint8[h, w, 3], the picture so far, at its own resolution.

    Attributes:
      height: rows of the picture.
      width: columns of the picture.
      number: the bird that is being drawn, 1 to 255; 0 for everything else.
    """

    def __init__(self, background: np.ndarray) -> None:
        height, width = background.shape[:2]
        self.height, self.width = height, width
        fine = (width * FINE, height * FINE)
        self._picture = Image.fromarray(background).resize(fine, Image.Resampling.NEAREST)
        self._numbers = Image.new("L", self._picture.size, 0)
        self._paint = ImageDraw.Draw(self._picture)
        self._mark = ImageDraw.Draw(self._numbers)
        self.number = 0

    def polygon(self, points: np.ndarray, colour: Colour) -> None:
        """Fills a polygon with a colour and with the current bird number.

        Args:
          points: float[n, 2], x and y in pixels of the picture (edges, not centres: 0 is the left
            edge of the first pixel).
          colour: what to fill with.
        """
        whole = np.rint(points * FINE - 0.5).astype(np.int64).ravel().tolist()
        self._paint.polygon(whole, fill=colour)
        self._mark.polygon(whole, fill=self.number)

    def finish(self) -> np.ndarray:
        """Returns the picture: uint8[h, w, 3]."""
        return np.asarray(self._picture.reduce(FINE))

    def coverage(self, number: int) -> np.ndarray:
        """Returns how many of each pixel's nine fine pixels show a bird: uint8[h, w], 0 .. 9."""
        fine = (np.asarray(self._numbers) == number).view(np.uint8)
        # Nine strided slices are added much faster than a reshaped array is summed.
        rows = fine[0::FINE] + fine[1::FINE] + fine[2::FINE]
        return rows[:, 0::FINE] + rows[:, 1::FINE] + rows[:, 2::FINE]

    def shows(self, number: int, points: np.ndarray) -> np.ndarray:
        """Returns which points lie in the picture on a visible pixel of a bird.

        Args:
          number: the bird's number.
          points: float[n, 2], x and y in pixels of the picture.

        Returns:
          bool[n].
        """
        fine = np.floor(points * FINE).astype(np.int64)
        size = np.array([self.width, self.height]) * FINE
        inside = ((fine >= 0) & (fine < size)).all(axis=1)
        x, y = np.clip(fine, 0, size - 1).T
        return inside & (np.asarray(self._numbers)[y, x] == number)
