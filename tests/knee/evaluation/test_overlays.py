import numpy as np
import pytest

from knee.evaluation.overlays import LEAST_PX, Look, case_panel, contact_sheet, enlarge, legend_strip, overlay, verdict
from knee.phantom.mr import draw_mr_slice

SLICE = draw_mr_slice(seed=0, patient=0, index=3)


def disc(size: int, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size] - size / 2 + 0.5
    return np.clip(1 - np.hypot(rows, columns) / (2 * radius), 0, 1).astype(np.float32)


def luminance(colour: np.ndarray) -> float:
    return float(colour @ [0.2126, 0.7152, 0.0722])


def test_no_attention_leaves_the_image_as_it_is() -> None:
    plain = overlay(SLICE.image, np.zeros((96, 96)))
    assert (plain == enlarge(SLICE.image)[..., None]).all()


def test_colour_grows_with_attention() -> None:
    grey = np.full((400, 400), 60, dtype=np.uint8)
    shades = [
        overlay(grey, np.full((400, 400), x, dtype=np.float32))[0, 0].astype(float) for x in np.linspace(0, 1, 30)
    ]
    saturation = [shade.max() - shade.min() for shade in shades]
    brightness = [luminance(shade) for shade in shades]
    assert all(np.diff(saturation) > -2) and saturation[0] == 0 and saturation[-1] > 100
    assert all(np.diff(brightness[10:]) > 0), "ordered by brightness too, for readers without colour vision"


def test_scale_is_fixed_not_stretched_to_the_image() -> None:
    grey = np.full((400, 400), 60, dtype=np.uint8)
    weak = np.zeros((400, 400))
    weak[100:200] = 0.3
    strong = weak.copy()
    strong[300:] = 1
    assert (overlay(grey, weak)[150] == overlay(grey, strong)[150]).all()


def test_the_image_stays_visible_under_full_attention() -> None:
    half = np.full((400, 400), 40, dtype=np.uint8)
    half[:, 200:] = 200
    drawn = overlay(half, np.ones((400, 400)))
    assert luminance(drawn[0, 300].astype(float)) - luminance(drawn[0, 100].astype(float)) > 40


@pytest.mark.parametrize(("side", "expected"), [(96, 384), (112, 448), (224, 448), (256, 512), (384, 384), (500, 500)])
def test_small_images_are_enlarged_by_a_whole_factor(side: int, expected: int) -> None:
    drawn = overlay(np.zeros((side, side // 2), dtype=np.uint8), np.zeros((side, side // 2)))
    assert drawn.shape == (expected, expected // side * (side // 2), 3) and expected >= LEAST_PX
    assert drawn.dtype == np.uint8


def test_contour_lies_where_f_crosses_one_half() -> None:
    image, f = np.full((400, 400), 100, dtype=np.uint8), (disc(400, 100) > 0.5).astype(np.float32)
    drawn = overlay(image, np.zeros((400, 400)), contour=f)
    changed = np.argwhere((drawn != 100).any(axis=2)) - 199.5
    distance = np.hypot(*changed.T)
    assert distance.min() > 95 and distance.max() < 105
    assert len(np.unique(np.degrees(np.arctan2(*changed.T)).astype(int) // 10)) == 36, "closed"


def test_cartilage_is_dashed_and_told_apart_from_the_contour() -> None:
    image, area = np.full((400, 400), 100, dtype=np.uint8), (disc(400, 100) > 0.5).astype(np.uint8)
    nothing = np.zeros((400, 400))
    solid = (overlay(image, nothing, contour=area) != 100).any(axis=2).sum()
    dashed = overlay(image, nothing, cartilage=area)
    assert 0.3 < (dashed != 100).any(axis=2).sum() / solid < 0.9
    colour = dashed[(dashed[..., 2].astype(int) - dashed[..., 0]) > 100]
    assert len(colour) > 50, "cyan, not white"


def test_empty_masks_draw_nothing() -> None:
    image, nothing = np.full((400, 400), 100, dtype=np.uint8), np.zeros((400, 400))
    assert (overlay(image, nothing, contour=nothing, cartilage=nothing) == 100).all()


def test_does_not_change_what_it_is_given() -> None:
    image, x = np.full((400, 400), 100, dtype=np.uint8), disc(400, 50)
    before = x.copy()
    overlay(image, x, contour=x, cartilage=x)
    assert (image == 100).all() and (x == before).all()


def test_panel_shows_the_plain_image_and_every_network() -> None:
    x = disc(96, 20)
    looks = [Look(x, x, "student: 1"), Look(x, x, "teacher: 2")]
    panel = case_panel(SLICE.image, looks, caption="case 7f3a", cartilage=SLICE.mask)
    assert panel.shape[1] == 3 * 384 + 2 * 8
    assert (panel[52 : 52 + 384, :384] == enlarge(SLICE.image)[..., None]).all()
    assert panel.shape[0] == 26 + 26 + 384 + 30
    assert case_panel(SLICE.image, looks[:1], caption="c", legend=False).shape == (26 + 26 + 384, 2 * 384 + 8, 3)


def test_a_long_caption_is_cut_and_not_wrapped() -> None:
    x = disc(96, 20)
    short, long = (case_panel(SLICE.image, [Look(x, x, "t" * n)], caption="c" * n) for n in (3, 4000))
    assert short.shape == long.shape


def test_sheet_holds_all_panels_over_one_legend() -> None:
    panels = [np.full((40, 800), number, dtype=np.uint8)[..., None].repeat(3, axis=2) for number in (50, 100, 150)]
    sheet = contact_sheet(panels, columns=2)
    assert sheet.shape == (2 * 40 + 16 + 30, 2 * 800 + 24, 3)
    assert (sheet[:40, :800] == 50).all() and (sheet[:40, 824:] == 100).all() and (sheet[56:96, :800] == 150).all()
    assert contact_sheet(panels[:1], columns=4).shape == (70, 800, 3)


def test_legend_fits_a_narrow_picture() -> None:
    wide, narrow = legend_strip(1000, cartilage=True), legend_strip(384, cartilage=True)
    assert wide.shape == (30, 1000, 3) and narrow.shape == (56, 384, 3)
    for strip in (wide, narrow):
        ground = strip[0, 0]
        assert (strip[:, -4:] == ground).all(), "nothing is cut off at the right"
    assert (legend_strip(1000, cartilage=False) != wide).any()


def test_verdict() -> None:
    assert verdict("student", 1, np.array([0.25, 0.75]), ("normal", "thin")) == "student: 1 thin (p 0.75)"


@pytest.mark.parametrize(
    ("image", "x", "message"),
    [
        (np.zeros((4, 4)), np.zeros((4, 4)), "uint8"),
        (np.zeros((4, 4, 3), dtype=np.uint8), np.zeros((4, 4)), r"must be \(H, W\)"),
        (np.zeros((4, 4), dtype=np.uint8), np.zeros((4, 5)), "attention .* image's shape"),
        (np.zeros((4, 4), dtype=np.uint8), np.full((4, 4), 2.0), r"attention must be in \[0, 1\]"),
        (np.zeros((4, 4), dtype=np.uint8), np.full((4, 4), np.nan), "attention must be"),
    ],
)
def test_refuses(image: np.ndarray, x: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        overlay(image, x)


def test_refuses_opacity_and_an_empty_sheet() -> None:
    with pytest.raises(ValueError, match="opacity"):
        overlay(SLICE.image, np.zeros((96, 96)), opacity=1.5)
    with pytest.raises(ValueError, match="0 panels"):
        contact_sheet([])
