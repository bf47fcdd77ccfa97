"""A video, or the simulated lamp -> a folder of numbered images and the frames.json that says what they are.

The images are what data.py reads. The folder belongs to one source: nothing is mixed, and nothing that was not written
here is deleted, unless the caller says overwrite.
"""

import hashlib
import itertools
import json
import os
import re
from pathlib import Path

import cv2
from tqdm import tqdm

from data import RECORD, images, record, square
from files import UserError, check_folder, lock, printable, replacing
from video_reader import VideoReader, sample

# Stored, neither filtered nor compressed: twice the space on the disk, but encoded four times and read three times as
# fast (64x64 frames of a real lamp). The cache that is made of the frames is uncompressed too.
PNG = [cv2.IMWRITE_PNG_COMPRESSION, 0, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE]


def prepare(video, data_dir, img_size, crop=None, fps=None, overwrite=False):
    """Write the frames of a video to `data_dir` as image0000001.png, image0000002.png ...

    Args:
        video: path of a file in any format that ffmpeg reads. Of a damaged one, what can be read is taken.
        data_dir: folder, made if missing. Where these very frames are there already nothing happens; where writing
            them was interrupted it starts over.
        img_size: height and width of the images, in pixels.
        crop: (x, y, width, height), in pixels of the picture as a player shows it, of the part to take; all of it if
            None. Of a part that is not square the largest square in its middle is taken.
        fps: frames a second to take, each the one shown at that time; the video's own rate if None. Of a video of an
            even rate, gaps between frames are closed.
        overwrite: first remove all images in `data_dir`, whoever put them there.

    Returns:
        What frames.json says: see `data.record`.

    Raises:
        UserError: the video is missing, lies among the images in `data_dir`, is no video, holds no frames, cannot be
            read to its end, or has colours that cannot be converted; the crop reaches out of the picture; `fps`, or
            else the video's own rate, is out of bounds; or as `write`, or some images were taken away or added, and
            `overwrite` is False.
        OSError: the video cannot be read at all.
    """
    if not os.path.isfile(video):
        raise UserError(f"{video} is not there, or is not a file; name a video")
    place = Path(video).resolve()
    if place.parent == Path(data_dir).resolve() and place.name in {path.name for path in images(data_dir)}:
        raise UserError(f"{video} lies among the images of {data_dir}; move it elsewhere, or take another --data_dir")
    if fps and not 0.01 <= fps <= 1000:
        raise UserError(f"--fps {fps:g} is out of bounds; take from 0.01 to 1000 frames of the video a second")
    with open(video, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    reader = VideoReader(video)
    timed = reader.timed_frames()
    first = next(timed, None)
    if first is None:
        raise UserError(f"{video} is not a video that ffmpeg can read, or holds no whole frame; convert it to MP4")
    width, height = reader.size
    if crop and not (min(crop[:2]) >= 0 and min(crop[2:]) >= 1
                     and crop[0] + crop[2] <= width and crop[1] + crop[3] <= height):
        raise UserError(f"--crop {','.join(map(str, crop))} reaches out of the {width}x{height} pixels of {video}; "
                        "give x,y,width,height inside them")
    crop = square(width, height, crop)
    rate = fps or reader.rate
    if not 0.01 <= rate <= 1000:
        raise UserError(f"{video} shows {rate:.3g} frames a second; give --fps from 0.01 to 1000")
    frames = sample(itertools.chain([first], timed), rate, 1 / reader.rate)
    pictures = (reader.picture(frame, crop, img_size) for frame in frames)
    head = list(itertools.islice(pictures, 1))  # what fails, fails before an image is removed
    return write(itertools.chain(head, pictures), data_dir, overwrite,
                 origin=dict(kind="video", sha256=digest, crop=list(crop), img_size=img_size, fps=fps),
                 source=Path(video).name, fps=rate, expected=round(reader.seconds * rate), lost=reader.lost)


def simulate(n_frames, data_dir, img_size, seed, overwrite=False):
    """Write `n_frames` frames of the simulated lamp to `data_dir`, just as `prepare` writes those of a video.

    `seed` picks the lamp. Returns what frames.json says.

    Raises:
        UserError: `n_frames` is out of bounds; or as `write`.
    """
    import simulator

    if not 1 <= n_frames < 10**7:  # which their names have room for
        raise UserError(f"{n_frames} simulated frames are no data set; ask for --n_frames from 1 to 9999999")
    frames = itertools.islice(simulator.frames(img_size, seed), n_frames)
    return write((cv2.cvtColor(frame, cv2.COLOR_RGB2BGR) for frame in frames), data_dir, overwrite,
                 origin=dict(kind="simulation", seed=seed, n_frames=n_frames, img_size=img_size),
                 source="the simulated lamp", fps=simulator.FPS, expected=n_frames)


def write(frames, data_dir, overwrite, *, origin, source, fps, expected, lost=()):
    """Write `frames` (uint8 BGR) and the record of their `origin` to `data_dir`, as `prepare` describes.

    `expected`: about how many, for the progress bar. `lost`: complete once `frames` have ended. Returns what
    frames.json says.

    Raises:
        UserError: the folder holds other images and not `overwrite`, or a folder named like an image, or cannot be
            written to, or is written to by another process.
    """
    data_dir = Path(data_dir)
    check_folder(data_dir)
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with lock(data_dir, "writing frames to"):
            old, noted = images(data_dir), record(data_dir)
            # Part of a simulation makes room for another one, as anyone can have it again.
            partial = (not noted.get("complete", True)
                       and noted["origin"].get("kind") == origin["kind"] == "simulation")
            ours = (noted.get("origin") == origin or partial) and all(
                re.fullmatch(r"image\d{7}\.png", path.name) for path in old)
            if not overwrite:
                if not ours and (old or (os.path.lexists(data_dir / RECORD) and not noted)):
                    raise UserError(f"{data_dir} holds other images{' of ' + noted['source'] if noted else ''}; "
                                    "take another folder, or --overwrite to remove all images there")
                if ours and noted["complete"] and old:
                    if noted["n_frames"] != len(old):
                        raise UserError(f"{data_dir} holds {len(old)} images in place of the {noted['n_frames']} of "
                                        f"{noted['source']}, so some were taken away or added; take another folder, or "
                                        "--overwrite to write all anew")
                    return noted
            for path in old:
                if path.is_dir() and not path.is_symlink():
                    raise UserError(f"{path} is a folder; move it elsewhere, or take another --data_dir")
            noted = dict(origin=origin, source=source, fps=fps, n_frames=None, complete=False)
            note(data_dir, noted)  # before the first image changes, so that no mixture ever passes for a data set
            for path in old:
                path.unlink()
            n_frames = 0
            for frame in tqdm(frames, total=expected or None, desc=printable(f"writing {data_dir.name}"), unit="frame"):
                n_frames += 1
                write_image(data_dir / f"image{n_frames:07d}.png", frame)
            noted.update(n_frames=n_frames, complete=True, lost=list(lost))
            note(data_dir, noted)
    except OSError as error:
        raise UserError(f"{data_dir} cannot be written to ({error.strerror}); make room there, or take another "
                        "--data_dir") from None
    return noted


def note(data_dir, noted):
    """Write frames.json."""
    with replacing(data_dir / RECORD) as part:
        part.write_text(json.dumps(noted, indent=2) + "\n")


def write_image(path, frame):
    """Write `frame` (uint8 BGR) as PNG, in one step.

    Unlike `files.replacing` it does not wait for the disk, which would take seven times as long; and as its file beside
    always has the same name, one that an interrupted run left is used up by the next.
    """
    part = path.with_name(".image.part")
    part.write_bytes(cv2.imencode(".png", frame, PNG)[1])
    part.replace(path)
