"""Pictures from files: which can be trained on, and how they are cut to a size that the model likes."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".jfif"}
HEIC = {".heic", ".heif"}
"""Opened with the package pillow-heif, where it is installed."""
MASKS = ("-masklabel", ".mask")
"""Ends of the names of masks beside their pictures, ``photo.mask.png`` (``photo-masklabel.png`` is OneTrainer's)."""
STEP = 64
"""Sides of buckets are multiples of this many pixels."""
LARGEST = 100_000_000
"""Pixels of the largest picture that is opened."""
SMALLEST = 0.5
"""The shorter side must be at least this part of what is cut from it: more enlarging would teach blur."""
WIDEST = 2.5
"""Largest aspect ratio of a bucket."""


class BadPicture(ValueError):
    """A picture that cannot be trained on; the message says why."""


def files(folder: str | Path) -> list[Path]:
    """All files below a folder, sorted, hidden ones left out; links are followed, each folder once.

    Raises:
        ValueError: there is no such folder, or nothing is in it.
    """
    root = Path(folder).expanduser()
    if not str(folder).strip() or not root.is_dir():
        raise ValueError(f"there is no folder '{folder}'; give the folder with the pictures of your concept.")
    found, seen, closed = [], set(), []
    for place, folders, names in os.walk(root, onerror=closed.append, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a link that leads back, or two to one folder
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths = [Path(place, name) for name in names if not name.startswith(".")]
        found += [path for path in paths if path.is_file() or path.is_symlink()]
    found += [Path(error.filename) for error in closed]
    if not found:
        raise ValueError(f"the folder '{folder}' is empty; put the pictures of your concept into it.")
    return sorted(found)


def buckets(resolution: int) -> list[tuple[int, int]]:
    """Sizes (height, width) of at most the area resolution^2, in steps of 64 pixels, for aspect ratios up to 2.5."""
    sizes = set()
    for side in range(STEP, 2 * resolution + 1, STEP):
        other = resolution**2 // side // STEP * STEP
        if other and max(side, other) <= WIDEST * min(side, other):
            sizes |= {(side, other), (other, side)}
    return sorted(sizes | {(resolution, resolution)})


def size_for(height: int, width: int, resolution: int, square: bool) -> tuple[int, int]:
    """The size to cut a picture to: the square, or the bucket of the nearest aspect ratio, the largest of equals."""
    if square:
        return resolution, resolution
    ratio = np.log(width / height)
    return min(buckets(resolution), key=lambda size: (abs(np.log(size[1] / size[0]) - ratio), -size[0] * size[1]))


def check_kind(path: Path) -> None:
    """Refuse, before anything is read, what is no picture by its name."""
    if path.is_dir():
        raise BadPicture("a folder that cannot be opened")
    if path.suffix.lower() not in ENDINGS | HEIC:
        raise BadPicture("no picture file")


def load(path: Path, resolution: int, square: bool) -> Tensor:
    """A picture (H, W, 3) in [0, 1], upright, scaled to cover its size, cut from the middle; BadPicture if unusable.

    Transparent parts become white.
    """
    check_kind(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with opened(path) as picture:
                check(picture)
                height, width = size_for(*upright_size(picture), resolution, square)
                if min(upright_size(picture)) < SMALLEST * min(height, width):
                    raise BadPicture(f"too small ({picture.width} x {picture.height} for {width} x {height})")
                plain = eight_bit(ImageOps.exif_transpose(picture))
        cut = ImageOps.fit(plain, (width, height), Image.Resampling.LANCZOS)
        return torch.from_numpy(np.asarray(cut, dtype=np.float32) / 255.0)
    except BadPicture:
        raise
    except Image.DecompressionBombError as error:
        raise BadPicture(f"too large ({error})") from error
    except Exception as error:  # decoders fail in any way on damaged files; one file must not end a folder
        why = f"{type(error).__name__}: {error}".replace(str(path), path.name)
        raise BadPicture(f"damaged or unreadable ({why})"[:200]) from error


def masks(paths: Iterable[Path]) -> dict[tuple[Path, str], Path]:
    """The masks among files, by folder and name (without its ending) of their pictures."""
    return {(path.parent, path.stem.removesuffix(end)): path for path in paths for end in MASKS
            if path.stem.endswith(end) and path.suffix.lower() in ENDINGS}


def load_mask(file: Path, picture: Path, resolution: int, square: bool) -> Tensor:
    """A picture's mask (H, W, 1) in [0, 1], white where it counts, cut as the picture is; BadPicture if unusable."""
    mask = load(file, resolution, square).mean(-1, keepdim=True)
    with opened(picture) as shown, opened(file) as drawn:
        if upright_size(shown) != upright_size(drawn):
            raise BadPicture(f"the mask {file.name} is {drawn.width} x {drawn.height}, but its picture is "
                             f"{shown.width} x {shown.height}; save the mask at the picture's size.")
    if float(mask.max()) < 0.5:
        raise BadPicture(f"the mask {file.name} is empty; paint white where the thing is.")
    return mask


def opened(path: Path) -> Image.Image:
    """A picture whose pixels are not read yet."""
    if path.suffix.lower() not in HEIC:
        return Image.open(path)
    try:
        from pillow_heif import HeifImageFile
    except ImportError as error:
        raise BadPicture("HEIC needs the package pillow-heif: pip install pillow-heif, or convert it to JPEG"
                         ) from error
    return HeifImageFile(path)


def check(picture: Image.Image) -> None:
    """Refuse, before any pixel is read, what is animated, huge or CMYK (whose colours depend on a profile)."""
    if getattr(picture, "n_frames", 1) > 1:
        raise BadPicture(f"animated ({picture.n_frames} frames)")
    if picture.width * picture.height > LARGEST:
        raise BadPicture(f"too large ({picture.width} x {picture.height})")
    if picture.mode == "CMYK":
        raise BadPicture("CMYK colours; convert it to RGB")
    if picture.mode.startswith(("I", "F")):
        raise BadPicture(f"16-bit or floating point pixels ({picture.mode}); convert it to 8 bits")


def upright_size(picture: Image.Image) -> tuple[int, int]:
    """(height, width) as the camera's orientation mark says it is to be seen."""
    turned = picture.getexif().get(0x0112, 1) >= 5
    return (picture.width, picture.height) if turned else (picture.height, picture.width)


def eight_bit(picture: Image.Image) -> Image.Image:
    """RGB on white."""
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return picture.convert("RGB")
