"""The command line: get frames, train on them, and watch, write as a video, measure or export what was trained.

Each mode is a function, and its parameters are the flags it takes: their defaults stand in its signature, their
meaning in `build_parser` and config.py. TensorFlow and OpenCV are imported where a mode begins, so that --help need
not wait.
"""

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until `main`: without a traceback through the imports

import argparse
import dataclasses
import difflib
import inspect
import itertools
import math
import os
import re
import sys
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path

from config import PRESETS, Config
from files import STOPS, UserError, check_folder, guard_streams, handling, printable, quoted, say

BACKEND = os.environ.setdefault("KERAS_BACKEND", "tensorflow")
COMMAND = f"KERAS_BACKEND={BACKEND} python learn.py" if BACKEND != "tensorflow" else "python learn.py"

DAY = 86_400  # seconds
LESS_MEMORY = dict(
    train="lower --batch_size, --seq_len, --clip_len, --width or --img_size, or raise --accumulate",
    live="lower --grid", video="lower --grid, --scale or --duration", prepare="lower --img_size",
    simulate="lower --img_size", eval="take weights of a smaller --img_size, or a larger machine")
CHANGEABLE = "data_dir", "steps", "max_minutes", "save_every", "accumulate", "distribute"  # on --resume
OUT_OF_MEMORY = "MemoryError|bad_alloc|RESOURCE_EXHAUSTED|ResourceExhausted|Insufficient memory|Cannot allocate memory"


def train(preset=None, resume=None, cache_dir=None, **values):
    """Train on the frames in --data_dir; simulate them where frames/ is empty, or a simulation was interrupted."""
    run = Path(resume) if resume else None
    if values.get("max_minutes") and "steps" in values:
        raise UserError("--steps and --max_minutes both say when a run ends; give one of them")
    given = PRESETS.get(preset, {}) | values
    config = resumed(run, preset, values) if run else Config(**given)
    import data

    check_folder(run or "logs")
    noted = data.record(config.data_dir)
    asked = dict(img_size=config.img_size, seed=config.seed)
    if interrupted := noted and not noted["complete"] and noted["origin"].get("kind") == "simulation":
        asked |= {name: noted["origin"][name] for name in ("n_frames", *asked)
                  if name in noted["origin"] and name not in given}
    if run and not data.images(config.data_dir):
        raise UserError(f"{config.data_dir} holds none of the frames that {run} was trained on; name their folder with "
                        "--data_dir")
    # Not in other folders: frames for a misspelt name would be the wrong ones, in the wrong place.
    if not run and (interrupted or (config.data_dir == Config.data_dir and not data.images(config.data_dir))):
        say(f"{config.data_dir} holds {'only part of its' if interrupted else 'no'} frames: simulating two fluids")
        simulate(data_dir=config.data_dir, **asked)
    frames = data.load(config.data_dir, config.img_size, cache_dir)
    footage, fps = data.digest(frames), float(data.record(config.data_dir).get("fps") or config.fps)
    if run and config.footage not in ("", footage) and "data_dir" not in values:
        raise UserError(f"the frames in {config.data_dir} are not those that {run} was trained on; bring those back, "
                        f"or train on others with --data_dir {quoted(config.data_dir)}")
    if not run:
        measured, lag = data.suited(frames, config.batch_size * config.clip_len, given.get("steps", 0))
        config = dataclasses.replace(config, **(measured | given))
        lags = f"are independent after {lag} frames" if lag else "depend on each other over all lags measured"
        say(f"{config.data_dir}: frames {lags}; {config.every_nth} to a time step, "
            f"{'with' if config.augment else 'without'} augmentation, "
            + (f"{config.max_minutes:g} minutes" if config.max_minutes else f"{config.steps:,} training steps"))
    config = dataclasses.replace(config, footage=footage, fps=fps)
    # Of the rollout some 16 arrays of latents, of drawing the largest array of features.
    check_memory(config.n_chains * config.seq_len * config.latent_size * 16 + config.batch_size // config.accumulate
                 * config.clip_len * config.img_size**2 * config.width, LESS_MEMORY["train"])
    with quiet_imports():
        import backend
        import train

        engine = backend.make_backend(config.distribute)
    run, received = train.train(config, frames, run, engine)
    if received:
        cache = f" --cache_dir {quoted(cache_dir)}" if cache_dir else ""
        say(f"stopped; go on with: {COMMAND} --resume {quoted(run)}{cache}" if run else "stopped")
        sys.exit(128 + received)
    if run:
        say(f"done; watch it with: {COMMAND} --weights {quoted(run)} --mode live")


def resumed(run, preset, values):
    """The config to go on with: the run's own, but for where its frames are, its end, its saving and the machine."""
    import checkpoints

    checkpoints.find_state(run)  # before frames are read or made
    config = Config.load(run / "config.json")
    fixed = [name for name in values if name not in CHANGEABLE]
    if preset or fixed:
        raise UserError(f"--{'preset' if preset else fixed[0]} cannot change on --resume; start a new run for it")
    if "steps" in values:
        values.setdefault("max_minutes", 0.0)
    return dataclasses.replace(config, **values)


def live(weights=None, seed=0, fps=None, grid="1x1"):
    """Watch generated videos in a window; q, Esc or closing it ends."""
    import window

    rows, columns = check_playing(seed, fps, grid)
    window.check_display()
    sampler, tile = load_sampler(weights, rows * columns, seed)
    say("in the window: " + ", ".join(f"{key}: {meaning}" for key, meaning in window.KEYS.items()))
    frames = (tile(frames, rows) for frames in sampler.frames())
    window.show(frames, fps or sampler.config.fps, sampler.restart)


def video(weights=None, seed=0, fps=None, grid="1x1", duration=30.0, scale=1, loop=False, out=None, overwrite=False):
    """Write generated videos to a file: an animated picture that repeats, or a video file."""
    import video

    rows, columns = check_playing(seed, fps, grid)
    if duration > DAY:
        raise UserError(f"--duration {duration:g} is more than a day; take at most {DAY} seconds")
    if out and os.path.lexists(out) and not overwrite:
        raise UserError(f"{out} is there already; name another file with --out, or replace it with --overwrite")
    out = out or "out.png"
    video.check(out, fps)
    sampler, tile = load_sampler(weights, rows * columns, seed)
    fps = fps or sampler.config.fps
    count = max(1, round(duration * fps))
    frames = sampler.frames(sampler.steps_at_once)
    if loop:
        steps = max(2, round(count / sampler.config.every_nth))  # one alone is where it begins
        check_memory(4 * rows * columns * steps * sampler.config.latent_size, "lower --duration or --grid")
        count, frames = steps * sampler.config.every_nth, sampler.loop(steps)
    video.write((tile(frames, rows) for frames in frames), out, fps, count, scale)


def evaluate(weights=None, data_dir=None, cache_dir=None, seed=0, steps=1_000_000, overwrite=False):
    """Measure how close generated frames come to the footage, and for how long."""
    Config(seed=seed, steps=steps)
    if steps < 3000:
        raise UserError(f"--steps {steps} is too short a rollout to measure; take 3000 time steps or more")
    import checkpoints
    import data

    prefix = checkpoints.find_weights(weights)
    config = Config.load(prefix.with_name("config.json"))
    data_dir = config.data_dir if data_dir is None else data_dir
    frames = data.load(data_dir, config.img_size, cache_dir)
    say(f"evaluating {prefix} on {data_dir}")
    if config.footage not in ("", data.digest(frames)):
        say(f"{data_dir} holds other frames than those that {prefix} was trained on")
    with quiet_imports():
        import evaluate
    clips = min(evaluate.CLIPS, len(data.images(data_dir)))
    check_memory(95 * clips * config.img_size**2, LESS_MEMORY["eval"])  # measured: 12.7 GB at 128x128 pixels
    evaluate.evaluate(prefix, frames, seed, steps, overwrite)
    say(f"see also {prefix.with_name('eval.json')}, {prefix.name}.clips.png and {prefix.name}.endurance.png there")


def export(weights=None, out="page"):
    """Write the model as ONNX, and a page that plays it in a browser."""
    if BACKEND != "tensorflow":
        raise UserError("--mode export needs TensorFlow; run it with KERAS_BACKEND=tensorflow, which reads the same "
                        "weights")
    import checkpoints

    prefix = checkpoints.find_weights(weights)
    say(f"exporting {prefix}")
    with quiet_imports():
        import export
    difference = export.export(prefix, out)
    say(f"{out} holds the model, its latents equal to TensorFlow's within {difference:.0e}; watch it with: "
        f"python -m http.server --directory {quoted(out)}, at http://localhost:8000")


def check_playing(seed, fps, grid):
    """Check what playing takes; returns the rows and columns of a `grid` such as 3x4."""
    Config(seed=seed, **({} if fps is None else {"fps": fps}))
    with suppress(ValueError):
        rows, columns = map(int, grid.lower().split("x"))
        if min(rows, columns) >= 1 and max(rows, columns) <= 64:
            return rows, columns
    raise UserError(f"--grid: {grid} is not rows x columns, such as 3x4, of at most 64 each")


def check_memory(numbers, advice):
    """Refuse what keeps more float32 numbers at once than this machine has memory for; the system would kill it."""
    here = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if 4 * numbers > here:
        raise UserError(f"that takes more than {4 * numbers / 2**30:,.0f} GiB of memory, and this machine has "
                        f"{here / 2**30:,.0f}; {advice}")


def load_sampler(weights, n, seed):
    """(a Sampler of `n` videos, the function that tiles its frames)."""
    import checkpoints

    prefix = checkpoints.find_weights(weights)
    config = Config.load(prefix.with_name("config.json"))
    check_memory(n * config.img_size**2 * max(3, config.width // 2), LESS_MEMORY["live"])
    say(f"playing {prefix}")
    with quiet_imports():
        import sample
    return sample.Sampler(prefix, n, seed), sample.tile


def prepare(video=None, crop=None, fps=None, data_dir="frames", img_size=64, overwrite=False):
    """Turn a video into the frames to train on."""
    if video is None:
        raise UserError("--mode prepare needs --video FILE, the footage to take the frames from")
    Config(img_size=img_size)
    import prepare

    tell(prepare.prepare(video, data_dir, img_size, crop, fps, overwrite), data_dir)


def simulate(n_frames=108_000, data_dir="frames", img_size=64, seed=0, overwrite=False):
    """Simulate two fluids in a lamp, for whoever has no footage."""
    Config(img_size=img_size, seed=seed)
    import prepare

    tell(prepare.simulate(n_frames, data_dir, img_size, seed, overwrite), data_dir)


def tell(record, data_dir):
    """Say what frames there are now, and which of the source are not."""
    lost = record.get("lost", ())
    for seconds, n_frames in lost[:9]:
        where = "by its header or size" if seconds is None else f"after {seconds:g} s"
        say(f"damaged, missing or a pause in {record['source']}: {n_frames} frame{'s' * (n_frames > 1)} {where}")
    if lost[9:]:
        say(f"damaged, missing or a pause in {record['source']}: {sum(n for _, n in lost[9:])} more")
    x, y, side, _ = record["origin"].get("crop", (0, 0, 0, 0))
    part = f", of each the {side}x{side} pixels from {x},{y} on" if side else ""
    size = record["origin"].get("img_size", Config.img_size)
    say(f"{data_dir} holds {record['n_frames']} frames of {record['source']}, {record['fps']:g} a second{part}; "
        f"train on them with: {COMMAND} --data_dir={quoted(data_dir)}"
        + f" --img_size {size}" * (size != Config.img_size))


HYPER_PARAMETERS = [f for f in dataclasses.fields(Config) if f.metadata["flag"]]  # those of one group together
MODES = dict(train=train, live=live, video=video, prepare=prepare, simulate=simulate, eval=evaluate, export=export)


def flags(mode):
    """The flags a mode takes, with their defaults; those of `train` include the hyper-parameters."""
    parameters = inspect.signature(MODES[mode]).parameters.values()
    named = {p.name: p.default for p in parameters if p.kind != p.VAR_KEYWORD}
    return named | ({f.name: f.default for f in HYPER_PARAMETERS} if mode == "train" else {})


class Parser(argparse.ArgumentParser):
    """An argument parser that knows only the flags given, and whose errors are for `main` to show."""

    def __init__(self):
        super().__init__(prog="learn.py", description=__doc__.partition("\n")[0], allow_abbrev=False,
                         argument_default=argparse.SUPPRESS)
        self.add_argument("--mode", choices=MODES, default="train", help="what to do (default: train)")

    def error(self, message):
        """Raise UserError, also with the flag that one unknown was perhaps meant to be."""
        unknown = re.match(r"unrecognized arguments: (--[^\s=]+)", message)
        known = {name.replace("_", "-"): name for name in self._option_string_actions}
        alike = difflib.get_close_matches(unknown[1].replace("_", "-"), known, 1) if unknown else []
        raise UserError(f"{message}; " + (f"perhaps {known[alike[0]]} is meant" if alike else
                                          "see python learn.py --help"))

    def flag(self, group, name, help, measured=False, **options):
        """Add --name to `group`, its help completed by its default and by the modes that take it."""
        modes = [mode for mode in MODES if name in flags(mode)]
        default = flags(modes[0])[name]
        notes = [f"with --mode {', '.join(modes)}"] if modes[1:] else []
        if isinstance(default, bool):
            options = dict(action=argparse.BooleanOptionalAction if default or measured else "store_true")
            default = "yes" if default else "no"
        if measured:
            default = "measured on the footage"
        if default is not None:
            notes.insert(0, f"default: {default:g}" if isinstance(default, float) else f"default: {default}")
        group.add_argument(f"--{name}", help=f"{help} ({'; '.join(notes)})" if notes else help, **options)


def build_parser():
    """The parser of the whole command line."""
    parser = Parser()
    playing = parser.add_argument_group("what to play")
    parser.flag(playing, "weights", "a prefix such as logs/20220104-213105/weights.180, or a run's folder, meaning "
                "its newest weights; without it those of the newest run", metavar="PATH")
    parser.flag(playing, "fps", "frames shown a second, or taken of a video (--mode prepare); without it those of the "
                "footage", type=positive, metavar="X")
    parser.flag(playing, "grid", "play so many independent videos side by side: rows x columns", metavar="RxC")
    writing = parser.add_argument_group("writing a video (--mode video)")
    parser.flag(writing, "duration", "its length, in seconds", type=positive, metavar="X")
    parser.flag(writing, "scale", "enlarge height and width by this factor, bicubically", type=counting, metavar="N")
    parser.flag(writing, "loop", "fade its end into its beginning; --duration is rounded to time steps, at least two")
    parser.flag(writing, "out", "the file to write: .png, .apng, .gif, .webp, .mp4 or .webm; without it out.png, "
                "which is replaced. With --mode export the folder to write; without it page", metavar="PATH")
    prepare = parser.add_argument_group("frames from a video (--mode prepare)")
    parser.flag(prepare, "video", "the footage: any video that ffmpeg reads", metavar="FILE")
    parser.flag(prepare, "crop", "the part to keep, in pixels of the picture as shown; without it the whole picture. "
                "Of a part that is no square the largest square in its middle is taken", type=rectangle,
                metavar="X,Y,W,H")
    parser.flag(prepare, "overwrite", "remove all images in --data_dir first; replace the file --out; replace figures "
                "of other footage or of a longer rollout")
    simulated = parser.add_argument_group("frames from a simulation (--mode simulate)")
    parser.flag(simulated, "n_frames", "frames to simulate, 30 to the second", type=whole, metavar="N")
    training = parser.add_argument_group("training (--mode train)")
    parser.flag(training, "preset", "start from the hyper-parameters of the original model; flags given beside it win",
                choices=PRESETS)
    parser.flag(training, "resume", "go on with a run where it stopped; of its hyper-parameters "
                f"{', '.join(CHANGEABLE[:-1])} and {CHANGEABLE[-1]} may change", metavar="RUN")
    parser.flag(training, "cache_dir", "folder for the array that frames are read into; without it beside --data_dir, "
                "or, where that cannot be written, the user's folder for caches", metavar="PATH")
    for name, fields in itertools.groupby(HYPER_PARAMETERS, lambda f: f.metadata["group"]):
        group = parser.add_argument_group(f"training: {name}")
        for f in fields:
            metavar = None if f.metadata["choices"] else {int: "N", float: "X", str: "PATH", bool: None}[f.type]
            read = {int: whole, float: number}.get(f.type, f.type)
            options = dict(type=read, choices=f.metadata["choices"], metavar=metavar)
            parser.flag(group, f.name, f.metadata["help"], f.metadata["measured"], **options)
    return parser


def reader(read, what, good=lambda _: True):
    """A function for argparse from a text to `read`(text), if that is `good`; it says that the text is not `what`."""
    def from_text(text):
        with suppress(ValueError):
            if good(value := read(text)):
                return value
        raise argparse.ArgumentTypeError(f"{text} is not {what}")

    return from_text


number, whole = reader(float, "a number"), reader(int, "a whole number")
positive = reader(float, "a positive number", lambda value: 0 < value < math.inf)
counting = reader(int, "a positive whole number", lambda value: value > 0)
rectangle = reader(lambda text: tuple(map(int, text.split(","))), "four whole numbers X,Y,W,H",
                   lambda value: len(value) == 4)


@contextmanager
def quiet_imports():
    """Import Keras with its backend, whose start-up messages are shown only when starting fails."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # Convolutions by oneDNN, also on processors where TensorFlow leaves it off: a step takes half the time
    # on an AMD EPYC 7003. (On Intel's with AVX-512 it is on anyway.)
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    screen = os.dup(2)
    # At a signal the process ends at once: exceptions would be lost, or told, within imports.
    with handling(lambda number, _: os._exit(128 + number)), tempfile.TemporaryFile() as chatter:
        os.dup2(chatter.fileno(), 2)
        try:
            import keras

            yield
            if keras.backend.backend() == "tensorflow":
                import tensorflow as tf

                tf.config.list_logical_devices()  # which writes messages too
        except UserError:
            raise
        except Exception:
            chatter.seek(0)
            os.write(screen, chatter.read())
            raise
        finally:
            os.dup2(screen, 2)
            os.close(screen)


def main(argv=None):
    """Run one command line; returns its exit status."""
    for number in STOPS:  # by way of every clean-up
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    with suppress(AttributeError):
        sys.stdout.reconfigure(errors="backslashreplace")  # whatever its encoding
    mode = None
    try:
        given = vars(build_parser().parse_args(argv))
        for name, value in given.items():
            if value in ([], ""):  # what argparse of Python 3.11 makes of --name=--, and what a shell of --name=$unset
                raise UserError(f"--{name} takes a value, and was given {'--' if value == [] else 'an empty one'}")
        mode = given.pop("mode")
        for name in given:
            if name not in flags(mode):
                used = " or ".join(f"--mode {other}" for other in MODES if name in flags(other))
                raise UserError(f"--{name} has no effect in --mode {mode}; it is a flag of {used}")
        if BACKEND not in ("tensorflow", "jax") and mode not in ("prepare", "simulate"):
            raise UserError(f"KERAS_BACKEND={BACKEND} is not supported; set it to tensorflow or jax")
        MODES[mode](**given)
    except Exception as error:
        if not (sentence := explained(error, mode)):
            raise
        print(printable(f"learn.py: {sentence}"), file=sys.stderr)
        return 2
    return 0


def explained(error, mode):
    """What a user can mend about an error, in a sentence; None where it is the program's."""
    if isinstance(error, UserError):
        return str(error)
    if re.search(OUT_OF_MEMORY, f"{type(error).__name__} {error}"):
        return f"out of memory; {LESS_MEMORY.get(mode, 'end other programs, or take a larger machine')}"
    if isinstance(error, ImportError):
        return (f"{error}; install what requirements.txt names, or what requirements-jax.txt does and set "
                "KERAS_BACKEND=jax, and what OpenCV wants (on Debian: apt install libgl1 libglib2.0-0 libxcb1)")
    if isinstance(error, OSError):
        return f"{error.filename or 'a file'} cannot be read or written: {error.strerror or error}"
    return None


if __name__ == "__main__":
    guard_streams()
    sys.exit(main())
