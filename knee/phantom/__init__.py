"""Procedural phantoms of the knee: images drawn from known anatomy, so that grades, masks and lesion positions are known."""

from knee.phantom.mr import draw_mr_slice
from knee.phantom.radiograph import draw_radiograph
from knee.phantom.write import write_phantom

__all__ = ["draw_mr_slice", "draw_radiograph", "write_phantom"]
