"""Write a model as ONNX, with a page that plays it in any browser. Needs TensorFlow, which tf2onnx converts from."""

import json
import shutil
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import onnxruntime
import tensorflow as tf
import tf2onnx

from files import PART, UserError, check_folder, replacing
from models import slerp
from sample import BURN_IN_STEPS, CROSSFADE_STEPS, load

PAGE = Path(__file__).with_name("web") / "dist"  # where `make web` builds the page
OPSET = 17  # of ONNX; the least that has all the operations
LATENT_TOLERANCE = 1e-5
FRAME_TOLERANCE = 1  # grey level: what lies between two may be rounded either way


def export(prefix, out):
    """Write the model of the weights `prefix` into the folder `out`, with a page that plays it.

    transition.onnx: normal, latent [B, Z] and memory [B, H + Z] -> next_latent, next_memory.
    generator.onnx: start, end [B, Z] and share [n], 0..1 of the way between them -> frames, uint8 RGBA [n, B, H, W, 4].
    model.json: sizes, numbers of steps, and frames a second. The rest is the page; any web server can serve it.

    Returns the largest difference between the latents of ONNX Runtime and of TensorFlow.

    Raises:
        UserError: see `check` and sample.load; or ONNX Runtime computes something else than TensorFlow.
    """
    out = Path(out)
    check(out)
    config, model = load(prefix)
    generator, transition = model.generator, model.transition
    latent, memory = (tf.TensorSpec((None, size)) for size in transition.state_size)

    @tf.function(input_signature=[latent, latent, memory])
    def step(normal, latent, memory):
        latent, memory = transition(normal, (latent, memory))[1]
        return dict(next_latent=latent, next_memory=memory)

    @tf.function(input_signature=[latent, latent, tf.TensorSpec((None,))])
    def draw(start, end, share):
        latents = slerp(start[None], end[None], share[:, None, None])  # [n, B, Z]
        frames = generator(tf.reshape(latents, (-1, config.latent_size)), training=False)
        frames = tf.reshape(frames, (-1, tf.shape(start)[0], config.img_size, config.img_size, 3))
        pixels = tf.pad(tf.cast(tf.round(frames * 255), tf.int32), 4 * [(0, 0)] + [(0, 1)], constant_values=255)
        return dict(frames=tf.cast(pixels, tf.uint8))

    rng = np.random.default_rng(0)
    normals = [rng.standard_normal((3, config.latent_size), np.float32) for _ in range(3)]
    start, end = (transition.initial(normal)[0].numpy() for normal in normals[:2])
    some_memory = rng.uniform(-1, 1, (3, transition.state_size[1])).astype(np.float32)
    share = np.linspace(0, 1, 4, dtype=np.float32)
    transition_onnx, generator_onnx = convert(step), convert(draw)
    latent_difference = difference(transition_onnx, step, [normals[2], start, some_memory])
    frame_difference = difference(generator_onnx, draw, [start, end, share])
    if latent_difference > LATENT_TOLERANCE or frame_difference > FRAME_TOLERANCE:
        raise UserError(f"the ONNX model differs from TensorFlow's, latents by {latent_difference:.1g} and pixels by "
                        f"{frame_difference:.0f} grey levels: ONNX Runtime {onnxruntime.__version__} and tf2onnx "
                        f"{tf2onnx.__version__} do not fit together")
    about = dict(img_size=config.img_size, every_nth=config.every_nth, latent_size=config.latent_size,
                 memory_size=transition.state_size[1], burn_in_steps=BURN_IN_STEPS, crossfade_steps=CROSSFADE_STEPS,
                 fps=config.fps)
    out.mkdir(parents=True, exist_ok=True)
    # All are written before one gets its name, those that are entered first as the last. While model.json is missing
    # the page plays nothing, rather than a mixture of two models.
    with ExitStack() as parts:
        parts.enter_context(replacing(out / "model.json")).write_text(json.dumps(about, indent=2) + "\n")
        for file in PAGE.iterdir():
            shutil.copyfile(file, parts.enter_context(replacing(out / file.name)))
        parts.enter_context(replacing(out / "generator.onnx")).write_bytes(generator_onnx)
        parts.enter_context(replacing(out / "transition.onnx")).write_bytes(transition_onnx)
        (out / "model.json").unlink(missing_ok=True)
    return latent_difference


def check(out):
    """Check, before anything slow, that a model can be written to the folder `out`.

    Raises:
        UserError: the page is not built; `out` is a file, a folder that holds something else than an export, or one
            that cannot be written to.
    """
    if not (PAGE / "index.html").is_file():
        raise UserError(f"the page that plays the model is not built yet; build it with: make web (looked in {PAGE})")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; name a folder")
    held = [file.name for file in out.iterdir() if not PART.fullmatch(file.name)] if out.is_dir() else []
    if held and "transition.onnx" not in held:  # which an export, also one that is killed, puts there first
        raise UserError(f"--out {out} holds other things; name a new folder")
    check_folder(out)


def convert(function):
    """The tf.function with its input signature as ONNX, in bytes."""
    model, _ = tf2onnx.convert.from_function(function, input_signature=function.input_signature, opset=OPSET)
    return model.SerializeToString()


def difference(model, function, inputs):
    """The largest difference of the ONNX model's outputs from the function's."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    outputs = session.run(None, dict(zip((i.name for i in session.get_inputs()), inputs, strict=True)))
    expected = function(*inputs)
    return max(float(np.abs(output.astype(np.float32) - expected[o.name].numpy()).max())
               for o, output in zip(session.get_outputs(), outputs, strict=True))
