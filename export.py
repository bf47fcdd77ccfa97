"""A lamp to give away: its networks as ONNX, and beside them a page that plays them in any browser."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import tensorflow as tf
import tf2onnx

from files import UserError, replacing
from models import slerp
from sample import BURN_IN_STEPS, CROSSFADE_STEPS, load

PAGE = Path(__file__).with_name("web") / "dist"  # where `make web` puts the page
OPSET = 17  # of ONNX; the least that knows all the operations
TOLERANCE = 1e-5  # of a latent
# An eighth of a grey level, of 0 to 1: an edge a pixel wide makes the more of rounding the smaller pixels are, 3e-6 in
# the lamp that comes along, 6e-5 in one of 256 pixels.
COLOUR_TOLERANCE = 5e-4


def export(prefix, out):
    """Write the lamp of the weights `prefix` into the folder `out`, with a page that plays it.

    transition.onnx: normal, latent [B, Z] and memory [B, H] -> next_latent, next_memory. generator.onnx: start, end
    [B, Z] and share [n], 0..1 of the way from one to the other -> frames, uint8 RGBA [n, B, H, W, 4]. lamp.json: sizes
    and paces. The rest is the page; any web server will do for it.

    Returns the largest difference between ONNX Runtime and TensorFlow, of latents and of colours from 0 to 1.

    Raises:
        UserError: the page is not built; the folder holds other things; the weights cannot be read; or ONNX Runtime
            draws another lamp than TensorFlow.
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

    def colours(start, end, share):
        latents = slerp(start[None], end[None], share[:, None, None])  # [n, B, Z]
        drawn = generator(tf.reshape(latents, (-1, config.latent_size)), training=False)
        return tf.reshape(drawn, (-1, tf.shape(start)[0], config.img_size, config.img_size, 3))

    @tf.function(input_signature=[latent, latent, tf.TensorSpec((None,))])
    def draw(start, end, share):
        pixels = tf.cast(tf.round(colours(start, end, share) * 255), tf.int32)
        pixels = tf.pad(pixels, 4 * [(0, 0)] + [(0, 1)], constant_values=255)
        return dict(frames=tf.cast(pixels, tf.uint8))

    rng = np.random.default_rng(0)
    normals = [rng.standard_normal((3, config.latent_size), np.float32) for _ in range(3)]
    memory = rng.uniform(-1, 1, (3, transition.state_size[1])).astype(np.float32)
    share = np.linspace(0, 1, 4, dtype=np.float32)
    latents_off = difference(convert(step), step, [normals[0], transition.initial(normals[1])[0].numpy(), memory])
    start, end = (transition.initial(normal)[0].numpy() for normal in normals[:2])
    precise = tf.function(lambda *inputs: dict(colours=colours(*inputs)), input_signature=draw.input_signature)
    colours_off = difference(convert(precise), precise, [start, end, share])
    off = max(latents_off, colours_off)
    if latents_off > TOLERANCE or colours_off > COLOUR_TOLERANCE:
        raise UserError(f"the lamp as ONNX differs from TensorFlow's by {off:.1g}: ONNX Runtime "
                        f"{onnxruntime.__version__} and tf2onnx {tf2onnx.__version__} do not fit together")
    about = dict(img_size=config.img_size, every_nth=config.every_nth, latent_size=config.latent_size,
                 memory_size=transition.state_size[1], burn_in=BURN_IN_STEPS, melt=CROSSFADE_STEPS, fps=config.fps)
    out.mkdir(parents=True, exist_ok=True)
    for name, content in {"transition.onnx": convert(step), "generator.onnx": convert(draw),
                          "lamp.json": json.dumps(about, indent=2).encode() + b"\n"}.items():
        with replacing(out / name) as part:
            part.write_bytes(content)
    for file in PAGE.iterdir():
        with replacing(out / file.name) as part:
            shutil.copyfile(file, part)
    return off


def check(out):
    """See that a lamp can be written to the folder `out`.

    Raises:
        UserError: it cannot, or should not.
    """
    if not (PAGE / "index.html").is_file():
        raise UserError(f"the page that plays the lamp is not built yet; build it with: make web (looked in {PAGE})")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; name a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / "lamp.json").exists():
        raise UserError(f"--out {out} holds other things; name a new folder")


def convert(function):
    """The tf.function with its signature as ONNX, in bytes."""
    model, _ = tf2onnx.convert.from_function(function, input_signature=function.input_signature, opset=OPSET)
    return model.SerializeToString()


def difference(model, function, inputs):
    """The largest difference of the ONNX model's outputs from the function's."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    outputs = session.run(None, dict(zip((i.name for i in session.get_inputs()), inputs, strict=True)))
    expected = function(*inputs)
    return max(float(np.abs(output - expected[o.name]).max())
               for o, output in zip(session.get_outputs(), outputs, strict=True))
