// The page: asks the worker for frames ahead of time, shows each when its time has come, and listens to its viewer.

/** @typedef {import("./worker.js").Command} Command */
/** @typedef {import("./worker.js").Answer} Answer */

const GRID = 12; // videos in a grid
const AHEAD = 3; // steps of frames made before they are shown, at least
const BUFFER = 0.2; // seconds of frames made before they are shown, at least
const NOTE = 2500; // ms that a note is shown
const IDLE = 3000; // ms without input after which the bar is hidden
const SMOOTH = 4; // pixels of the canvas to one of a frame; the browser enlarges further
const LARGEST = 4096; // pixels of the canvas in height and width; iPhones show no larger one

/** @template {HTMLElement} T @param {string} id */
const element = (id) => /** @type {T} */ (document.getElementById(id));
const canvas = /** @type {HTMLCanvasElement} */ (element("video"));
const note = element("note");
const bar = element("bar");
const picture = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
const small = document.createElement("canvas"); // the videos side by side, at their own size
const tiles = /** @type {CanvasRenderingContext2D} */ (small.getContext("2d"));

const address = new URLSearchParams(location.search);
let seed = whole(address.get("seed")) ?? Math.floor(Math.random() * 1e6);
let count = Math.min(whole(address.get("videos")) || 1, 2 * GRID);
let speed = 1;
let paused = matchMedia("(prefers-reduced-motion: reduce)").matches;
let dense = 2; // frames to one of the footage; 1 where the machine is too slow
/** @type {import("./sample.js").Config | undefined} */
let config;
/** @type {{pixels: Uint8ClampedArray, n: number}[]} */
let steps = []; // generated and not yet over; the first is shown
let asked = 0; // steps not yet answered
let place = 0; // position in the first step, 0..1
let shown = -1; // its frame on the screen
let last = 0; // when the screen was last refreshed
let loading = true; // no frame was drawn yet
let failed = false;
let slow = 0; // steps in a row that took long
let hiding = 0; // the timer that ends a note

/** @param {string | null} text */
function whole(text) {
  return text && /^\d{1,9}$/.test(text) ? Number(text) : undefined;
}

/** @param {string} text @param {number} [milliseconds] 0: for good */
function tell(text, milliseconds = NOTE) {
  note.textContent = text;
  clearTimeout(hiding);
  if (milliseconds) hiding = setTimeout(() => (note.textContent = ""), milliseconds);
}

/** @param {string} reason */
function fail(reason) {
  failed = true;
  document.body.classList.remove("quiet");
  bar.hidden = true;
  tell(reason, 0);
}

/** @param {Command} command */
function ask(command) {
  if (command.kind === "advance") asked += 1;
  worker?.postMessage(command);
}

/** Set the page's address to that of these videos. */
function remember() {
  address.set("seed", String(seed));
  if (count > 1) address.set("videos", String(count));
  else address.delete("videos");
  history.replaceState(null, "", `?${address}`);
}

/** Begin with `count` videos of `seed`; frames of others are dropped. */
function begin() {
  remember();
  config = undefined;
  dense = 2;
  ask({ kind: "begin", seed, count });
}

/** @param {MessageEvent<Answer>} message */
function receive({ data }) {
  if (data.kind === "failed") return fail(`The model cannot be loaded or run: ${data.reason}.`);
  if (data.kind === "begun") {
    // Of what was asked before, all is answered by now.
    [config, steps, place, shown] = [data.config, [], 0, -1];
    resize();
  } else if (data.kind === "frames") {
    asked -= 1;
    if (!config || data.pixels.length !== data.n * count * config.img_size ** 2 * 4) return; // of the videos before
    steps.push(data);
    // Where generating takes over half of the time, fewer frames are generated, so that a phone does not get so hot.
    const budget = (1000 * config.every_nth) / config.fps / speed;
    slow = data.milliseconds > budget / 2 ? slow + 1 : 0;
    if (slow > 5 && dense > 1) [dense, slow] = [1, 0];
  }
}

/** @param {number} now */
function refresh(now) {
  requestAnimationFrame(refresh);
  const passed = Math.min(now - last, 100) / 1000;
  last = now;
  if (!config || failed) return;
  const rate = (speed * config.fps) / config.every_nth; // steps a second
  const ahead = Math.max(AHEAD, Math.ceil(BUFFER * rate));
  while (asked + steps.length < ahead) ask({ kind: "advance", n: dense * config.every_nth });
  if (!steps.length) return;
  if (!paused) place += passed * rate;
  for (; place >= 1 && steps.length > 1; place -= 1, shown = -1) steps.shift();
  place = Math.min(place, 0.999); // wait, where the next step is not there yet
  const frame = Math.floor(place * steps[0].n);
  if (frame !== shown) draw(frame);
}

/** @param {number} frame Which frame of the first step. */
function draw(frame) {
  if (!config) return;
  const size = config.img_size;
  const one = size * size * 4;
  const columns = small.width / size;
  const image = new ImageData(size, size);
  for (let i = 0; i < count; i++) {
    const at = (frame * count + i) * one;
    image.data.set(steps[0].pixels.subarray(at, at + one));
    tiles.putImageData(image, (i % columns) * size, Math.floor(i / columns) * size);
  }
  picture.drawImage(small, 0, 0, canvas.width, canvas.height);
  if (loading && !paused) tell("");
  [shown, loading] = [frame, false];
}

/** Arrange the videos so that they fill the window as far as possible. */
function resize() {
  if (!config) return;
  const { innerWidth: width, innerHeight: height } = window;
  const wide = Array.from({ length: count }, (_, i) => i + 1).filter((columns) => count % columns === 0);
  const side = (/** @type {number} */ columns) => Math.min(width / columns, height / (count / columns));
  const columns = wide.reduce((best, other) => (side(other) > side(best) ? other : best));
  const rows = count / columns;
  [small.width, small.height] = [columns * config.img_size, rows * config.img_size];
  canvas.style.width = `${side(columns) * columns}px`;
  canvas.style.height = `${side(columns) * rows}px`;
  const scale = Math.min(SMOOTH, LARGEST / Math.max(small.width, small.height));
  [canvas.width, canvas.height] = [scale * small.width, scale * small.height];
  picture.imageSmoothingQuality = "high";
  shown = -1;
}

const actions = {
  pause() {
    paused = !paused;
    label();
    tell(paused ? "paused" : "");
  },
  slower: () => changeSpeed(0.8),
  faster: () => changeSpeed(1.25),
  restart() {
    seed = Math.floor(Math.random() * 1e6);
    remember();
    ask({ kind: "restart", seed });
    tell(`video ${seed}; this page's address leads to it`);
  },
  grid() {
    count = count > 1 ? 1 : GRID;
    begin();
  },
  full() {
    if (document.fullscreenElement) document.exitFullscreen();
    else if (!document.fullscreenEnabled) tell("this browser has no full screen");
    else document.documentElement.requestFullscreen().catch(() => tell("this browser refuses a full screen"));
  },
  help: () => tell("space: pause, n: new video, + and −: speed, g: grid of videos, f: full screen", 3 * NOTE),
};

/** Label the first button by what it does. */
function label() {
  const button = /** @type {HTMLElement} */ (bar.querySelector("[data-do=pause]"));
  [button.textContent, button.ariaLabel] = paused ? ["▶", "Play"] : ["❚❚", "Pause"];
}

/** @param {number} factor */
function changeSpeed(factor) {
  speed = Math.min(Math.max(speed * factor, 0.1), 4);
  tell(`${speed.toFixed(2)} times as fast`);
}

/** @type {Record<string, keyof typeof actions>} */
const KEYS = {
  " ": "pause", n: "restart", "+": "faster", "=": "faster", "-": "slower", g: "grid", f: "full", h: "help", "?": "help",
};

let idle = 0;
/** Show the bar, until there is no input for IDLE ms. */
function wake() {
  document.body.classList.remove("quiet");
  clearTimeout(idle);
  idle = setTimeout(() => !bar.matches(":focus-within, :hover") && document.body.classList.add("quiet"), IDLE);
}

/** The worker that generates the frames; undefined where the browser has none, which a note then says. */
function startWorker() {
  if (location.protocol === "file:")
    return fail("A browser does not let a page read its model from a file. Serve this folder, for example with: " +
      "python -m http.server");
  if (typeof WebAssembly !== "object" || typeof Worker !== "function" || !picture)
    return fail("This browser lacks WebAssembly or workers, which this page needs. A newer one has them.");
  const worker = new Worker(new URL("worker.js", location.href), { type: "module" });
  worker.onmessage = receive;
  worker.onerror = () => fail("This browser cannot run this page's worker. A newer one can.");
  return worker;
}

const worker = startWorker();
if (worker) {
  addEventListener("keydown", (event) => {
    const action = KEYS[event.key.toLowerCase()];
    if (!action || failed || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.repeat && !["faster", "slower"].includes(action)) return;
    if (event.target instanceof HTMLButtonElement && event.key === " ") return; // which it presses by itself
    event.preventDefault();
    actions[action]();
  });
  bar.addEventListener("click", ({ target, detail }) => {
    const button = target instanceof HTMLButtonElement && target;
    if (!button || failed) return;
    actions[/** @type {keyof typeof actions} */ (button.dataset.do)]();
    if (detail) button.blur(); // by mouse or touch: the keys are again those of the page, and the bar may hide
  });
  for (const kind of ["pointermove", "pointerdown", "keydown"]) addEventListener(kind, wake);
  addEventListener("resize", resize);
  if (paused) tell("Your system asks for little motion, so the video is paused. Space or ▶ plays it.", 0);
  label();
  begin();
  wake();
  requestAnimationFrame(refresh);
}
