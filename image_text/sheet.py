"""A picture of retrieval: queries in rows, each with its own image and the first images retrieved by its report."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from image_text.retrieval import Pairs
from knee.data.prepare import KneeData

Rows = NDArray[np.int64]
SHOWN = 5
_COLORS = {"same report": "#009E73", "same patient": "#0072B2", "same grade": "#E69F00", "": "0.6"}


def sheet_figure(
    pairs: Pairs, data: KneeData, rows: Rows, *, queries: int, reports: Sequence[str] | None = None
) -> Figure:
    """Report → image for ``queries`` pairs spread over the split: the pair's own image, then the first five.

    Cases are named by their hashes. The frame shows what an image shares with the query: its report, patient or grade.
    ``reports`` (N,), only for files that stay private, are written beside the query. ``rows`` (N,) of the pairs.
    """
    shown = np.linspace(0, len(rows) - 1, min(queries, len(rows))).round().astype(int)
    names = data.cases(rows)
    figure = Figure(
        figsize=(1.7 * (SHOWN + 1) + (3.2 if reports else 0), 2.0 * len(shown)), dpi=100, layout="constrained"
    )
    widths = [*([1.9] if reports else []), *([1.0] * (SHOWN + 1))]
    axes = figure.subplots(len(shown), len(widths), squeeze=False, gridspec_kw={"width_ratios": widths})
    for line, query in zip(axes, shown, strict=True):
        first = first_images(pairs, query)
        cells = list(line)
        if reports:
            text = cells.pop(0)
            text.text(0, 1, "\n".join(textwrap.wrap(reports[rows[query]], 48)[:11]), va="top", fontsize=7)
            text.axis("off")
        for axis, case in zip(cells, [query, *first], strict=False):
            own = case == query and axis is cells[0]
            shared = "" if own else shares(pairs, query, case)
            axis.imshow(data.cache.images[rows[case]], cmap="gray", vmin=0, vmax=255)
            axis.set_title(f"query {names[case]}" if own else f"{names[case]}\n{shared or ' '}", fontsize=7)
            axis.set_xticks([])
            axis.set_yticks([])
            for spine in axis.spines.values():
                spine.set(color=_COLORS[shared], linewidth=3)
    return figure


def first_images(pairs: Pairs, query: int, count: int = SHOWN) -> NDArray[np.int64]:
    """The ``count`` images most similar to a query's report, best first; ties in the order of the rows."""
    similar = pairs.images @ pairs.texts[pairs.text_of[query]]
    return np.argsort(-similar, kind="stable")[:count].astype(np.int64)


def shares(pairs: Pairs, query: int, case: int) -> str:
    """What a case shares with a query: its report, else its patient, else its grade, else nothing ('')."""
    if pairs.text_of[query] == pairs.text_of[case]:
        return "same report"
    if pairs.patients[query] == pairs.patients[case]:
        return "same patient"
    return "same grade" if pairs.grades[query] == pairs.grades[case] >= 0 else ""
