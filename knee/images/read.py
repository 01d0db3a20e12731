"""Read any supported image or mask; damaged and unsupported files are refused with their name and the reason.

Formats are detected from content, never from the file's name: PNG, JPEG, WebP, TIFF, NPY, DICOM (``enhanced.dcm#7`` is
frame 7), NIfTI slices (``volume.nii.gz#7`` is slice 7). Any file is read or refused within 10 seconds and 2 GiB. Pixels stay
as stored: orientation tags are ignored in all formats.
"""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from knee.errors import UserError
from knee.images.dicom import looks_like_dicom, read_dicom
from knee.images.geometry import Geometry, prepare
from knee.images.negatives import looks_inverted, mean_thumbnail, thumbnail
from knee.images.nifti import MOST_VOLUME_BYTES, is_nifti, read_nifti
from knee.images.raster import MOST_BYTES, Pixels, decode_jpeg, decode_npy, decode_png, decode_webp
from knee.images.slices import split_slice
from knee.images.tiff import MAGIC, decode_tiff
from knee.io.files import whole_file

__all__ = [
    "Geometry",
    "Pixels",
    "looks_inverted",
    "mean_thumbnail",
    "prepare",
    "read_image",
    "read_mask",
    "read_pixels",
    "thumbnail",
    "write_png",
]


def read_pixels(path: str | Path) -> Pixels:
    """The grey values of an image file.

    Raises:
        UserError: missing, unreadable, damaged, with several pictures, too large, or with NaN or infinite values; the
            message gives the path and the reason.
    """
    file, index = split_slice(path)
    try:
        head = _head(file)
        if is_nifti(head):
            return read_nifti(file, index)
        if looks_like_dicom(head):
            return read_dicom(file, index)
        if index is not None:
            raise ValueError(
                f"slice #{index} was requested, but the file is not a NIfTI volume or a DICOM of several frames"
            )
        return _decoder(head)(file.read_bytes())
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(f"{path}: needs more memory than is available") from error
    except OSError as error:
        reason = f"cannot be read ({error.strerror})" if error.strerror else _one_line(error)
        raise UserError(f"{path}: {reason}") from error
    # Decoders can raise almost any exception on damaged files; in all cases the file cannot be used.
    except Exception as error:
        raise UserError(f"{path}: {_one_line(error)}") from error


def read_image(path: str | Path) -> Pixels:
    """An image for training or grading: as ``read_pixels``, but a constant image is refused, too.

    Raises:
        UserError: as ``read_pixels``, or all pixels are equal.
    """
    pixels = read_pixels(path)
    if pixels.values.min() == pixels.values.max():
        raise UserError(f"{path}: is empty: all pixels are {pixels.values.flat[0]:g}")
    return pixels


def read_mask(path: str | Path, *, of: Pixels | None = None) -> npt.NDArray[np.bool_]:
    """A mask (H, W): False where the file is 0, True where it has its only other value.

    Raises:
        UserError: as ``read_pixels``; more than two values (a mask saved as JPEG, or of several structures); not on the
            pixels of the image ``of``: another size or, if both are NIfTI, another position in the patient.
    """
    pixels = read_pixels(path)
    values = pixels.values
    if of is not None and values.shape != of.values.shape:
        sizes = [f"{array.shape[1]} × {array.shape[0]}" for array in (values, of.values)]
        raise UserError(f"{path}: has {sizes[0]} pixels, its image {sizes[1]}; draw the mask on the image")
    if of is not None and _is_elsewhere(pixels, of, single=split_slice(path)[1] is None):
        raise UserError(
            f"{path}: is at another position than its image, according to their affines; save it with its image's affine: "
            "nibabel.Nifti1Image(mask, image.affine)"
        )
    inside: npt.NDArray[np.bool_] = values != 0
    others = values[inside]
    if len(others) and (others != others[0]).any():
        raise UserError(
            f"{path}: is not a mask: {len(np.unique(values))} different values; save 0 and one other value as PNG"
        )
    return inside


def _is_elsewhere(mask: Pixels, image: Pixels, *, single: bool) -> bool:
    """Whether the affines of two NIfTI slices of one size put a corner more than a tenth of a pixel apart.

    Both have the same displayed orientation, so slices stored in another order or direction agree if they show the same
    part of the patient. ``single``: for a mask with only one slice, the position perpendicular to its plane is ignored.
    """
    if mask.place is None or image.place is None:
        return False
    height, width = image.values.shape
    corners = np.array([[1, 0, 0], [1, height - 1, 0], [1, 0, width - 1], [1, height - 1, width - 1]])
    apart = corners @ (mask.place - image.place)
    if not (mask.place.any() and image.place.any()):
        return bool(apart.any())
    down, across = image.place[1:]
    if single:
        normal = np.cross(down, across) / np.linalg.norm(np.cross(down, across))
        apart = apart - np.outer(apart @ normal, normal)
    return bool(np.linalg.norm(apart, axis=1).max() > 0.1 * min(np.linalg.norm(down), np.linalg.norm(across)))


def write_png(path: str | Path, image: npt.NDArray[np.uint8 | np.uint16], *, force: bool = False) -> None:
    """Write (H, W) or RGB (H, W, 3), uint8 or uint16, as PNG; an existing file is kept unless ``force``.

    Raises:
        UserError: the file exists, or cannot be written.
    """
    done, data = cv2.imencode(".png", image[..., ::-1] if image.ndim == 3 else image)
    assert done, image.shape
    with whole_file(Path(path), force=force) as scratch:
        scratch.write_bytes(data.tobytes())


def _head(file: Path) -> bytes:
    """The first bytes of a file, which must be regular and not too large."""
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("is not a file")
    if status.st_size == 0:
        raise ValueError("is empty (0 bytes)")
    with file.open("rb") as stream:
        head = stream.read(512)
    if status.st_size > (MOST_VOLUME_BYTES + MOST_BYTES if is_nifti(head) else MOST_BYTES):
        raise ValueError(f"has {status.st_size / 2**30:.1f} GiB, too much for one image")
    return head


def _decoder(head: bytes) -> Callable[[bytes], Pixels]:
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return decode_png
    if head.startswith(b"\xff\xd8\xff"):
        return decode_jpeg
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return decode_webp
    if head[:4] in MAGIC:
        return decode_tiff
    if head.startswith(b"\x93NUMPY"):
        return decode_npy
    raise ValueError("is not a PNG, JPEG, WebP, TIFF, NPY, DICOM or NIfTI file")


def _one_line(error: Exception) -> str:
    """The reason in one short line: our own messages unchanged, a decoder's with the exception's type."""
    text = " ".join(str(error).split())[:200]
    if type(error) is ValueError and text.startswith(("is ", "has ", "holds ", "its ", "needs ", "slice ")):
        return text
    return f"is damaged ({type(error).__name__}: {text})" if text else f"is damaged ({type(error).__name__})"
