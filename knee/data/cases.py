"""Pseudonyms for cases: salted hashes that can be shown to others. The salt stays with the data."""

from __future__ import annotations

import hmac
import os
import secrets
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from knee.errors import UserError

_BYTES = 32


def load_salt(manifest_path: str | Path, fallback_folder: str | Path | None = None) -> bytes:
    """The salt of a data set: 32 random bytes, generated on first use.

    The salt is in the manifest's folder, readable only by its owner, or in ``fallback_folder`` if that folder cannot be
    written. All manifests of a folder share it, so a case keeps its name when reviewed grades make a new version.

    Raises:
        UserError: the file is damaged, or no folder can be written.
    """
    manifest_path = Path(manifest_path)
    name = ".case_salt"
    folders = [manifest_path.parent, *([Path(fallback_folder)] if fallback_folder is not None else [])]
    for folder in folders:
        if (folder / name).exists():
            return _read(folder / name)
    failure: OSError | None = None
    for folder in folders:
        try:
            _create(folder / name)
        except OSError as error:
            failure = error
        else:
            return _read(folder / name)
    raise UserError(
        f"{folders[-1] / name}: the salt of the case names cannot be written ({failure}); make the folder writable"
    )


def case_name(salt: bytes, image: str, *, digits: int = 10) -> str:
    """The name of an image's case: 'c' and 10 hexadecimal digits of HMAC-SHA256.

    >>> case_name(bytes(32), "train/2/007L.png")
    'cee7dda61ed'
    """
    return "c" + hmac.digest(salt, image.encode(), "sha256").hex()[:digits]


def case_names(salt: bytes, images: Sequence[str]) -> list[str]:
    """The names of all cases of a data set, different for every image.

    Ten digits are few for a million images: in a third of such data sets, two images would share a name. Images that share
    one get 20 digits; all others keep the name of ``case_name``, which keys and verdicts of earlier exports contain.
    """
    names = [case_name(salt, image) for image in images]
    if len(set(names)) < len(names):
        often = Counter(names)
        names = [
            case_name(salt, image, digits=20) if often[name] > 1 else name
            for name, image in zip(names, images, strict=True)
        ]
    return names


def _read(path: Path) -> bytes:
    try:
        salt = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read as a salt ({error}); restore it, or remove it to rename all cases"
        ) from error
    if len(salt) != _BYTES:
        raise UserError(
            f"{path}: has {len(salt)} bytes of salt, not {_BYTES}; restore it, or remove it to rename all cases"
        )
    return salt


def _create(path: Path) -> None:
    """Write a new salt completely or not at all; a salt that another process wrote meanwhile is kept."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.")  # readable only by its owner
    try:
        with os.fdopen(handle, "w", encoding="ascii") as stream:
            stream.write(secrets.token_hex(_BYTES) + "\n")
        try:
            path.hardlink_to(temporary)
        except FileExistsError:
            return
        except OSError:  # a file system without hard links
            if not path.exists():
                Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)
