// Makes the frames away from the page, so that it never stalls.

import { Lamps, load } from "./lamps.js";

/**
 * What the page asks for. `begin`: so many lamps of a seed. `renew`: melt into those of another. `advance`: the frames
 * of one step, `n` of each lamp.
 * @typedef {{kind: "begin", seed: number, count: number} | {kind: "renew", seed: number}
 *   | {kind: "advance", n: number}} Wish
 */

/**
 * What it answers, each request by itself and in order.
 * @typedef {{kind: "begun", config: import("./lamps.js").Config}
 *   | {kind: "frames", pixels: Uint8ClampedArray, n: number, milliseconds: number}
 *   | {kind: "failed", reason: string}} Answer
 */

const networks = load(new URL(".", self.location.href));
/** @type {Lamps} */
let lamps;

/** @param {Wish} wish @returns {Promise<Answer | undefined>} */
async function answer(wish) {
  switch (wish.kind) {
    case "begin":
      lamps = await Lamps.begin(await networks, wish.count, wish.seed);
      return { kind: "begun", config: lamps.networks.config };
    case "renew":
      lamps.renew(wish.seed);
      return undefined;
    case "advance": {
      const begun = performance.now();
      const pixels = await lamps.advance(wish.n);
      return { kind: "frames", pixels, n: wish.n, milliseconds: performance.now() - begun };
    }
  }
}

let queue = Promise.resolve();
self.onmessage = (/** @type {MessageEvent<Wish>} */ { data }) => {
  queue = queue.then(async () => {
    /** @type {Answer | undefined} */
    const told = await answer(data).catch((error) => ({ kind: "failed", reason: String(error.message ?? error) }));
    if (told) self.postMessage(told, { transfer: told.kind === "frames" ? [told.pixels.buffer] : [] });
  });
};
