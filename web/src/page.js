// The page: asks the worker for frames ahead of time, shows each when its time has come, and listens to its viewer.

/** @typedef {import("./worker.js").Command} Command */
/** @typedef {import("./worker.js").Answer} Answer */

const GRID = 12; // videos in a grid
const AHEAD = 3; // steps of frames made before they are shown, at least
const BUFFER = 0.2; // seconds of frames made before they are shown, at least
const RATE = 60; // frames made for a second of video, whatever the footage's rate and the speed
const BUSY = 700; // ms of each second that making frames may take, so that a phone does not get too hot
const LARGEST_STEP = 2 ** 25; // bytes of the frames of a step: at a low speed there are many
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
let pace = 0; // presses of faster less those of slower
let speed = 1; // 1.25 to the power of it
let paused = matchMedia("(prefers-reduced-motion: reduce)").matches;
let made = RATE; // fewer where the machine is slow
let cost = 0; // ms that a frame of all videos lately took to make
/** @type {import("./sample.js").Config | undefined} */
let config;
/** @type {{pixels: Uint8ClampedArray<ArrayBuffer>, n: number}[]} */
let steps = []; // generated and not yet over; the first is shown
let asked = 0; // steps not yet answered
let place = 0; // position in the first step, 0..1
let shown = -1; // its frame on the screen
let last = 0; // when the screen was last refreshed
let loading = true; // no frame was drawn yet
let failed = false;
let hiding = 0; // the timer that ends a note

/** @param {string | null} text */
function whole(text) {
  return text && /^\d{1,10}$/.test(text) ? Number(text) : undefined;
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
  ask({ kind: "begin", seed, count });
}

/** @param {MessageEvent<Answer>} message */
function receive({ data }) {
  if (data.kind === "failed") return fail(`The model cannot be loaded or run: ${data.reason}.`);
  if (data.kind === "begun") {
    // Of what was asked before, all is answered by now.
    [config, steps, place, shown, cost] = [data.config, [], 0, -1, 0];
    resize();
  } else if (data.kind === "frames") {
    asked -= 1;
    if (!config || data.pixels.length !== data.n * count * config.img_size ** 2 * 4) return; // of the videos before
    steps.push(data);
    cost += (data.milliseconds / data.n - cost) / (cost ? 8 : 1);
    made = Math.min(RATE, BUSY / cost);
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
  const most = Math.floor(LARGEST_STEP / (4 * count * config.img_size ** 2));
  const n = Math.max(1, Math.min(Math.round(made / rate), most));
  const waiting = asked > 0;
  while (asked + steps.length < ahead) ask({ kind: "advance", n });
  if (!steps.length) return;
  // Evenly, where steps come late.
  if (!paused) place += passed * (waiting ? Math.min(rate, 1000 / (cost * steps[0].n)) : rate);
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
  for (let i = 0; i < count; i++) {
    const at = (frame * count + i) * one;
    const image = new ImageData(steps[0].pixels.subarray(at, at + one), size, size);
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
  const widths = Array.from({ length: count }, (_, i) => i + 1);
  const side = (/** @type {number} */ columns) => Math.min(width / columns, height / Math.ceil(count / columns));
  const columns = widths.reduce((best, other) => (side(other) > side(best) ? other : best));
  const rows = Math.ceil(count / columns);
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
  slower: () => changeSpeed(-1),
  faster: () => changeSpeed(1),
  restart() {
    seed = Math.floor(Math.random() * 1e6);
    remember();
    if (paused) begin(); // a fade would wait
    else ask({ kind: "restart", seed });
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
  const name = paused ? "Play" : "Pause";
  [button.textContent, button.title] = [paused ? "▶" : "❚❚", `${name} (space)`];
  button.setAttribute("aria-label", name);
}

/** @param {number} change */
function changeSpeed(change) {
  pace = Math.min(Math.max(pace + change, -10), 6);
  speed = 1.25 ** pace;
  tell(`${speed.toFixed(2)} times as fast`);
}

/** @type {Record<string, keyof typeof actions>} */
const KEYS = {
  " ": "pause", n: "restart", "+": "faster", "=": "faster", "-": "slower", g: "grid", f: "full", h: "help", "?": "help",
};

let over = false; // whether a pointer is on the bar; a browser leaves :hover on what a finger touched last
let idle = 0;
/** Show the bar, until there is no input for IDLE ms. */
function wake() {
  document.body.classList.remove("quiet");
  clearTimeout(idle);
  idle = setTimeout(() => !over && !bar.matches(":focus-within") && document.body.classList.add("quiet"), IDLE);
}

/** The worker that generates the frames; undefined where the browser has none, which a note then says. */
function startWorker() {
  if (location.protocol === "file:")
    return fail("A browser does not let a page read its model from a file. Serve this folder, for example with: " +
      "python -m http.server");
  if (typeof WebAssembly !== "object" || typeof Worker !== "function" || !picture)
    return fail("This browser lacks WebAssembly or workers, which this page needs. A newer one has them.");
  try {
    const worker = new Worker(new URL("worker.js", location.href), { type: "module" });
    worker.onmessage = receive;
    worker.onerror = () => fail("worker.js did not start: it is missing beside this page, or is not served as " +
      "JavaScript, or this browser is older than 2023.");
    return worker;
  } catch (error) {
    return fail(`This page may not start its worker here: ${error instanceof Error ? error.message : error}.`);
  }
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
  bar.addEventListener("pointerenter", () => (over = true));
  bar.addEventListener("pointerleave", () => (over = false));
  for (const kind of ["pointermove", "pointerdown", "keydown"]) addEventListener(kind, wake);
  addEventListener("resize", resize);
  if (paused) tell("Your system asks for little motion, so the video is paused. Space or ▶ plays it.", 0);
  label();
  begin();
  wake();
  requestAnimationFrame(refresh);
}
