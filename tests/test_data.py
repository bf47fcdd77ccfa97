"""Reading frames: every format comes through unchanged or is refused, the cache is never stale, memory is bounded."""

import importlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager, nullcontext
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

import data
import prepare
from config import Config
from files import UserError
from helpers import discs


def pictures(n, height=16, width=16):
    return np.random.default_rng(0).integers(0, 256, (n, height, width, 3), np.uint8)


def folder_of(tmp_path, frames, suffix=".png", **options):
    folder = tmp_path / "frames"
    folder.mkdir()
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"image{i + 1:07d}{suffix}", **options)
    return folder


def cache_of(tmp_path, n_frames, size=4):
    """A cache in which every number of frame i is i."""
    path = tmp_path / "cache.npy"
    np.save(path, np.broadcast_to(np.arange(n_frames, dtype=np.uint8)[:, None, None, None], (n_frames, size, size, 3)))
    return path


def take(n, *args, **options):
    batches = data.batches(*args, **options)
    return [next(batches) for _ in range(n)]


# --- images


def test_images_are_listed_in_the_order_of_names_without_hidden_and_other_files(tmp_path):
    for name in ("b.PNG", "a.jpg", "c.Jpeg", "d.webp", ".hidden.png", ".image.part", "notes.txt", "frames.json"):
        (tmp_path / name).touch()
    assert [path.name for path in data.images(tmp_path)] == ["a.jpg", "b.PNG", "c.Jpeg", "d.webp"]


def test_a_missing_or_empty_folder_holds_no_images(tmp_path):
    assert data.images(tmp_path) == data.images(tmp_path / "missing") == []
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match="holds no PNG, JPEG or WebP"):
            data.load(folder, 16)


def test_a_file_in_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "frames").touch()
    with pytest.raises(UserError, match="frames is a file"):
        data.images(tmp_path / "frames")


# --- load


def test_the_cache_holds_the_frames_in_order(tmp_path):
    frames = pictures(200)
    cache = data.load(folder_of(tmp_path, frames), 16)
    assert cache.parent == tmp_path and re.fullmatch(r"frames\.16\.[0-9a-f]{16}\.npy", cache.name)
    read = np.load(cache, allow_pickle=False)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, frames)


def test_frames_are_cut_square_in_the_middle_and_resized(tmp_path):
    frames = pictures(3, height=20, width=36)
    folder = folder_of(tmp_path, frames)
    middle = frames[:, :, 8:28]
    np.testing.assert_array_equal(np.load(data.load(folder, 20)), middle)
    means = middle.reshape(3, 10, 2, 10, 2, 3).mean((2, 4))
    assert np.abs(np.load(data.load(folder, 10)) - means).max() <= 1
    assert np.load(data.load(folder, 64)).shape == (3, 64, 64, 3)


def test_frames_that_have_to_be_enlarged_are_told(tmp_path, capsys):
    Image.new("RGB", (20, 12)).save(tmp_path / "image.png")
    data.load(tmp_path, 8)
    assert "enlarged" not in capsys.readouterr().out
    data.load(tmp_path, 16)
    assert "of 20x12 pixels are enlarged to 16x16" in capsys.readouterr().out


def test_jpeg_and_png_are_told_apart_by_their_content(tmp_path):
    smooth = np.tile(np.linspace(0, 255, 16, dtype=np.uint8)[:, None, None], (2, 1, 16, 3)) // np.uint8([1, 2, 4])
    folder = folder_of(tmp_path, smooth, ".jpg", quality=98)
    (folder / "image0000002.jpg").rename(folder / "image0000002.png")
    assert np.abs(np.load(data.load(folder, 16)).astype(int) - smooth).max() < 12


def test_the_cache_is_used_again_without_reading_an_image(tmp_path, monkeypatch):
    folder = folder_of(tmp_path, pictures(3))
    cache = data.load(folder, 16)
    monkeypatch.setattr(data, "decode", None)
    assert data.load(folder, 16) == cache
    assert data.load(str(folder) + "/", 16) == cache


@pytest.mark.usefixtures("at_once")
def test_a_cache_is_not_of_frames_of_another_origin(tmp_path):
    for seed in 0, 1:
        prepare.simulate(2, tmp_path / str(seed), 8, seed)
        for image in data.images(tmp_path / str(seed)):
            os.utime(image, (0, 0))  # as archives have it
    (tmp_path / "0").rename(tmp_path / "frames")
    first = np.load(data.load(tmp_path / "frames", 8))
    shutil.rmtree(tmp_path / "frames")
    (tmp_path / "1").rename(tmp_path / "frames")
    assert (np.load(data.load(tmp_path / "frames", 8)) != first).any()


@pytest.mark.parametrize("change", ["touched", "added", "removed", "renamed"])
def test_a_changed_folder_gets_a_new_cache_and_the_old_one_goes(tmp_path, change):
    folder = folder_of(tmp_path, pictures(4))
    old, other_size = data.load(folder, 16), data.load(folder, 8)
    users = tmp_path / "frames.16.mine.npy"
    users.touch()
    first, second = data.images(folder)[:2]
    if change == "touched":
        first.write_bytes(second.read_bytes())
        os.utime(first, ns=(0, second.stat().st_mtime_ns + 1))
    elif change == "added":
        Image.fromarray(pictures(1)[0]).save(folder / "image0000005.png")
    elif change == "removed":
        first.unlink()
    else:
        first.rename(folder / "later.png")
    new = data.load(folder, 16)
    assert new != old and not old.exists() and other_size.exists() and users.exists()
    np.testing.assert_array_equal(np.load(new), [np.asarray(Image.open(path)) for path in data.images(folder)])


def test_what_a_killed_run_left_is_removed_once_it_is_old(tmp_path):
    folder = folder_of(tmp_path, pictures(1))
    old, fresh = (tmp_path / f".frames.16.{'0' * 16}.npy.{pid}.part" for pid in (1, 2))
    old.touch()
    fresh.touch()
    os.utime(old, (0, 0))
    data.load(folder, 16)
    assert fresh.exists() and not old.exists()


@pytest.mark.parametrize("text", [
    "", "[]", "{}", "[" * 100_000, "null", '{"origin": {}, "complete": 1}', '{"origin": [], "complete": true}', "\xff",
    '{"origin": {}, "complete": true, "fps": "fast"}', '{"origin": {}, "complete": true, "fps": 1e999}',
    '{"origin": {}, "complete": true, "fps": 0}', '{"origin": {}, "complete": true, "fps": NaN}',
    '{"origin": {}, "complete": true, "source": 3}', '{"origin": {}, "complete": true, "lost": [[1, "many"]]}',
    '{"origin": {}, "complete": true, "lost": [3]}'])
def test_an_odd_record_is_none(tmp_path, text):
    (tmp_path / data.RECORD).write_text(text, encoding="latin-1")
    assert data.record(tmp_path) == {}


def test_a_record_always_tells_a_rate(tmp_path):
    (tmp_path / data.RECORD).write_text('{"origin": {}, "complete": true}')
    assert data.record(tmp_path)["fps"] == 30
    (tmp_path / data.RECORD).write_text('{"origin": {}, "complete": true, "fps": 59.94}')
    assert data.record(tmp_path)["fps"] == 59.94


def test_frames_still_being_written_are_refused(tmp_path):
    folder = folder_of(tmp_path, pictures(2))
    (folder / data.RECORD).write_text('{"origin": {}, "complete": false}')
    with pytest.raises(UserError, match="only part of its frames"):
        data.load(folder, 16)
    (folder / data.RECORD).unlink()
    assert len(np.load(data.load(folder, 16))) == 2


# --- what a folder may hold


def test_frames_are_in_the_order_people_count_in(tmp_path, capsys):
    for i in (1, 2, 3, 9, 10, 11, 20, 100):
        Image.new("RGB", (8, 8), (i, i, i)).save(tmp_path / f"frame{i}.png")
    Image.new("RGB", (8, 8), (15, 15, 15)).save(tmp_path / "frame012.PNG")
    cache = data.load(tmp_path, 8, tmp_path / "cache")
    assert np.load(cache)[:, 0, 0, 0].tolist() == [1, 2, 3, 9, 10, 11, 15, 20, 100]
    assert "9 frames, frame1.png to frame100.png" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["frame\udce9.png", "two\nlines.png", "[a] b.png", "f" * 251 + ".png"])
def test_names_of_frames_may_hold_anything(tmp_path, name):
    Image.fromarray(pictures(1)[0]).save(tmp_path / "frame.png")
    (tmp_path / "frame.png").rename(tmp_path / name)
    np.testing.assert_array_equal(np.load(data.load(tmp_path, 16, tmp_path / "cache")), pictures(1))


@pytest.mark.parametrize("kind", ["dangling", "loop", "fifo", "device", "sparse", "folder"])
def test_only_regular_files_are_frames(tmp_path, kind):
    folder = folder_of(tmp_path, pictures(3))
    path = folder / "image0000002.png"
    path.unlink()
    if kind in ("dangling", "loop", "device"):
        path.symlink_to({"dangling": "missing.png", "loop": path.name, "device": "/dev/zero"}[kind])
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        with open(path, "wb") as file:
            file.truncate(30 * 10**9)
    with pytest.raises(UserError, match=r"image0000002\.png (cannot be read|is no regular file)"):
        data.load(folder, 16)


def test_a_link_to_a_frame_is_one(tmp_path):
    folder = folder_of(tmp_path, pictures(2))
    (folder / "image0000002.png").rename(tmp_path / "elsewhere.png")
    (folder / "image0000002.png").symlink_to(tmp_path / "elsewhere.png")
    np.testing.assert_array_equal(np.load(data.load(folder, 16)), pictures(2))


# --- where the cache lies


@contextmanager
def unprivileged():
    """As somebody who may not do everything."""
    importlib.import_module("mmap")  # NumPy does so late, and this user may not be allowed to read Python's folder
    mine = os.geteuid()
    if mine == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(mine)


@pytest.fixture
def public():
    """A folder that also others than its owner may see; only the owner may write there."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def test_a_folder_that_cannot_be_read_is_named(public):
    folder = folder_of(public, pictures(1))
    folder.chmod(0)
    with unprivileged(), pytest.raises(UserError, match=r"the folder .*frames cannot be read: Permission denied"):
        data.images(folder)
    folder.chmod(0o755)
    (folder / "image0000001.png").chmod(0)
    with unprivileged(), pytest.raises(UserError, match=r"image0000001\.png cannot be read: Permission denied"):
        data.load(folder, 16)


@pytest.mark.parametrize("why", ["not allowed", "full"])
def test_where_the_cache_cannot_lie_beside_its_folder_it_lies_with_the_users(public, monkeypatch, capsys, why):
    folder, home = folder_of(public, pictures(2)), public / "home"
    home.mkdir()
    home.chmod(0o777)
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    if why == "not allowed":
        public.chmod(0o555)
    else:
        usage, full = shutil.disk_usage, shutil.disk_usage("/")._replace(free=100)
        monkeypatch.setattr(shutil, "disk_usage", lambda place: full if place == public else usage(place))
    with unprivileged() if why == "not allowed" else nullcontext():
        cache = data.load(folder, 16)
        assert cache.parent == home / "duralava"
        assert f"reading the frames into {home / 'duralava'}" in capsys.readouterr().out
        assert data.load(folder, 16) == cache  # found again, without a word
        assert "reading" not in capsys.readouterr().out
    assert sorted(path.name for path in public.iterdir()) == ["frames", "home"]
    np.testing.assert_array_equal(np.load(cache), pictures(2))


def test_a_place_for_the_cache_can_be_named(tmp_path):
    one, other = folder_of(tmp_path, pictures(2)), tmp_path / "other" / "frames"
    shutil.copytree(one, other)
    caches = [data.load(folder, 16, tmp_path / "caches" / "here") for folder in (one, other)]
    assert len(set(caches)) == 2 and all(cache.exists() and cache.parent.name == "here" for cache in caches)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file cannot be written: .*--cache_dir"):
        data.load(one, 16, tmp_path / "file")


def test_the_cache_of_a_folder_with_a_long_name_lies_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    folder = folder_of(tmp_path, pictures(2)).rename(tmp_path / ("f" * 255))
    assert data.load(folder, 16).parent == tmp_path / "caches" / "duralava"


# --- formats


def saved(tmp_path, image, name="image1.png", **options):
    folder = tmp_path / "frames"
    folder.mkdir(exist_ok=True)
    image.save(folder / name, **options)
    return folder


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGBA", "LA"])
def test_what_loses_nothing_is_converted(tmp_path, mode):
    image = Image.fromarray(pictures(1)[0]).convert(mode)
    read = np.load(data.load(saved(tmp_path, image), 16))
    np.testing.assert_array_equal(read[0], np.asarray(image.convert("RGB")))


def test_16_bits_that_are_8_bits_widened_are_narrowed(tmp_path):
    frame = pictures(1)[0]
    folder = folder_of(tmp_path, [frame])
    cv2.imwrite(str(folder / "image0000001.png"), frame[..., ::-1].astype(np.uint16) * 257)
    np.testing.assert_array_equal(np.load(data.load(folder, 16))[0], frame)


@pytest.mark.parametrize("kind", ["16-bit", "RGBA", "palette", "colour key"])
def test_what_would_lose_something_is_refused(tmp_path, kind):
    image = Image.fromarray(pictures(1)[0])
    options = {}
    if kind == "16-bit":
        image, reason = Image.fromarray(np.full((16, 16), 258, np.uint16)), "more than 8 bits"
    else:
        reason = "transparent"
    if kind == "RGBA":
        image.putalpha(254)
    elif kind == "palette":
        image = image.convert("P")
        options = dict(transparency=image.getpixel((0, 0)))
    elif kind == "colour key":
        options = dict(transparency=image.getpixel((0, 0)))
    with pytest.raises(UserError, match=rf"image1\.png .*{reason}"):
        data.load(saved(tmp_path, image, **options), 16)


def test_mixed_sizes_are_refused(tmp_path):
    folder = folder_of(tmp_path, pictures(3))
    saved(tmp_path, Image.new("RGB", (16, 18)), "image0000002.png")
    with pytest.raises(UserError, match=r"image0000002\.png is 16x18 .*image0000001\.png is 16x16"):
        data.load(folder, 16)
    assert list(tmp_path.iterdir()) == [folder]  # no cache, whole or half


@pytest.mark.parametrize("share", [0, 0.0005, 0.01, 0.3, 0.5, 0.9, 0.99, 0.9995])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_a_file_cut_short_is_refused_without_noise(tmp_path, capfd, suffix, share):
    folder = folder_of(tmp_path, pictures(3, 64, 64), suffix)
    path = data.images(folder)[1]
    path.write_bytes(path.read_bytes()[:int(share * path.stat().st_size)])
    with pytest.raises(UserError, match=rf"image0000002\{suffix} .*"):
        data.load(folder, 64)
    printed = re.sub(r"reading frames: .*?frame/s\]|\s", "", capfd.readouterr().err)
    assert not re.search("(?i)error|warn|jpeg|libpng|end", printed)


def test_a_damaged_png_and_a_file_of_another_kind_are_refused(tmp_path):
    folder = folder_of(tmp_path, pictures(2))
    path = data.images(folder)[1]
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 255
    path.write_bytes(whole)
    with pytest.raises(UserError, match=r"image0000002\.png is empty, cut short or damaged"):
        data.load(folder, 16)
    path.write_bytes(b"GIF89a" + bytes(100))
    with pytest.raises(UserError, match=r"image0000002\.png is neither PNG, JPEG nor WebP"):
        data.load(folder, 16)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_bytes_after_the_end_of_an_image_do_not_matter(tmp_path, suffix):
    folder = folder_of(tmp_path, pictures(1, 32, 32), suffix)
    before = np.load(data.load(folder, 32))
    path = data.images(folder)[0]
    for more in (b"\n", b"\0" * 1000, b"trailer of a phone" * 99):
        path.write_bytes(path.read_bytes() + more)
        np.testing.assert_array_equal(np.load(data.load(folder, 32)), before)


@pytest.mark.parametrize("options", [{}, dict(progressive=True), dict(subsampling=0), dict(restart_marker_rows=1)])
@pytest.mark.parametrize("filler", [b"", b"\0" * 500])
def test_a_jpeg_with_a_hole_is_refused_though_its_end_is_there(tmp_path, options, filler):
    folder = folder_of(tmp_path, pictures(3, 64, 64), ".jpg", **options)
    path = data.images(folder)[1]
    content = path.read_bytes()
    scan = content.rfind(b"\xff\xda")  # the last: without it a progressive JPEG is whole, but coarse
    path.write_bytes(content[:(scan + len(content)) // 2] + filler + b"\xff\xd9")
    with pytest.raises(UserError, match=r"image0000002\.jpg is empty, cut short or damaged"):
        data.load(folder, 64)


def test_a_jpeg_whose_scan_has_the_parameters_of_some_cameras_is_whole(tmp_path):
    folder = folder_of(tmp_path, pictures(1), ".jpg")
    path, frame = folder / "image0000001.jpg", np.load(data.load(folder, 16))
    content = bytearray(path.read_bytes())
    scan = content.find(b"\xff\xda")
    content[scan + 5 + 2 * content[scan + 4] + 1] = 0  # its last coefficient, in place of 63
    path.write_bytes(content)
    np.testing.assert_array_equal(np.load(data.load(folder, 16)), frame)


def test_a_jpeg_with_a_few_bytes_too_many_before_its_end_is_whole(tmp_path):
    folder = folder_of(tmp_path, pictures(1, 32, 32), ".jpg")
    before = np.load(data.load(folder, 32))
    path = data.images(folder)[0]
    path.write_bytes(path.read_bytes()[:-2] + bytes(3) + b"\xff\xd9")
    np.testing.assert_array_equal(np.load(data.load(folder, 32)), before)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8, 99])
def test_images_are_the_way_up_that_they_say(tmp_path, suffix, orientation):
    image = Image.fromarray(cv2.resize(pictures(1, 4, 4)[0], (32, 32), interpolation=cv2.INTER_CUBIC))
    exif = Image.Exif()
    exif[0x112] = orientation
    options = dict(lossless=True) if suffix == ".webp" else dict(quality=95) if suffix == ".jpg" else {}
    folder = saved(tmp_path, image, f"image1{suffix}", exif=exif, **options)
    wanted = ImageOps.exif_transpose(Image.open(folder / f"image1{suffix}")).convert("RGB")
    np.testing.assert_allclose(np.load(data.load(folder, 32))[0], np.asarray(wanted), atol=2)


def test_webp_is_read(tmp_path):
    frames = pictures(3)
    np.testing.assert_array_equal(np.load(data.load(folder_of(tmp_path, frames, ".webp", lossless=True), 16)), frames)


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_an_animated_image_among_frames_is_named(tmp_path, suffix):
    folder = folder_of(tmp_path, pictures(2))
    first, *others = (Image.fromarray(frame) for frame in pictures(4))
    first.save(folder / f"image0000003{suffix}", save_all=True, append_images=others, duration=100)
    way_out = "convert it to a GIF and take" if suffix == ".webp" else "take"
    with pytest.raises(UserError, match=rf"image0000003\{suffix} is animated; {way_out} it apart with --mode prepare"):
        data.load(folder, 16)


# --- batches


def test_clips_are_frames_every_nth_apart(tmp_path):
    cache = cache_of(tmp_path, 100, size=4)
    for batch in take(30, cache, 3, 5, 6, seed=0):
        assert batch.shape == (3, 5, 4, 4, 3) and batch.dtype == np.uint8 and type(batch) is np.ndarray
        assert (np.diff(batch[..., 0, 0, 0].astype(int)) == 6).all()
        assert (batch == batch[:, :, :1, :1, :1]).all()


def test_lag_distances_are_shares_of_that_of_independent_frames(tmp_path):
    angle = 2 * np.pi * np.arange(600) / 60  # a turn takes 60 frames: two numbers that go round a circle
    turning = np.full((600, 16, 16, 3), 128, np.uint8)
    turning[:, :8], turning[:, 8:] = (np.uint8(np.round(128 + 100 * wave))[:, None, None, None]
                                      for wave in (np.cos(angle), np.sin(angle)))
    np.save(tmp_path / "turning.npy", turning)
    shares = data.lag_distances(tmp_path / "turning.npy", [3, 15, 30])
    for lag, share in shares.items():  # a chord, by that of independent places
        assert share == pytest.approx(np.sqrt(2) * np.sin(np.pi * lag / 60), abs=0.01)


def test_footage_says_how_many_frames_make_a_step_and_whether_it_is_augmented(tmp_path):
    footage, cache = discs(8000, 16), tmp_path / "cache.npy"

    def suited(frames):
        np.save(cache, frames)
        return data.suited(cache)

    measured, lag = suited(footage)
    assert measured["augment"], "a few minutes"
    slower, later = suited(footage.repeat(4, axis=0))
    assert 4 * measured["every_nth"] <= slower["every_nth"] < 4 * (measured["every_nth"] + 1)
    assert later == pytest.approx(4 * lag, rel=0.2)
    assert suited(footage[::8])[0]["every_nth"] == 1
    periodic = np.tile(np.concatenate([footage[:99], footage[98::-1]]), (20, 1, 1, 1))
    assert suited(periodic)[0]["every_nth"] <= measured["every_nth"], "though after 198 frames they are the same again"
    short, _ = suited(footage[:50 * lag])
    assert short == dict(every_nth=measured["every_nth"], augment=True, steps=10 * round(data.STEPS / 10 * 50**0.5))
    hour, _ = suited(np.tile(footage, (10, 1, 1, 1)))
    assert (hour["steps"], hour["augment"]) == (Config().steps, False), "the most"
    assert data.suited(cache, 120, steps=10 * Config().steps)[0]["augment"], "if it shows each frame as often"
    assert suited(slow := footage.repeat(40, axis=0)[:800])[0]["every_nth"] == len(slow) // 40
    for still in np.zeros((300, 16, 16, 3), np.uint8), footage[:1], footage[:2]:
        measured, lag = suited(still)
        assert (lag is None) == (len(still) != 2), "at no lag are they independent"
        assert measured["every_nth"] >= 1 and measured["steps"] == 2 * data.STEPS


def test_batches_per_epoch_is_the_original_recipe():
    assert data.batches_per_epoch(909, 32, 20, 6) == 1
    assert data.batches_per_epoch(108_000, 32, 20, 6) == 168
    assert data.batches_per_epoch(7, 32, 5, 6) == 1


def test_an_epoch_repeats_no_place_and_the_next_has_another_order(tmp_path):
    cache, n = cache_of(tmp_path, 200), data.batches_per_epoch(200, 4, 3, 2)
    epochs = [np.concatenate(take(n, cache, 4, 3, 2, seed=0, start=epoch * n))[:, 0, 0, 0, 0] for epoch in range(2)]
    assert n > 10 and all(len(set(epoch)) == n * 4 for epoch in epochs)
    assert not np.array_equal(*epochs)


@pytest.mark.parametrize("start", [1, 5, 16, 40])
def test_a_resumed_run_sees_what_the_unbroken_one_would_have(tmp_path, start):
    cache = cache_of(tmp_path, 200)
    unbroken = take(start + 20, cache, 4, 3, 2, seed=7)
    np.testing.assert_array_equal(unbroken[start:], take(20, cache, 4, 3, 2, seed=7, start=start))


def test_another_seed_is_another_order(tmp_path):
    cache = cache_of(tmp_path, 200)
    assert not np.array_equal(take(5, cache, 4, 3, 2, seed=0), take(5, cache, 4, 3, 2, seed=1))


def test_fewer_places_than_a_batch_are_used_equally(tmp_path):
    cache = cache_of(tmp_path, 13)  # 13 - 2 * 5 = 3 places
    batch, = take(1, cache, 8, 3, 5, seed=0)
    places, uses = np.unique(batch[:, 0, 0, 0, 0], return_counts=True)
    assert list(places) == [0, 1, 2] and sorted(uses) == [2, 3, 3]


def test_too_few_frames_for_one_clip_are_refused_at_once(tmp_path):
    cache = cache_of(tmp_path, 24)
    with pytest.raises(UserError, match=r"holds 24 frames and a clip takes 25"):
        data.batches(cache, 1, 5, 6, seed=0)
    assert take(1, cache_of(tmp_path, 25), 2, 5, 6, seed=0)[0].shape[0] == 2


def test_batches_outlive_the_removal_of_their_cache(tmp_path):
    cache = cache_of(tmp_path, 100)
    batches = data.batches(cache, 2, 3, 2, seed=0)
    first = next(batches)
    cache.unlink()
    assert next(batches).shape == first.shape


def test_a_cache_cut_short_in_use_is_noticed(tmp_path):
    cache = cache_of(tmp_path, 100)
    batches = data.batches(cache, 2, 3, 2, seed=0)
    next(batches)
    os.truncate(cache, 128)
    with pytest.raises(UserError, match="was cut short"):
        next(batches)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc/self/status, which only Linux has")
def test_memory_does_not_grow_with_the_data_set(tmp_path):
    """As many frames are read as a 295 MB cache holds; the process never grows by 20 MB."""
    cache = tmp_path / "cache.npy"
    with open(cache, "wb") as file:
        shape = (24_000, 64, 64, 3)
        np.lib.format.write_array_header_1_0(file, dict(descr="|u1", fortran_order=False, shape=shape))
        file.truncate(file.tell() + 24_000 * 64 * 64 * 3)  # zeros that take no space on the disk
    script = """
import sys, data
def peak():
    return 1024 * int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
batches = data.batches(sys.argv[1], 24, 5, 6, seed=0)
next(batches)
before = peak()
seen = 0
while seen < 24_000:
    seen += next(batches)[..., 0, 0, 0].size
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", script, cache], cwd=Path(data.__file__).parent, check=True,
                          capture_output=True, text=True)
    assert int(done.stdout) < 20e6


def test_background_is_the_mean_frame_and_where_pixels_change(tmp_path):
    footage = np.full((60, 8, 8, 3), 100, np.uint8)
    footage[::2, 4:] = 140
    footage[::2, 3, :, 0] = 101  # noise of a camera
    np.save(tmp_path / "footage.npy", footage)
    mean, mask = data.background(tmp_path / "footage.npy")
    np.testing.assert_allclose(mean, footage.mean(0) / 255, atol=1e-6)
    assert mask.shape == (8, 8, 1)
    assert (mask[4:] == 1).all()
    assert (mask[:3] == 0).all()
    assert (mask[3] > 0).all()
    assert (mask[3] < 0.02).all()


def test_a_clip_may_begin_wherever_it_fits(tmp_path):
    np.save(tmp_path / "footage.npy", np.arange(200, dtype=np.uint8)[:, None, None, None].repeat(3, -1))
    batch = next(data.batches(tmp_path / "footage.npy", 588, 3, 2, 0))  # three times each of the 196 places
    firsts = batch[:, 0, 0, 0, 0].astype(int)
    np.testing.assert_array_equal(np.diff(batch[..., 0, 0, 0].astype(int)), 2)
    assert batch.shape == (588, 3, 1, 1, 3)
    assert firsts.min() == 0
    assert firsts.max() == 195, "also the last frames are seen"


def test_a_png_with_a_damaged_chunk_is_told_in_silence(tmp_path, capfd):
    whole = cv2.imencode(".png", np.arange(768, dtype=np.uint8).reshape(16, 16, 3))[1].tobytes()
    for place in (20, whole.index(b"IDAT") + 9, len(whole) - 20, len(whole) - 2):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        (tmp_path / "a.png").write_bytes(damaged)
        with pytest.raises(UserError, match="damaged"):
            data.decode(tmp_path / "a.png")
    assert capfd.readouterr().err == ""
    (tmp_path / "a.png").write_bytes(whole[:33] + b"\0\0\0\3tEXta\0b\0\0\0\0" + whole[33:])  # which no decoder needs
    assert data.decode(tmp_path / "a.png").shape == (16, 16, 3)
