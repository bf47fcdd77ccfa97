// Videos generated while they are played: sample.py again, with ONNX Runtime.

import * as ort from "onnxruntime-web/wasm";
import { normals } from "./normals.js";

const BATCH_PIXELS = 2 ** 18; // drawn at once, at most

/**
 * model.json, as export.py writes it.
 * @typedef {{img_size: number, every_nth: number, latent_size: number, memory_size: number, burn_in_steps: number,
 *   crossfade_steps: number, fps: number}} Config
 */

/**
 * Latents [videos, latent_size] and memories [videos, memory_size], row by row.
 * @typedef {{latent: Float32Array, memory: Float32Array}} State
 */

/** @typedef {Generator<number, never, void>} Stream Normal numbers of one video. */

/**
 * The networks, read once.
 * @typedef {{config: Config, transition: ort.InferenceSession, generator: ort.InferenceSession}} Networks
 */

/**
 * Read the networks from the folder `base`.
 * @param {URL} base
 * @returns {Promise<Networks>}
 */
export async function load(base) {
  ort.env.wasm.wasmPaths = { wasm: new URL("ort-wasm-simd-threaded.wasm", base) };
  ort.env.wasm.numThreads = 1; // more would load this script anew, in place of ONNX Runtime's own
  const config = await (await fetched(new URL("model.json", base))).json();
  const [transition, generator] = await Promise.all(
    ["transition.onnx", "generator.onnx"].map(async (name) =>
      ort.InferenceSession.create(await (await fetched(new URL(name, base))).arrayBuffer(), {
        executionProviders: ["wasm"],
      }),
    ),
  );
  return { config, transition, generator };
}

/** @param {URL} url */
async function fetched(url) {
  const response = await fetch(url, { cache: "no-cache" }); // ask whether there is a newer one
  if (!response.ok) throw new Error(`${url.pathname} is missing`);
  return response;
}

/** Independent videos. Video i of a seed is the same whatever their number is. */
export class Sampler {
  /** @type {State} */ #state;
  /** @type {Float32Array} */ #latent;
  /** @type {number | undefined} The seed of the next videos, where they were asked for. */ #wanted;
  /** @type {{state: State, streams: Stream[], steps: number} | undefined} The videos that are being faded in. */
  #next;

  /**
   * @param {Networks} networks
   * @param {number} count
   * @param {State} state
   * @param {Stream[]} streams
   */
  constructor(networks, count, state, streams) {
    this.networks = networks;
    this.count = count;
    this.streams = streams;
    this.#state = state;
    this.#latent = state.latent;
  }

  /**
   * `count` videos after the burn-in.
   * @param {Networks} networks
   * @param {number} count
   * @param {number} seed
   */
  static async begin(networks, count, seed) {
    const streams = Array.from({ length: count }, (_, video) => normals(seed, video));
    return new Sampler(networks, count, await initialState(networks, streams), streams);
  }

  /**
   * Fade into the videos of another seed, over `crossfade_steps` steps, once a fade under way is over.
   * @param {number} seed
   */
  restart(seed) {
    this.#wanted = seed;
  }

  /**
   * The next step: `n` frames of each video, RGBA, [n, videos, height, width, 4] in one array.
   * @param {number} n
   */
  async advance(n) {
    if (this.#wanted !== undefined && !this.#next) {
      const seed = this.#wanted;
      const streams = this.streams.map((_, video) => normals(seed, video));
      this.#next = { state: await initialState(this.networks, streams), streams, steps: 0 };
      this.#wanted = undefined;
    }
    this.#state = await step(this.networks, this.streams, this.#state);
    let following = this.#state.latent;
    const next = this.#next;
    if (next) {
      next.state = await step(this.networks, next.streams, next.state);
      const share = ++next.steps / this.networks.config.crossfade_steps;
      following = slerp(following, next.state.latent, (1 - Math.cos(Math.PI * share)) / 2, this.count);
      if (share >= 1) [this.#state, this.streams, this.#next] = [next.state, next.streams, undefined];
    }
    const start = this.#latent;
    this.#latent = following;
    return decode(this.networks, start, following, n, this.count);
  }
}

/**
 * The state of new videos after the burn-in.
 * @param {Networks} networks
 * @param {Stream[]} streams
 */
async function initialState(networks, streams) {
  const { latent_size, memory_size, burn_in_steps } = networks.config;
  const latent = nextNormals(streams, latent_size);
  /** @type {State} */
  let state = {
    latent: standardise(latent, streams.length),
    memory: new Float32Array(streams.length * memory_size),
  };
  for (let i = 0; i < burn_in_steps; i++) state = await step(networks, streams, state);
  return state;
}

/**
 * The state one step later.
 * @param {Networks} networks
 * @param {Stream[]} streams
 * @param {State} state
 * @returns {Promise<State>}
 */
async function step({ config, transition }, streams, state) {
  const rows = streams.length;
  const out = await transition.run({
    normal: new ort.Tensor(nextNormals(streams, config.latent_size), [rows, config.latent_size]),
    latent: new ort.Tensor(state.latent, [rows, config.latent_size]),
    memory: new ort.Tensor(state.memory, [rows, config.memory_size]),
  });
  return {
    latent: /** @type {Float32Array} */ (out.next_latent.data),
    memory: /** @type {Float32Array} */ (out.next_memory.data),
  };
}

/**
 * `n` frames between two consecutive latents of each video.
 * @param {Networks} networks
 * @param {Float32Array} start
 * @param {Float32Array} end
 * @param {number} n
 * @param {number} rows
 */
async function decode({ config, generator }, start, end, n, rows) {
  const shape = [rows, config.latent_size];
  const size = rows * config.img_size ** 2;
  const pixels = new Uint8ClampedArray(4 * n * size);
  const most = Math.max(1, Math.floor(BATCH_PIXELS / size));
  for (let first = 0; first < n; first += most) {
    const share = Float32Array.from({ length: Math.min(most, n - first) }, (_, i) => (first + i) / n);
    const { frames } = await generator.run({
      start: new ort.Tensor(start, shape),
      end: new ort.Tensor(end, shape),
      share: new ort.Tensor(share, [share.length]),
    });
    pixels.set(/** @type {Uint8Array} */ (frames.data), 4 * first * size);
    frames.dispose();
  }
  return pixels;
}

/**
 * The next `size` numbers of each stream, row by row.
 * @param {Stream[]} streams
 * @param {number} size
 */
function nextNormals(streams, size) {
  return Float32Array.from({ length: streams.length * size }, (_, i) => streams[Math.floor(i / size)].next().value);
}

/**
 * Each row with mean 0 and deviation 1.
 * @param {Float32Array} latents
 * @param {number} rows
 */
function standardise(latents, rows) {
  const size = latents.length / rows;
  for (let row = 0; row < rows; row++) {
    const z = latents.subarray(row * size, (row + 1) * size);
    const mean = z.reduce((sum, x) => sum + x, 0) / size;
    const variance = z.reduce((sum, x) => sum + (x - mean) ** 2, 0) / size;
    z.forEach((x, i) => (z[i] = (x - mean) / Math.sqrt(variance + 1e-8)));
  }
  return latents;
}

/**
 * Spherical linear interpolation, row by row; `share` is 0 at `start` and 1 at `end`.
 * @param {Float32Array} start
 * @param {Float32Array} end
 * @param {number} share
 * @param {number} rows
 */
function slerp(start, end, share, rows) {
  const size = start.length / rows;
  const between = new Float32Array(start.length);
  for (let row = 0; row < start.length; row += size) {
    let cosine = 0;
    for (let i = row; i < row + size; i++) cosine += (start[i] * end[i]) / size;
    const angle = Math.acos(Math.min(Math.max(cosine, -0.999), 0.999999));
    for (let i = row; i < row + size; i++)
      between[i] = (Math.sin((1 - share) * angle) * start[i] + Math.sin(share * angle) * end[i]) / Math.sin(angle);
  }
  return standardise(between, rows);
}
