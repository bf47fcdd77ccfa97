// Makes the frames away from the page, so that it never stalls.

import { load, Sampler } from "./sample.js";

/**
 * What the page asks for. `begin`: `count` videos of a seed. `restart`: fade into those of another. `advance`: the
 * frames of one step, `n` of each video.
 * @typedef {{kind: "begin", seed: number, count: number} | {kind: "restart", seed: number}
 *   | {kind: "advance", n: number}} Command
 */

/**
 * What it answers to each command, in order; nothing to a `restart` that succeeds.
 * @typedef {{kind: "begun", config: import("./sample.js").Config}
 *   | {kind: "frames", pixels: Uint8ClampedArray<ArrayBuffer>, n: number, milliseconds: number}
 *   | {kind: "failed", reason: string}} Answer
 */

const networks = load(new URL(".", self.location.href));
/** @type {Sampler} */
let sampler;

/** @param {Command} command @returns {Promise<Answer | undefined>} */
async function answer(command) {
  switch (command.kind) {
    case "begin":
      sampler = await Sampler.begin(await networks, command.count, command.seed);
      return { kind: "begun", config: sampler.networks.config };
    case "restart":
      sampler.restart(command.seed);
      return undefined;
    case "advance": {
      const begun = performance.now();
      const pixels = await sampler.advance(command.n);
      return { kind: "frames", pixels, n: command.n, milliseconds: performance.now() - begun };
    }
  }
}

let queue = Promise.resolve();
self.onmessage = (/** @type {MessageEvent<Command>} */ { data }) => {
  queue = queue.then(async () => {
    /** @type {Answer | undefined} */
    const reply = await answer(data).catch((error) => ({ kind: "failed", reason: String(error.message ?? error) }));
    if (reply) self.postMessage(reply, { transfer: reply.kind === "frames" ? [reply.pixels.buffer] : [] });
  });
};
