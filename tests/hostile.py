"""Run folders from strangers: one field of one document set to one hostile value, and what opening the folder then does."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

HERE = "@@here@@"
IN_YAML = {
    "infinite": ".inf",
    "not a number": ".nan",
    "a date": "2024-01-01",
    "huge": "1" + "0" * 400,
    "deep": "[" * 1000 + "]" * 1000,
    "long": '"' + "a" * 5_000_000 + '"',
    "null": "null",
    "a mapping": "{a: {b: 1}}",
    "a list": "[1, x]",
    "a text": '"nothing"',
    "true": "true",
    "negative": "-3",
    "NUL": '"a\\0b"',
    "a class": "{class_path: canary_of_a_run.Thing, init_args: {}}",
    "a model of the hub": '"hf-hub:org/model"',
    "a model of a folder": '"local-dir:canary"',
}
"""What a field of a YAML document is set to, as the file holds it."""
IN_JSON = {
    "infinite": "Infinity",
    "beyond": "1e400",
    "not a number": "NaN",
    "huge": "1" + "0" * 400,
    "endless": "1" * 5_000,
    "deep": "[" * 900 + "]" * 900,
    "deeper": "[" * 50_000 + "]" * 50_000,
    "long": '"' + "a" * 5_000_000 + '"',
    "null": "null",
    "a mapping": '{"a": {"b": 1}}',
    "a list": '[1, "x"]',
    "a text": '""',
    "true": "true",
    "negative": "-3",
    "a fraction": "2.5",
}
"""The same for JSON."""


def fields(values: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The place of every value in nested mappings and the first entry of lists, sections included."""
    inner = (
        values.items() if isinstance(values, dict) else list(enumerate(values))[:1] if isinstance(values, list) else ()
    )
    found = [prefix] if prefix else []
    for key, value in inner:
        found += fields(value, (*prefix, key))
    return found


def spoil(path: Path, place: tuple[Any, ...], raw: str) -> None:
    """Set one value of a YAML or JSON document to what ``raw`` says; the file is replaced, not written through."""
    is_json = path.suffix == ".json"
    text = path.read_text(encoding="utf-8")
    # The parser in C, where there is one: the bench writes thousands.
    values = json.loads(text) if is_json else yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    target = values
    for key in place[:-1]:
        target = target[key] if isinstance(target, list) else target.setdefault(key, {})
    target[place[-1]] = HERE
    written = json.dumps(values) if is_json else yaml.dump(values, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper))
    written = re.sub(rf"""["']?{HERE}["']?""", lambda _: raw, written)
    path.unlink()
    path.write_text(written, encoding="utf-8")


def copied(run: Path, place: Path) -> Path:
    """A copy of a run to change by replacing files; weights are the same files."""
    return Path(shutil.copytree(run, place, copy_function=_linked_or_copied))


def _linked_or_copied(source: str, target: str) -> None:
    if source.endswith(".safetensors"):
        os.link(source, target)
    else:
        shutil.copy2(source, target)


def listing(*folders: Path) -> dict[str, tuple[int, int]]:
    """Size and date of every file below, to see whether anything was written."""
    paths = [path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in paths}


def templates() -> Mapping[str, Callable[[Path], None]]:
    """Files in the place of the mean knee, by what is wrong with them; each function writes one."""

    def header(path: Path) -> None:
        text = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 32), }\n"
        path.write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(64))

    def archive(path: Path) -> None:
        with path.open("wb") as file:
            np.savez(file, a=np.zeros(3))

    return {
        "another shape": lambda path: np.save(path, np.zeros((7, 3), np.float32)),
        "no axis": lambda path: np.save(path, np.float32(3)),
        "another type": lambda path: np.save(path, np.zeros((32, 32), np.complex64)),
        "texts": lambda path: np.save(path, np.full((32, 32), "x")),
        "objects": lambda path: np.save(path, np.array([{}], dtype=object), allow_pickle=True),
        "not finite": lambda path: np.save(path, np.full((32, 32), np.nan, np.float32)),
        "cut short": lambda path: path.write_bytes(b"\x93NUMPY\x01\x00"),
        "a shape of terabytes": header,
        "an archive": archive,
        "empty": lambda path: path.write_bytes(b""),
    }
