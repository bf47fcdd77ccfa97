"""The written file holds every frame, or is not written."""

import itertools
import os
import stat
import sys
from pathlib import Path

import cv2
import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

import video
from files import UserError
from helpers import until

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()


def noise(count, height=16, width=24):
    """Frames of which no two are alike, but for every third, which is the one before again."""
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (height, width, 3), np.uint8) for _ in range(count)]
    return [frames[i - 1] if i % 3 == 2 else frame for i, frame in enumerate(frames)]


def program(path, source):
    """Make an executable of Python source."""
    path.write_text(f"#!{sys.executable}\nimport os, sys\n{source}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def path_folder(tmp_path, monkeypatch):
    """An empty folder, of whose ffmpeg videos are written."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(folder / "ffmpeg"))
    return folder


def decoded(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        pictures, durations = [], []
        for i in range(image.n_frames):
            image.seek(i)
            pictures.append(np.asarray(image.convert("RGB")))
            durations.append(image.info.get("duration"))
        return pictures, durations, image.info.get("loop")


@pytest.mark.parametrize("fps, count", [(30, 30), (12.5, 8), (5, 1)])
def test_video_holds_the_frames_without_loss(tmp_path, monkeypatch, fps, count):
    monkeypatch.chdir(tmp_path)
    out = Path("a:b/-out.png")  # for ffmpeg, an address
    out.parent.mkdir()
    frames = noise(60)
    video.write(iter(frames), out, fps, count)
    pictures, durations, loop = decoded(out)
    np.testing.assert_array_equal(pictures, frames[:count])
    if count > 1:  # one is a still picture
        assert loop == 0  # for ever
        assert sum(durations) == pytest.approx(1000 * count / fps, abs=1)
        assert max(durations) == pytest.approx(1000 / fps, abs=0.01)


def spots(count, height=48, width=64):
    """Frames of soft coloured spots on their way: what codecs are made for."""
    y, x = np.mgrid[:height, :width]
    return [np.stack([255 * np.exp(-((x - 10 - i - 9 * c) ** 2 + (y - 12 - 9 * c) ** 2) / 150) for c in range(3)], -1)
            .astype(np.uint8) for i in range(count)]


@pytest.mark.parametrize("ending, error", [(".png", 0), (".gif", 12), (".webp", 6), (".mp4", 6), (".webm", 6)])
@pytest.mark.parametrize("scale", [1, 3])
def test_every_format_holds_the_video(tmp_path, ending, error, scale):
    frames = spots(25)
    out = tmp_path / f"out{ending}"
    video.write(iter(frames), out, 12.5, 25, scale)
    if ending in (".mp4", ".webm"):
        capture = cv2.VideoCapture(str(out))
        assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(12.5)
        pictures = []
        while (read := capture.read())[0]:
            pictures.append(read[1][..., ::-1])
    else:
        with Image.open(out) as image:
            assert image.info["loop"] == 0  # for ever
            pictures, durations = [], []
            for i in range(image.n_frames):
                image.seek(i)
                image.load()
                durations.append(image.info["duration"])
                pictures.append(np.asarray(image.convert("RGB")))
            assert sum(durations) == pytest.approx(2000, abs=10)
    assert len(pictures) == 25
    for picture, frame in zip(pictures, frames, strict=True):
        assert picture.shape == (48 * scale, 64 * scale, 3)
        small = cv2.resize(picture, (64, 48), interpolation=cv2.INTER_AREA).astype(float)
        assert np.abs(small - frame).mean() <= error + (scale > 1)


@pytest.mark.parametrize("ending", video.FORMATS)
def test_a_video_may_stand_still(tmp_path, ending):
    video.write(itertools.repeat(spots(1)[0]), tmp_path / f"out{ending}", 30, 12)
    assert (tmp_path / f"out{ending}").stat().st_size


def test_video_takes_no_frame_too_many(tmp_path):
    frames = iter(noise(20))
    video.write(frames, tmp_path / "out.apng", fps=10, count=10)
    assert len(list(frames)) == 10


@pytest.mark.parametrize("source", [
    "sys.exit('[apng @ 0x1] no room.')",
    "sys.stdin.buffer.read(); print('[out#0] [apng] no room\\nConversion failed!', file=sys.stderr); sys.exit(1)",
    "print('no room\\n' * 100_000, file=sys.stderr); sys.exit(1)",
], ids=["at once", "at the end", "at length"])
def test_failing_ffmpeg_is_told_and_the_old_video_stays(tmp_path, path_folder, source):
    program(path_folder / "ffmpeg", source)
    out = tmp_path / "out.png"
    out.write_bytes(b"old")
    with pytest.raises(UserError) as error:
        video.write(itertools.cycle(noise(3, 64, 64)), out, fps=30, count=900)
    assert str(error.value) == f"{out} was not written: {path_folder / 'ffmpeg'} failed with: no room"
    assert out.read_bytes() == b"old"
    assert sorted(tmp_path.iterdir()) == [path_folder, out]


def test_ffmpeg_that_cannot_be_run_is_told(tmp_path, path_folder):
    program(path_folder / "ffmpeg", "")
    (path_folder / "ffmpeg").write_bytes(b"\x7fELF not really")
    with pytest.raises(UserError, match="cannot be run"):
        video.write(iter(noise(3)), tmp_path / "out.png", fps=30, count=3)
    assert list(tmp_path.iterdir()) == [path_folder]


def test_interrupted_video_leaves_nothing(tmp_path, path_folder):
    program(path_folder / "ffmpeg", f"open({str(path_folder / 'pid')!r}, 'w').write(str(os.getpid()))\n"
                                    "while sys.stdin.buffer.read(1): pass\nimport time; time.sleep(20)")

    def frames():
        yield from noise(3)
        until(lambda: (path_folder / "pid").exists() and (path_folder / "pid").read_text())
        raise KeyboardInterrupt

    out = tmp_path / "out.png"
    out.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        video.write(frames(), out, fps=30, count=900)
    assert out.read_bytes() == b"old"
    assert sorted(tmp_path.iterdir()) == [path_folder, out]
    with pytest.raises(ProcessLookupError):
        os.kill(int((path_folder / "pid").read_text()), 0)


@pytest.mark.parametrize("name, sentence", [
    ("out.avi", "out.avi has no ending of a known format: end it in one of .png, .apng, .gif, .webp, .mp4, .webm"),
    ("out", "out has no ending of a known format: end it in one of .png, .apng, .gif, .webp, .mp4, .webm"),
    ("missing/out.png", "out.png cannot be written (No such file or directory): give the video another folder"),
    ("file/out.png", "out.png cannot be written (Not a directory): give the video another folder"),
    ("folder.png", "folder.png is a folder: give the video another name"),
])
def test_a_video_that_cannot_be_written_is_told_early(tmp_path, name, sentence):
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UserError) as error:
        video.check(tmp_path / name, 30)
    assert str(error.value).endswith(sentence)
    assert str(tmp_path / name) in str(error.value)


@pytest.mark.parametrize("ending, most", [(".gif", 50), (".png", 90), (".apng", 90), (".webp", 90), (".mp4", 1000)])
def test_more_frames_a_second_than_browsers_show_are_refused(tmp_path, ending, most):
    video.check(tmp_path / f"out{ending}", most)
    if most < 1000:
        with pytest.raises(UserError, match=f"--fps {most + 1}: a {ending} shows at most {most} frames a second"):
            video.check(tmp_path / f"out{ending}", most + 1)


def test_a_video_in_the_current_folder_is_fine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    video.check("out.PNG", 30)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", video.FORMATS)
def test_an_ffmpeg_that_ends_early_without_an_error_is_told(tmp_path, path_folder, ending):
    program(path_folder / "ffmpeg", "i = sys.argv.index('-i')\n"
            f"os.execv({FFMPEG!r}, ['ffmpeg', *sys.argv[1:i + 2], '-t', '0.2', *sys.argv[i + 2:]])")
    out = tmp_path / f"out{ending}"
    out.write_bytes(b"old")
    for count in 10, 200:  # which fit into the pipe, or not
        with pytest.raises(UserError, match=r"out\.\w+ was not written: .* ended"):
            video.write(itertools.cycle(noise(10)), out, fps=30, count=count)
    assert out.read_bytes() == b"old"
    assert sorted(tmp_path.iterdir()) == [path_folder, out]


def test_an_ffmpeg_that_writes_nothing_is_told(tmp_path, path_folder):
    program(path_folder / "ffmpeg", "sys.stdin.buffer.read(); open(sys.argv[-1][5:], 'w').write('half')")
    with pytest.raises(UserError, match="ended after 0 of 3 frames"):
        video.write(iter(noise(3)), tmp_path / "out.mp4", fps=30, count=3)


def test_a_video_too_large_for_its_format_is_told(tmp_path):
    with pytest.raises(UserError, match=r"a video of 7200000000x4800000000 pixels is too large.*lower --scale"):
        video.write(iter(noise(3)), tmp_path / "out.png", fps=30, count=3, scale=300_000_000)
    assert not list(tmp_path.iterdir())
