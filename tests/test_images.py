"""utils.images: every kind of picture becomes upright uint8 RGB, every unusable file one clear error."""
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from utils.errors import UserError
from utils.images import list_images, read_image, read_mask, write_image

TRANSPOSES = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
              5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
              8: Image.Transpose.ROTATE_270}


@pytest.fixture
def picture():
    """An asymmetric uint8 (20, 30, 3) picture."""
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, picture, orientation):
    stored = Image.fromarray(picture)
    if orientation in TRANSPOSES:  # what the camera stored, such that the orientation tag undoes it
        stored = stored.transpose(TRANSPOSES[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "photo.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "photo.png"), picture)


def test_damaged_exif_costs_a_warning_not_the_picture(tmp_path, picture, monkeypatch, capsys):
    def fail(_):
        raise SyntaxError("not a TIFF file")

    write_image(tmp_path / "photo.png", picture)
    monkeypatch.setattr(Image.Image, "getexif", fail)
    np.testing.assert_array_equal(read_image(tmp_path / "photo.png"), picture)
    assert "photo.png: unreadable EXIF" in capsys.readouterr().err


def test_grey_and_bilevel(tmp_path, picture):
    grey = picture[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), np.repeat(grey[..., None], 3, axis=2))
    Image.fromarray(grey).convert("1").save(tmp_path / "bilevel.png")
    assert set(np.unique(read_image(tmp_path / "bilevel.png"))) == {0, 255}


def test_16_bit_grey_keeps_its_whole_range(tmp_path):
    values = np.linspace(0, 65535, 20 * 30).astype(np.uint16).reshape(20, 30)
    for name in ("deep.png", "deep.tif"):
        Image.fromarray(values).save(tmp_path / name)
        rgb = read_image(tmp_path / name)
        assert rgb.dtype == np.uint8 and rgb.min() == 0 and rgb.max() == 255
        np.testing.assert_allclose(rgb[..., 1], values / 257.0, atol=0.51)


def test_transparency_is_composited_on_white(tmp_path, picture):
    alpha = np.zeros((20, 30), np.uint8)
    alpha[:, 15:] = 255
    Image.fromarray(np.dstack([picture, alpha])).save(tmp_path / "cutout.png")
    rgb = read_image(tmp_path / "cutout.png")
    assert (rgb[:, :15] == 255).all()
    np.testing.assert_array_equal(rgb[:, 15:], picture[:, 15:])

    Image.fromarray(np.dstack([picture[..., 0], alpha])).save(tmp_path / "grey_alpha.png")
    rgb = read_image(tmp_path / "grey_alpha.png")
    assert (rgb[:, :15] == 255).all() and (rgb[:, 15:, 2] == picture[:, 15:, 0]).all()


def test_palette(tmp_path, picture):
    coarse = picture // 128 * 128
    palette = Image.fromarray(coarse).quantize(8)
    palette.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_image(tmp_path / "palette.png"), coarse)
    palette.save(tmp_path / "transparent.png", transparency=0)
    rgb = read_image(tmp_path / "transparent.png")
    assert (rgb[np.asarray(palette) == 0] == 255).all()


def test_cmyk_jpeg(tmp_path):
    Image.new("CMYK", (30, 20), (0, 255, 255, 0)).save(tmp_path / "print.jpg")
    assert np.abs(read_image(tmp_path / "print.jpg").astype(int) - (255, 0, 0)).max() < 8


def _bad_files(folder, picture):
    write_image(folder / "good.jpg", np.kron(picture, np.ones((8, 8, 1), np.uint8)))
    data = (folder / "good.jpg").read_bytes()
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "truncated.jpg").write_bytes(data[:len(data) // 2])
    (folder / "text.jpg").write_text("this is not a picture")
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    Image.fromarray(np.zeros((20, 30), np.float32)).save(folder / "float.tif")
    (folder / "folder.jpg").mkdir()


@pytest.mark.parametrize("name, words", [
    ("empty.jpg", "is empty"), ("truncated.jpg", "cannot be read"), ("text.jpg", "not a picture"),
    ("dot.png", "only 1x1"), ("float.tif", "floating-point"), ("folder.jpg", "is a folder"),
    ("absent.jpg", "does not exist")])
def test_unusable_files_are_one_clear_line(tmp_path, picture, name, words):
    _bad_files(tmp_path, picture)
    with pytest.raises(UserError, match=words) as caught:
        read_image(tmp_path / name)
    message = str(caught.value)
    assert str(tmp_path / name) in message and "\n" not in message


def test_decompression_bomb_is_refused_before_decoding(tmp_path, monkeypatch):
    Image.new("L", (300, 300)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("it was decoded"))
    monkeypatch.setattr("utils.images.MAX_PIXELS", 300 * 300 - 1)
    with pytest.raises(UserError, match="too large"):
        read_image(tmp_path / "bomb.png")


def test_a_jpeg_that_draws_the_picture_again_and_again_is_refused(tmp_path, picture):
    """A few kilobytes of empty scans would keep the decoder busy for hours at full size."""
    Image.fromarray(picture).resize((640, 480)).save(tmp_path / "good.jpg", progressive=True)
    data = (tmp_path / "good.jpg").read_bytes()
    read_image(tmp_path / "good.jpg")
    last = data.rindex(b"\xff\xda")
    (tmp_path / "bomb.jpg").write_bytes(data[:last] + data[last:-2] * 200 + data[-2:])
    with pytest.raises(UserError, match="more than 100 times"):
        read_image(tmp_path / "bomb.jpg")
    (tmp_path / "motion.jpg").write_bytes(data + b"\xff\xda" * 200)  # a phone's video behind the picture
    np.testing.assert_array_equal(read_image(tmp_path / "motion.jpg"), read_image(tmp_path / "good.jpg"))


def test_only_listed_decoders_are_tried(tmp_path, picture):
    """EPS would start Ghostscript."""
    Image.fromarray(picture).save(tmp_path / "a.eps")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.eps").read_bytes())
    with pytest.raises(UserError, match="not a picture"):
        read_image(tmp_path / "a.png")


def test_other_things_than_files_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", "/dev/zero"):
        with pytest.raises(UserError, match="no ordinary file"):
            read_image(path)


READ = """
import resource, sys
import numpy as np
from utils.images import read_image
from PIL import Image
Image.init()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
picture = read_image(sys.argv[1])
print(picture.shape[0] * picture.shape[1], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("kind, megapixels", [
    ("turned.jpg", 12),
    *(pytest.param(kind, 100, marks=pytest.mark.slow) for kind in ("turned.jpg", "transparent.png"))])
def test_memory_is_bounded(tmp_path, kind, megapixels):
    """At most 8 bytes a pixel and 40 MB: 840 MB for 100 megapixels, also turned or transparent."""
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.radial_gradient("L").resize((4000, 250 * megapixels)).convert("RGB")
    if kind == "transparent.png":
        picture.putalpha(100)
    picture.save(tmp_path / kind, exif=exif, compress_level=1)
    run = subprocess.run([sys.executable, "-c", READ, str(tmp_path / kind)], capture_output=True, text=True, check=True,
                         cwd=Path(__file__).parent.parent)
    pixels, kilobytes = map(int, run.stdout.split())
    assert pixels == megapixels * 10 ** 6
    assert kilobytes * 1024 <= 8 * pixels + 40 * 10 ** 6, kilobytes


def test_mask_threshold_size_and_polarity(tmp_path):
    grey = np.array([[0, 127, 128, 255]] * 4, np.uint8)
    Image.fromarray(grey).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), grey >= 128)
    doubled = read_mask(tmp_path / "mask.png", size=(8, 8))
    np.testing.assert_array_equal(doubled, np.kron(grey >= 128, np.ones((2, 2), bool)))
    assert read_mask(tmp_path / "mask.png", size=(100, 101)).shape == (100, 101)


@pytest.mark.parametrize("size, words", [
    ((256, 256), "178x218 pixels, its picture 256x256: a mask must show the whole"),
    ((178, 218), "the way up it is seen")])
def test_mask_of_another_shape_is_refused(tmp_path, size, words):
    """As one of CelebA's pictures is for an aligned crop of it."""
    Image.fromarray(np.full((218, 178), 255, np.uint8)).save(tmp_path / "mask.png")
    with pytest.raises(UserError, match=f"mask.png: the mask is .*{words}"):
        read_mask(tmp_path / "mask.png", size=size)


def test_mask_that_would_silently_hide_nothing_is_an_error(tmp_path):
    Image.fromarray(np.array([[0, 1]], np.uint8)).save(tmp_path / "ones.png")
    with pytest.raises(UserError, match="largest value is 1"):
        read_mask(tmp_path / "ones.png")
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "nothing.png")
    assert not read_mask(tmp_path / "nothing.png").any()


def test_written_png_is_exact_and_leaves_no_temporary(tmp_path, picture):
    write_image(tmp_path / "new" / "a.png", picture)
    np.testing.assert_array_equal(read_image(tmp_path / "new" / "a.png"), picture)
    write_image(tmp_path / "new" / "mask.png", picture[..., 0] > 100)
    np.testing.assert_array_equal(read_mask(tmp_path / "new" / "mask.png"), picture[..., 0] > 100)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["a.png", "mask.png"]


def test_failed_write_keeps_the_old_file(tmp_path, picture, monkeypatch):
    write_image(tmp_path / "a.png", picture)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("utils.images.os.replace", fail)
    with pytest.raises(UserError, match="No space left"):
        write_image(tmp_path / "a.png", 255 - picture)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), picture)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_write_refuses_other_suffixes(tmp_path, picture):
    with pytest.raises(UserError, match=".png or .jpg"):
        write_image(tmp_path / "a.xyz", picture)


@pytest.mark.parametrize("name, kind", [("a.avif", "AVIF"), ("a.jfif", "JPEG")])
def test_pictures_of_phones_and_browsers_are_read(tmp_path, picture, name, kind):
    Image.fromarray(picture).save(tmp_path / name, kind)
    assert read_image(list_images(tmp_path)[0]).shape == picture.shape


def test_list_images_is_sorted_and_skips_the_rest(tmp_path, picture):
    for name in ("b.JPG", "a.png", "sub/c.jpeg", ".hidden.png", ".cache/d.png", "d.avif", "e.jfif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("x")
    names = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path, recursive=True)]
    assert names == ["a.png", "b.JPG", "d.avif", "e.jfif", "sub/c.jpeg"]
    assert len(list_images(tmp_path)) == 4
    with pytest.raises(UserError, match="does not exist"):
        list_images(tmp_path / "absent")
