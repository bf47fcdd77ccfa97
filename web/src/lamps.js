// Lamps on their way through the states, drawn as they are played: rollout.py again, with ONNX Runtime.

import * as ort from "onnxruntime-web/wasm";
import { normals } from "./normals.js";

/**
 * What learn.py knows of the lamp.
 * @typedef {{img_size: number, every_nth: number, latent_size: number, memory_size: number, burn_in: number,
 *   melt: number, fps: number}} Config
 */

/**
 * Latents [lamps, latent_size] and memories [lamps, memory_size], row by row.
 * @typedef {{latent: Float32Array, memory: Float32Array}} State
 */

/** @typedef {Generator<number, never, void>} Stream Normal numbers of one lamp. */

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
  ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1;
  const config = await (await fetched(new URL("lamp.json", base))).json();
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
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url.pathname} is missing`);
  return response;
}

/** A wall of independent lamps. A lamp is known by `seed` and its number, alone and among others. */
export class Lamps {
  /** @type {State} */ #state;
  /** @type {Float32Array} */ #latent;
  /** @type {number | undefined} */ #wanted;
  /** @type {{state: State, streams: Stream[], steps: number} | undefined} What these lamps are turning into. */
  #melting;

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
   * So many lamps after the burn-in.
   * @param {Networks} networks
   * @param {number} count
   * @param {number} seed
   */
  static async begin(networks, count, seed) {
    const streams = Array.from({ length: count }, (_, lamp) => normals(seed, lamp));
    return new Lamps(networks, count, await begun(networks, streams), streams);
  }

  /**
   * Let these lamps turn into those of another seed, over `melt` steps, as soon as they are themselves.
   * @param {number} seed
   */
  renew(seed) {
    this.#wanted = seed;
  }

  /**
   * One step on: `n` frames of each lamp, RGBA, [n, lamps, height, width, 4] in one array.
   * @param {number} n
   */
  async advance(n) {
    if (this.#wanted !== undefined && !this.#melting) {
      const seed = this.#wanted;
      const streams = this.streams.map((_, lamp) => normals(seed, lamp));
      this.#melting = { state: await begun(this.networks, streams), streams, steps: 0 };
      this.#wanted = undefined;
    }
    this.#state = await moved(this.networks, this.streams, this.#state);
    let following = this.#state.latent;
    const melting = this.#melting;
    if (melting) {
      melting.state = await moved(this.networks, melting.streams, melting.state);
      const share = ++melting.steps / this.networks.config.melt;
      following = turned(following, melting.state.latent, (1 - Math.cos(Math.PI * share)) / 2, this.count);
      if (share >= 1) [this.#state, this.streams, this.#melting] = [melting.state, melting.streams, undefined];
    }
    const start = this.#latent;
    this.#latent = following;
    return drawn(this.networks, start, following, n, this.count);
  }
}

/**
 * New lamps, rolled on until they are in the film.
 * @param {Networks} networks
 * @param {Stream[]} streams
 */
async function begun(networks, streams) {
  const { latent_size, memory_size, burn_in } = networks.config;
  const latent = drawnNormals(streams, latent_size);
  /** @type {State} */
  let state = {
    latent: standardised(latent, streams.length),
    memory: new Float32Array(streams.length * memory_size),
  };
  for (let i = 0; i < burn_in; i++) state = await moved(networks, streams, state);
  return state;
}

/**
 * The state one step on.
 * @param {Networks} networks
 * @param {Stream[]} streams
 * @param {State} state
 * @returns {Promise<State>}
 */
async function moved({ config, transition }, streams, state) {
  const rows = streams.length;
  const out = await transition.run({
    normal: new ort.Tensor(drawnNormals(streams, config.latent_size), [rows, config.latent_size]),
    latent: new ort.Tensor(state.latent, [rows, config.latent_size]),
    memory: new ort.Tensor(state.memory, [rows, config.memory_size]),
  });
  return {
    latent: /** @type {Float32Array} */ (out.next_latent.data),
    memory: /** @type {Float32Array} */ (out.next_memory.data),
  };
}

/**
 * `n` frames on the way from one latent of each lamp to the next.
 * @param {Networks} networks
 * @param {Float32Array} start
 * @param {Float32Array} end
 * @param {number} n
 * @param {number} rows
 */
async function drawn({ config, generator }, start, end, n, rows) {
  const shape = [rows, config.latent_size];
  const share = Float32Array.from({ length: n }, (_, i) => i / n);
  const { frames } = await generator.run({
    start: new ort.Tensor(start, shape),
    end: new ort.Tensor(end, shape),
    share: new ort.Tensor(share, [n]),
  });
  const pixels = new Uint8ClampedArray(/** @type {Uint8Array} */ (frames.data));
  frames.dispose();
  return pixels;
}

/**
 * The next `size` numbers of each stream, row by row.
 * @param {Stream[]} streams
 * @param {number} size
 */
function drawnNormals(streams, size) {
  return Float32Array.from({ length: streams.length * size }, (_, i) => streams[Math.floor(i / size)].next().value);
}

/**
 * Each row with mean 0 and deviation 1.
 * @param {Float32Array} latents
 * @param {number} rows
 */
function standardised(latents, rows) {
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
 * Latents on the way from `start` to `end` along the sphere, row by row; `share` 0..1 of it is behind them.
 * @param {Float32Array} start
 * @param {Float32Array} end
 * @param {number} share
 * @param {number} rows
 */
function turned(start, end, share, rows) {
  const size = start.length / rows;
  const between = new Float32Array(start.length);
  for (let row = 0; row < start.length; row += size) {
    let cosine = 0;
    for (let i = row; i < row + size; i++) cosine += (start[i] * end[i]) / size;
    const angle = Math.acos(Math.min(Math.max(cosine, -0.999), 0.999999));
    for (let i = row; i < row + size; i++)
      between[i] = (Math.sin((1 - share) * angle) * start[i] + Math.sin(share * angle) * end[i]) / Math.sin(angle);
  }
  return standardised(between, rows);
}
