"""Writing frames: each one of a video or of the simulated lamp, never half, never mixed, and nothing lost unasked."""

import itertools
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import data
import prepare
from files import UserError

LAVA_LAMP = Path(__file__).parents[2] / "shared" / "footage" / "lava_lamp.mp4"


def video_of(path, n_frames=40, width=64, height=48, fps=25):
    """A video whose left half is red and whose right half is blue; frame i has brightness 4 i + 60."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), fps, (width, height))
    for i in range(n_frames):
        frame = np.zeros((height, width, 3), np.uint8)
        frame[:, :width // 2, 2] = frame[:, width // 2:, 0] = min(255, 4 * i + 60)
        writer.write(frame)
    writer.release()
    return path


def read(folder):
    return np.stack([np.asarray(Image.open(path)) for path in data.images(folder)])


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


# --- prepare


def test_every_frame_is_written_square_in_rgb_and_noted(tmp_path):
    video, folder = video_of(tmp_path / "lamp.avi"), tmp_path / "new" / "frames"
    noted = prepare.prepare(video, folder, 16)
    assert [path.name for path in data.images(folder)] == [f"image{i + 1:07d}.png" for i in range(40)]
    frames = read(folder).astype(int)
    assert frames.shape == (40, 16, 16, 3)
    brightness = np.arange(40)[:, None, None] * 4 + 60
    assert np.abs(frames[:, :, :7, 0] - brightness).max() < 12 and frames[:, :, :7, 2].max() < 12
    assert np.abs(frames[:, :, 9:, 2] - brightness).max() < 12 and frames[:, :, 9:, 0].max() < 12
    assert noted == data.record(folder) == json.loads((folder / data.RECORD).read_text())
    assert noted["source"] == "lamp.avi" and noted["fps"] == 25
    assert noted["n_frames"] == 40 and noted["complete"] is True
    assert noted["origin"]["kind"] == "video" and noted["origin"]["img_size"] == 16
    assert noted["origin"]["crop"] == [8, 0, 48, 48]  # the square in the middle
    assert set(contents(folder)) == {path.name for path in data.images(folder)} | {data.RECORD}


def test_the_frames_load(tmp_path):
    prepare.prepare(video_of(tmp_path / "lamp.avi"), tmp_path / "frames", 16)
    np.testing.assert_array_equal(np.load(data.load(tmp_path / "frames", 16)), read(tmp_path / "frames"))


@pytest.mark.parametrize("crop, square", [((0, 4, 32, 32), [0, 4, 32, 32]), ((32, 0, 16, 48), [32, 16, 16, 16])])
@pytest.mark.parametrize("img_size", [8, 16, 64])
def test_a_crop_is_taken_and_cut_square_in_its_middle(tmp_path, crop, square, img_size):
    noted = prepare.prepare(video_of(tmp_path / "lamp.avi", 3), tmp_path / "frames", img_size, crop)
    assert noted["origin"]["crop"] == square
    frames = read(tmp_path / "frames")
    assert frames.shape == (3, img_size, img_size, 3)
    left = crop[0] < 32
    # Away from the edge between the colours, which the JPEG frames of the video blur, only one of them is seen.
    inner = frames[:, :, :img_size // 2] if left else frames[:, :, img_size // 2:]
    assert (inner[..., 0 if left else 2] > 40).all() and (inner[..., 2 if left else 0] < 20).all()


@pytest.mark.parametrize("crop", [(0, 0, 65, 10), (60, 0, 10, 10), (0, 40, 10, 10), (-1, 0, 10, 10), (0, 0, 0, 10)])
def test_a_crop_outside_the_picture_is_refused(tmp_path, crop):
    with pytest.raises(UserError, match=r"--crop .* reaches out of the 64x48 pixels"):
        prepare.prepare(video_of(tmp_path / "lamp.avi", 2), tmp_path / "frames", 16, crop)
    assert not (tmp_path / "frames").exists()


def test_shrinking_averages(tmp_path):
    checks = np.indices((16, 16)).sum(0)[..., None].repeat(3, 2).astype(np.uint8) % 2 * 200
    assert np.abs(data.fit(checks, (0, 0, 16, 16), 8).astype(int) - 100).max() <= 1


@pytest.mark.parametrize("content", [b"", b"no video " * 1000])
def test_what_is_not_a_video_is_refused_without_noise(tmp_path, capfd, content):
    path = tmp_path / "lamp.mp4"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"lamp\.mp4 is not a video"):
        prepare.prepare(path, tmp_path / "frames", 16)
    assert capfd.readouterr().err == ""
    assert not (tmp_path / "frames").exists()


def test_a_missing_video_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "missing.mp4", tmp_path):
        with pytest.raises(UserError, match="is not there, or is not a file"):
            prepare.prepare(path, tmp_path / "frames", 16)


def test_of_a_truncated_video_what_can_be_read_is_taken(tmp_path):
    video = video_of(tmp_path / "lamp.avi")
    whole = prepare.prepare(video, tmp_path / "whole", 16)
    video.write_bytes(video.read_bytes()[:video.stat().st_size // 2])
    part = prepare.prepare(video, tmp_path / "part", 16)
    assert 5 < part["n_frames"] < whole["n_frames"] and part["complete"]
    np.testing.assert_array_equal(read(tmp_path / "part")[:-1], read(tmp_path / "whole")[:part["n_frames"] - 1])


# --- other frames in the folder


def test_the_same_source_again_changes_nothing(tmp_path, monkeypatch):
    video = video_of(tmp_path / "lamp.avi")
    noted = prepare.prepare(video, tmp_path / "frames", 16)
    monkeypatch.setattr(prepare, "write_image", None)
    assert prepare.prepare(video, tmp_path / "frames", 16) == noted
    assert prepare.prepare(video.rename(tmp_path / "renamed.avi"), tmp_path / "frames", 16) == noted


def test_frames_that_went_missing_are_written_again(tmp_path):
    video, folder = video_of(tmp_path / "lamp.avi"), tmp_path / "frames"
    prepare.prepare(video, folder, 16)
    before = contents(folder)
    data.images(folder)[7].unlink()
    prepare.prepare(video, folder, 16)
    assert contents(folder) == before


@pytest.mark.parametrize("other", ["video", "size", "crop", "simulation"])
def test_another_source_is_refused_unless_overwriting(tmp_path, other):
    video, folder = video_of(tmp_path / "lamp.avi"), tmp_path / "frames"
    prepare.prepare(video, folder, 16)
    before = contents(folder)

    def write(folder, **options):
        if other == "simulation":
            return prepare.simulate(5, folder, 16, 0, **options)
        source = video_of(tmp_path / "lamp.avi", 30) if other == "video" else video
        return prepare.prepare(source, folder, 8 if other == "size" else 16, (0, 0, 9, 9) if other == "crop" else None,
                               **options)

    with pytest.raises(UserError, match=r"holds other images of lamp\.avi; .*--overwrite"):
        write(folder)
    assert contents(folder) == before
    write(folder, overwrite=True)
    write(tmp_path / "apart")
    assert contents(folder) == contents(tmp_path / "apart")


@pytest.mark.parametrize("name", ["image0000001.png", "holiday.JPG"])
def test_images_of_the_user_are_refused_unless_overwriting(tmp_path, name):
    folder = tmp_path / "frames"
    folder.mkdir()
    Image.new("RGB", (9, 9)).save(folder / name)
    (folder / "notes.txt").write_text("mine")
    before = contents(folder)
    with pytest.raises(UserError, match=r"holds other images; .*--overwrite"):
        prepare.simulate(3, folder, 16, 0)
    assert contents(folder) == before
    prepare.simulate(3, folder, 16, 0, overwrite=True)
    assert set(contents(folder)) == {"notes.txt", data.RECORD, *(f"image000000{i}.png" for i in (1, 2, 3))}


def test_an_image_of_the_user_among_our_own_is_refused(tmp_path):
    folder = tmp_path / "frames"
    prepare.simulate(3, folder, 16, 0)
    Image.new("RGB", (9, 9)).save(folder / "extra.png")
    with pytest.raises(UserError, match="holds other images"):
        prepare.simulate(3, folder, 16, 0)
    assert (folder / "extra.png").exists()


def test_a_record_that_is_not_ours_is_kept(tmp_path):
    (tmp_path / data.RECORD).write_text("[1, 2]")
    with pytest.raises(UserError, match="holds other images"):
        prepare.simulate(3, tmp_path, 16, 0)
    assert (tmp_path / data.RECORD).read_text() == "[1, 2]"


def test_other_files_in_the_folder_do_not_matter(tmp_path):
    (tmp_path / ".gitkeep").touch()
    (tmp_path / "README.md").write_text("frames go here")
    prepare.simulate(3, tmp_path, 16, 0)
    assert len(data.images(tmp_path)) == 3 and (tmp_path / "README.md").exists()


# --- interruption


def test_a_killed_run_leaves_whole_images_and_is_made_good_by_the_next(tmp_path):
    video, folder = video_of(tmp_path / "lamp.avi", 3000), tmp_path / "frames"
    script = "import sys, prepare; prepare.prepare(sys.argv[1], sys.argv[2], 64)"
    process = subprocess.Popen([sys.executable, "-c", script, video, folder], cwd=Path(prepare.__file__).parent,
                               stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while len(data.images(folder)) < 50 and time.monotonic() < deadline:
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    n_written = len(data.images(folder))
    assert 50 <= n_written < 3000
    assert read(folder).shape == (n_written, 64, 64, 3)  # all of them are whole
    with pytest.raises(UserError, match="only part"):
        data.load(folder, 64)
    prepare.prepare(video, folder, 64)
    prepare.prepare(video, tmp_path / "unbroken", 64)
    assert contents(folder) == contents(tmp_path / "unbroken")


def test_an_interruption_while_overwriting_leaves_no_mixture_that_passes(tmp_path, monkeypatch):
    folder = tmp_path / "frames"
    prepare.simulate(5, folder, 16, 0)

    remove = Path.unlink

    def interrupted(path, **options):
        if path.name == "image0000003.png":
            raise KeyboardInterrupt
        remove(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare.simulate(3, folder, 16, 1, overwrite=True)
    assert len(data.images(folder)) == 3
    with pytest.raises(UserError, match="only part"):
        data.load(folder, 16)
    prepare.simulate(3, folder, 16, 1)
    prepare.simulate(3, tmp_path / "apart", 16, 1)
    assert contents(folder) == contents(tmp_path / "apart")


# --- simulate


def test_the_simulated_lamp_is_written_as_it_is(tmp_path):
    noted = prepare.simulate(12, tmp_path, 16, seed=3)
    np.testing.assert_array_equal(read(tmp_path), list(itertools.islice(prepare.lamp.frames(16, 3), 12)))
    assert noted["fps"] == 30 and noted["n_frames"] == 12 and noted["complete"]
    assert noted["origin"] == dict(kind="simulation", seed=3, n_frames=12, img_size=16)


def test_no_simulated_frames_are_refused(tmp_path):
    with pytest.raises(UserError, match="0 simulated frames"):
        prepare.simulate(0, tmp_path, 16, 0)


# --- a real lamp


@pytest.mark.skipif(not LAVA_LAMP.exists(), reason=f"needs {LAVA_LAMP.name}, which is not part of the project")
def test_a_real_lamp(tmp_path):
    noted = prepare.prepare(LAVA_LAMP, tmp_path / "frames", 64, (60, 5, 280, 280))
    assert noted["n_frames"] == 909 and noted["fps"] == pytest.approx(29.97, abs=0.01)
    frames = np.load(data.load(tmp_path / "frames", 64))
    assert frames.shape == (909, 64, 64, 3)
    red, _, blue = frames[:, 16:48, 16:48].mean((0, 1, 2))
    assert abs(red - blue) > 20  # a coloured lamp ...
    assert frames.std(0).mean() > 2  # ... that moves
