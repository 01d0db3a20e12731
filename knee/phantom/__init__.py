"""A procedural knee: images drawn from known anatomy, so that labels, masks and where to look are certain."""

from knee.phantom.mr import draw_mr_slice
from knee.phantom.radiograph import draw_radiograph
from knee.phantom.write import write_phantom

__all__ = ["draw_mr_slice", "draw_radiograph", "write_phantom"]
