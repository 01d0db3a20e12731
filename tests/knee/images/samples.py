"""Images and files that the tests of this folder share."""

import gzip
import io
import struct

import cv2
import nibabel
import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from knee.images.read import read_pixels

RNG = np.random.default_rng(0)


GREY = cv2.GaussianBlur(RNG.integers(0, 256, (40, 30), np.uint8), (5, 5), 0)


DEEP = GREY.astype(np.uint16) * np.uint16(251)


def pillow_bytes(array, kind, **options):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, kind, **options)
    return stream.getvalue()


def npy_bytes(array, *, pickled=False):
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=pickled)
    return stream.getvalue()


def dicom_bytes(array, *, frames=None, syntax=ExplicitVRLittleEndian, **fields):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = pydicom.uid.DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = syntax
    dataset = pydicom.Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.Rows, dataset.Columns = array.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = array.dtype.itemsize * 8
    dataset.HighBit, dataset.PixelRepresentation = dataset.BitsStored - 1, 0
    if frames:
        dataset.NumberOfFrames = frames
    dataset.PixelData = array.tobytes()
    for name, value in fields.items():
        setattr(dataset, name, value)
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def nifti_bytes(array, affine=None, *, packed=False):
    image = nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine)
    return gzip.compress(image.to_bytes()) if packed else image.to_bytes()


GOOD = {
    "grey.png": (pillow_bytes(GREY, "PNG"), GREY),
    "deep.png": (cv2.imencode(".png", DEEP)[1].tobytes(), DEEP),
    "rgb.png": (pillow_bytes(np.stack([GREY] * 3, 2), "PNG"), GREY),
    "deep_rgb.png": (cv2.imencode(".png", np.stack([DEEP] * 3, 2))[1].tobytes(), DEEP),
    "opaque.png": (pillow_bytes(np.dstack([GREY, GREY, GREY, np.full_like(GREY, 255)]), "PNG"), GREY),
    "grey_alpha.png": (pillow_bytes(np.dstack([GREY, np.full_like(GREY, 255)]), "PNG"), GREY),
    "named_wrong.jpg": (pillow_bytes(GREY, "PNG"), GREY),
    "grey.tif": (pillow_bytes(GREY, "TIFF"), GREY),
    "deep.tif": (pillow_bytes(DEEP, "TIFF"), DEEP),
    "packed.tif": (pillow_bytes(DEEP, "TIFF", compression="tiff_lzw"), DEEP),
    "float.tif": (pillow_bytes(GREY.astype(np.float32) / 7, "TIFF"), GREY.astype(np.float32) / 7),
    "grey.npy": (npy_bytes(GREY), GREY),
    "fortran.npy": (npy_bytes(np.asfortranarray(GREY.astype(np.float64))), GREY),
    "lossless.webp": (pillow_bytes(np.stack([GREY] * 3, 2), "WEBP", lossless=True), GREY),
    "grey.dcm": (dicom_bytes(DEEP), DEEP),
    "grey.nii": (nifti_bytes(DEEP[..., None]), DEEP),
    "flat.nii": (nifti_bytes(GREY), GREY),
    "grey.nii.gz": (nifti_bytes(DEEP[..., None], packed=True), DEEP),
}


def written(folder, name, data):
    path = folder / name
    path.write_bytes(data)
    return path


TWELVE = RNG.integers(0, 4096, (20, 16)).astype(np.uint16)


SIGNED = RNG.integers(-2048, 2048, (20, 16)).astype(np.int16)


def read(folder, data):
    return read_pixels(written(folder, "a.dcm", data))


def compressed(array, syntax, frame, **fields):
    dataset = pydicom.dcmread(io.BytesIO(dicom_bytes(array, **fields)))
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def tiff(array, *, order="<", big=False, sample_format=None, planes=None, rows_per_strip=None, **tags):
    """An uncompressed TIFF of any number type; ``planes``: the strips' bytes, in place of the array's own."""
    height, width = array.shape
    kinds = {"u": 1, "i": 2, "f": 3}
    strips = planes or [array.astype(array.dtype.newbyteorder(order)).tobytes()]
    head = 16 if big else 8
    offsets = np.cumsum([head, *map(len, strips)])[:-1].tolist()
    entries = {
        256: [width], 257: [height], 258: [array.dtype.itemsize * 8], 259: [1], 262: [1], 273: offsets, 277: [1],
        278: [rows_per_strip or height], 279: [len(strip) for strip in strips],
        339: [sample_format or kinds[array.dtype.kind]],
    } | {int(tag[1:]): value for tag, value in tags.items()}  # fmt: skip
    step, count_format, field = (20, "Q", "Q") if big else (12, "H", "I")
    body = b"".join(strips)
    place = head + len(body)
    extra_at = place + struct.calcsize("<" + count_format) + step * len(entries) + struct.calcsize("<" + field)
    directory, extra = struct.pack(order + count_format, len(entries)), b""
    for tag, values in sorted(entries.items()):
        code, kind = ("H", 3) if tag not in (256, 257, 273, 278, 279) else ("I", 4)
        packed = struct.pack(order + code * len(values), *values)
        if len(packed) > struct.calcsize("<" + field):
            packed, extra = struct.pack(order + field, extra_at + len(extra)), extra + packed
        directory += struct.pack(order + "HH" + field, tag, kind, len(values)) + packed.ljust(
            struct.calcsize("<" + field), b"\0"
        )
    mark = b"II" if order == "<" else b"MM"
    start = struct.pack(order + "HHHQ", 43, 8, 0, place) if big else struct.pack(order + "HI", 42, place)
    return mark + start + body + directory + struct.pack(order + field, 0) + extra
