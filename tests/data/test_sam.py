"""Overlays of SAM masks: drawing, reading, the published layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from langdepth.cli import main
from langdepth.data.masks import draw_masks, read_overlay
from langdepth.data.overlays import overlay_names
from langdepth.data.tools.sam import (
    ENCODER_WIDTHS,
    load_sam,
    masks_of,
    write_overlays,
)
from langdepth.errors import CheckpointError, ImageError, LangdepthError, UsageError
from langdepth.prediction.inputs import images_below


def photo(height: int = 48, width: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def halves(image: np.ndarray) -> np.ndarray:
    """Two masks: the left three quarters, and the top left quarter inside them."""
    masks = np.zeros((2, *image.shape[:2]), bool)
    masks[0, : image.shape[0] // 2, : image.shape[1] // 2] = True
    masks[1, :, : 3 * image.shape[1] // 4] = True
    return masks


def test_masks_are_translucent_and_small_ones_lie_on_top() -> None:
    image = photo()
    drawn = draw_masks(image, halves(image))
    assert np.array_equal(drawn[:, 48:], image[:, 48:])
    paint = (drawn.astype(float) - 0.65 * image) / 0.35  # SAM's notebook draws so
    small, large = paint[:24, :32].reshape(-1, 3), paint[24:, :48].reshape(-1, 3)
    assert small.std(0).max() < 2
    assert large.std(0).max() < 2
    assert np.abs(small.mean(0) - large.mean(0)).max() > 10


def test_no_mask_leaves_the_image() -> None:
    image = photo()
    assert np.array_equal(draw_masks(image, np.zeros((0, *image.shape[:2]), bool)), image)


def test_masks_of_another_size_are_refused() -> None:
    with pytest.raises(ImageError, match=r"\(1, 5, 5\) do not fit an image of 64x48"):
        draw_masks(photo(), np.ones((1, 5, 5), bool))


def test_an_overlay_is_brought_to_the_size_of_its_photo(tmp_path: Path) -> None:
    Image.new("L", (32, 32), 90).save(tmp_path / "grey.png")
    overlay = read_overlay(tmp_path / "grey.png", photo())
    assert overlay.shape == (48, 64, 3)
    assert (overlay == 90).all()


def test_stored_masks_are_drawn(tmp_path: Path) -> None:
    image = photo()
    np.savez_compressed(tmp_path / "00001.npz", masks=halves(image))
    overlay = read_overlay(tmp_path / "00001.npz", image)
    assert np.array_equal(overlay[:, 48:], image[:, 48:])
    assert not np.array_equal(overlay, image)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not an archive"])
def test_damaged_masks_are_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(ImageError, match=r"bad\.npz: not a file of masks \(it is damaged, truncated or "):
        read_overlay(tmp_path / "bad.npz", photo())


def test_the_published_layout() -> None:
    photo = Path("train/kitchen/rgb_00045.jpg")
    assert overlay_names([photo]) == {photo: Path("train/kitchen/00045.jpg")}


def test_overlays_are_written_resumed_and_bad_photos_reported(tmp_path: Path) -> None:
    photos, out = tmp_path / "photos" / "kitchen", tmp_path / "photos" / "sam_out"
    photos.mkdir(parents=True)
    Image.fromarray(photo()).save(photos / "rgb_00001.jpg")
    (photos / "rgb_00002.jpg").write_text("no image")

    root = tmp_path / "photos"

    def run(resume: bool) -> list[object]:
        return list(write_overlays(root, out, halves, images_below(root, out)[0], resume=resume))

    first = run(resume=False)
    assert first[0] == out / "kitchen" / "00001.jpg"
    assert "rgb_00002.jpg" in str(first[1])
    assert Image.open(first[0]).size == (64, 48)
    assert [type(outcome) for outcome in run(resume=True)] == [ImageError]
    assert sorted(f.name for f in out.rglob("*.*")) == ["00001.jpg", "overlays.csv"]


def test_nothing_to_do_and_photos_in_the_way(tmp_path: Path) -> None:
    with pytest.raises(LangdepthError, match="no images in this folder"):
        images_below(tmp_path, tmp_path / "out")
    with pytest.raises(LangdepthError, match=r"\*\.jpg: no images match"):
        images_below(tmp_path, tmp_path / "out", "**/*.jpg")
    with pytest.raises(LangdepthError, match="none: no such folder"):
        images_below(tmp_path / "none", tmp_path / "out")
    with pytest.raises(UsageError, match="among the photos"):
        list(write_overlays(tmp_path, tmp_path, halves, []))


def test_a_file_that_is_not_sam_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("segment_anything")
    torch.save({"weight": torch.ones(3)}, tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("hello")
    for name, message in (
        ("other.pth", "not SAM's weights"),
        ("text.pth", "not a checkpoint"),
        ("none.pth", "no such file"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_sam(tmp_path / name)
        assert main(["data", "sam", str(tmp_path), "--weights", str(tmp_path / name)]) == 1
        assert message in capsys.readouterr().err


def test_sam_itself_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small SAM with random weights: its masks have the image's size."""
    package = pytest.importorskip("segment_anything")
    from segment_anything import modeling

    torch.manual_seed(0)
    encoder = modeling.ImageEncoderViT(img_size=64, patch_size=16, embed_dim=16, depth=1, num_heads=2, out_chans=16)
    prompts = modeling.PromptEncoder(16, (4, 4), (64, 64), 4)
    decoder = modeling.MaskDecoder(
        transformer_dim=16, transformer=modeling.TwoWayTransformer(1, 16, 2, 16), num_multimask_outputs=3
    )
    model = modeling.Sam(encoder, prompts, decoder).eval()
    generator = package.SamAutomaticMaskGenerator(
        model, points_per_side=2, pred_iou_thresh=-100.0, stability_score_thresh=-1.0
    )
    masks = masks_of(generator)(photo())
    assert masks.dtype == bool
    assert masks.shape[1:] == (48, 64)
    assert draw_masks(photo(), masks).shape == (48, 64, 3)


def test_the_sizes_of_sam_are_distinguished_by_their_width() -> None:
    package = pytest.importorskip("segment_anything")
    for kind, build in package.sam_model_registry.items():
        if kind != "default":
            with torch.device("meta"):
                width = build().image_encoder.pos_embed.shape[-1]
            assert ENCODER_WIDTHS[width] == kind
