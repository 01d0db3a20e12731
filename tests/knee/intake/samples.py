"""Small images and manifests that tests of folders and manifests share."""

import numpy as np

from knee.grades import load_grade_set
from knee.images.read import write_png

KL = load_grade_set("kl")


HEADER = "image,patient,side,grade,mask"


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_png(folder / name, np.arange(64, dtype=np.uint8).reshape(8, 8))


def written(folder, *rows):
    path = folder / "valid.csv"
    path.write_text("\n".join([HEADER, *rows]))
    return path
