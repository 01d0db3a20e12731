"""The same picture in two splits: a leak that no list of patients shows."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pandas as pd

from knee.data.splits import Split
from knee.errors import Faults

_CHUNK = 256


def refuse_shared_pictures(images: Any, split: Split, table: pd.DataFrame, *, where: str) -> None:
    """Raises Faults where two prepared images of different splits have the same pixels.

    ``images`` (N, S, S) uint8 by row of ``table`` (columns image, line). Constant images are left out: they show nothing.
    """
    names = pd.Series("", index=np.arange(len(table)))
    for name in ("train", "val", "test"):
        names.iloc[split.rows(name)] = name
    digests = []
    for start in range(0, len(images), _CHUNK):
        block = np.asarray(images[start : start + _CHUNK])
        digests += [hashlib.sha1(one.tobytes()).hexdigest() if np.ptp(one) else "" for one in block]
    rows = pd.DataFrame({"digest": digests, "split": names, "image": table["image"], "line": table["line"]})
    rows = rows[(rows["digest"] != "") & (rows["split"] != "") & rows.duplicated("digest", keep=False)]
    shared = rows.groupby("digest")["split"].transform("nunique") > 1
    found = [
        "; ".join(f"line {row.line} ({row.split}): {row.image}" for row in same.itertuples())
        for _, same in rows[shared].groupby("digest", sort=False)
    ]
    if found:
        raise Faults(
            found,
            summary=f"{where}: {len(found)} pictures are in two splits, so the network would be tested on images that it was "
            "trained on; give them one patient in the manifest and split again, or remove the copies:",
        )
