"""A window that shows images as they come, by tkinter."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from langdepth.errors import UsageError, first_line

_SHARE = 0.9  # of the screen that it takes at most


class Window:
    """It is open until somebody closes it or presses q or Escape.

    Raises:
        UsageError: No window can be opened here.
    """

    def __init__(self, title: str) -> None:
        try:
            import tkinter
        except ImportError:
            raise UsageError("--show needs tkinter, a part of Python that is a package of its own here") from None
        try:
            self._root = tkinter.Tk()
        except tkinter.TclError as error:
            raise UsageError(f"--show: no window can be opened here ({first_line(error)})") from None
        self._root.title(f"{title} - langdepth")
        self._label = tkinter.Label(self._root, borderwidth=0)
        self._label.pack()
        self._shown: Any = None
        self.is_open = True
        self._root.protocol("WM_DELETE_WINDOW", self.close)
        for key in ("q", "<Escape>"):
            self._root.bind(key, lambda _: self.close())

    def show(self, pixels: npt.NDArray[np.uint8]) -> bool:
        """An image (H, W, 3) in place of the one before, smaller where the screen is; whether it is still open."""
        from PIL import ImageTk

        image = Image.fromarray(pixels)
        most = self._root.winfo_screenwidth() * _SHARE, self._root.winfo_screenheight() * _SHARE
        image.thumbnail((round(most[0]), round(most[1])))
        self._shown = ImageTk.PhotoImage(image, master=self._root)  # which would vanish if nobody held it
        self._label.configure(image=self._shown)
        self._root.update()
        return self.is_open

    def close(self) -> None:
        """Close it, if it is still open."""
        if self.is_open:
            self.is_open = False
            self._root.destroy()
