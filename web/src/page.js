// The page: asks the worker for frames ahead of time, shows each when its time has come, and listens to its viewer.

/** @typedef {import("./worker.js").Wish} Wish */
/** @typedef {import("./worker.js").Answer} Answer */

const WALL = 12; // lamps in a wall
const AHEAD = 3; // steps of frames made before they are shown
const NOTE = 2500; // ms that a note stays
const REST = 3000; // ms without a touch after which the bar fades
const SMOOTH = 4; // pixels of the canvas to one of a frame, by a curve; from there the browser enlarges by lines
const EDGE = 0.04; // of a frame, over which it fades into the room
const DARK = 16; // of 255: what is darker is not the lamp, and the room shows in its place
const GLOW = 500; // ms between two colours of the glow

/** @template {HTMLElement} T @param {string} id */
const element = (id) => /** @type {T} */ (document.getElementById(id));
const lamp = /** @type {HTMLCanvasElement} */ (element("lamp"));
const note = element("note");
const bar = element("bar");
const picture = /** @type {CanvasRenderingContext2D} */ (lamp.getContext("2d"));
const small = new OffscreenCanvas(1, 1); // the lamps side by side, a pixel a pixel
const tiles = /** @type {OffscreenCanvasRenderingContext2D} */ (small.getContext("2d"));

const address = new URLSearchParams(location.search);
let seed = whole(address.get("seed")) ?? Math.floor(Math.random() * 1e6);
let count = Math.min(whole(address.get("lamps")) || 1, 2 * WALL);
let speed = 1;
let paused = matchMedia("(prefers-reduced-motion: reduce)").matches;
let dense = 2; // frames to one of the footage; 1 where the machine does not keep up
/** @type {import("./lamps.js").Config | undefined} */
let config;
/** @type {{pixels: Uint8ClampedArray, n: number}[]} */
let steps = []; // made and not yet over; the first is on
let asked = 0; // steps not yet answered
let place = 0; // where the film is in its first step, 0..1
let shown = -1; // the frame of it on the screen
let last = 0; // when the screen was last refreshed
let lit = -GLOW; // when the glow last took its colour
let slow = 0; // steps in a row that took long
let telling = 0; // the timer that ends a note

/** @param {string | null} text */
function whole(text) {
  return text && /^\d{1,9}$/.test(text) ? Number(text) : undefined;
}

/** @param {string} text @param {number} [milliseconds] 0: for good */
function tell(text, milliseconds = NOTE) {
  note.textContent = text;
  clearTimeout(telling);
  if (milliseconds) telling = setTimeout(() => (note.textContent = ""), milliseconds);
}

/** @param {string} reason */
function fail(reason) {
  paused = true;
  document.body.classList.remove("quiet");
  bar.hidden = true;
  tell(reason, 0);
}

/** @param {Wish} wish */
function ask(wish) {
  if (wish.kind === "advance") asked += 1;
  worker?.postMessage(wish);
}

/** Let the page's address be that of these lamps. */
function remember() {
  address.set("seed", String(seed));
  if (count > 1) address.set("lamps", String(count));
  else address.delete("lamps");
  history.replaceState(null, "", `?${address}`);
}

/** Begin with `count` lamps of `seed`; what was made of others is dropped. */
function begin() {
  remember();
  config = undefined;
  ask({ kind: "begin", seed, count });
}

/** @param {MessageEvent<Answer>} message */
function hear({ data }) {
  if (data.kind === "failed") return fail(`The lamp cannot be lit: ${data.reason}.`);
  if (data.kind === "begun") {
    // Of what was asked before, all is answered by now.
    [config, steps, place, shown] = [data.config, [], 0, -1];
    resize();
  } else if (data.kind === "frames") {
    asked -= 1;
    if (!config || data.pixels.length !== data.n * count * config.img_size ** 2 * 4) return; // of the wall before
    steps.push(data);
    // Half of the time for a step may go into making it: a phone wants to stay cool.
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
  if (!config) return;
  while (asked + steps.length < AHEAD) ask({ kind: "advance", n: dense * config.every_nth });
  if (!steps.length) return;
  if (!paused) place += (passed * speed * config.fps) / config.every_nth;
  if (place >= 1 && steps.length > 1) {
    steps.shift();
    [place, shown] = [Math.min(place - 1, 0.999), -1];
  }
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
    shine(steps[0].pixels.subarray(at, at + one), image.data, size);
    tiles.putImageData(image, (i % columns) * size, Math.floor(i / columns) * size);
  }
  picture.clearRect(0, 0, lamp.width, lamp.height);
  picture.drawImage(small, 0, 0, lamp.width, lamp.height);
  if (lit < 0 && !paused) tell(""); // it is warm
  if (last - lit > GLOW) glow(steps[0].pixels.subarray(frame * count * one, (frame + 1) * count * one));
  shown = frame;
}

/**
 * A frame as light in the room: where it is dark, the room shows, and its edge melts away.
 * @param {Uint8ClampedArray} from
 * @param {Uint8ClampedArray} to
 * @param {number} size
 */
function shine(from, to, size) {
  const ramp = (/** @type {number} */ x) => Math.min(1, (Math.min(x, size - 1 - x) + 0.5) / (EDGE * size));
  const fade = Array.from({ length: size }, (_, x) => ramp(x));
  for (let y = 0, i = 0; y < size; y++)
    for (let x = 0; x < size; x++, i += 4) {
      const brightest = Math.max(from[i], from[i + 1], from[i + 2]);
      for (let c = i; c < i + 3; c++) to[c] = (255 * from[c]) / brightest;
      to[i + 3] = (255 * (brightest - DARK) * fade[x] * fade[y]) / (255 - DARK);
    }
}

/**
 * Let the room take the colours of the upper and the lower half of the first lamp.
 * @param {Uint8ClampedArray} pixels
 */
function glow(pixels) {
  const half = (config?.img_size ?? 0) ** 2 / 2;
  for (const [name, first] of /** @type {const} */ ([["--above", 0], ["--below", half]])) {
    const sum = [0, 0, 0];
    for (let i = 4 * first; i < 4 * (first + half); i++) if (i % 4 < 3) sum[i % 4] += pixels[i];
    document.body.style.setProperty(name, `rgb(${sum.map((value) => Math.round(value / half)).join(" ")})`);
  }
  lit = last;
}

/** Let the wall fill the window as far as it can, in the window's own pixels. */
function resize() {
  if (!config) return;
  const { innerWidth: width, innerHeight: height } = window;
  const wide = Array.from({ length: count }, (_, i) => i + 1).filter((columns) => count % columns === 0);
  const side = (/** @type {number} */ columns) => Math.min(width / columns, height / (count / columns));
  const columns = wide.reduce((best, other) => (side(other) > side(best) ? other : best));
  const rows = count / columns;
  [small.width, small.height] = [columns * config.img_size, rows * config.img_size];
  lamp.style.width = `${side(columns) * columns}px`;
  lamp.style.height = `${side(columns) * rows}px`;
  [lamp.width, lamp.height] = [SMOOTH * small.width, SMOOTH * small.height];
  picture.imageSmoothingQuality = "high";
  shown = -1;
}

const deeds = {
  pause() {
    paused = !paused;
    label();
    tell(paused ? "paused" : "");
  },
  slower: () => pace(0.8),
  faster: () => pace(1.25),
  renew() {
    seed = Math.floor(Math.random() * 1e6);
    remember();
    ask({ kind: "renew", seed });
    tell(`lamp ${seed}; its address is this page's`);
  },
  wall() {
    count = count > 1 ? 1 : WALL;
    begin();
  },
  full() {
    if (document.fullscreenElement) document.exitFullscreen();
    else document.documentElement.requestFullscreen?.().catch(() => tell("this browser knows no full screen"));
  },
  help: () => tell("space: pause, n: new lamp, + and −: speed, w: wall of lamps, f: full screen", 3 * NOTE),
};

/** Let the first button say what it does. */
function label() {
  const button = /** @type {HTMLElement} */ (bar.querySelector("[data-do=pause]"));
  [button.textContent, button.ariaLabel] = paused ? ["▶", "Play"] : ["❚❚", "Pause"];
}

/** @param {number} factor */
function pace(factor) {
  speed = Math.min(Math.max(speed * factor, 0.1), 4);
  tell(`${speed.toFixed(2)} times as fast`);
}

/** @type {Record<string, keyof typeof deeds>} */
const KEYS = {
  " ": "pause", n: "renew", "+": "faster", "=": "faster", "-": "slower", w: "wall", f: "full", h: "help", "?": "help",
};

let resting = 0;
/** Show the bar, until nothing happens for a while. */
function wake() {
  document.body.classList.remove("quiet");
  clearTimeout(resting);
  resting = setTimeout(() => !bar.matches(":focus-within, :hover") && document.body.classList.add("quiet"), REST);
}

/** The worker that makes the frames, or undefined where the browser cannot, which it then says. */
function hire() {
  if (location.protocol === "file:")
    return fail("A browser does not let a page read its lamp from a file. Serve this folder, for example with: " +
      "python -m http.server");
  if (typeof WebAssembly !== "object" || typeof Worker !== "function" || !picture)
    return fail("This browser lacks what the lamp needs, WebAssembly and workers. A newer one will do.");
  const worker = new Worker(new URL("worker.js", location.href), { type: "module" });
  worker.onmessage = hear;
  worker.onerror = () => fail("This browser cannot run the lamp's worker. A newer one will do.");
  return worker;
}

const worker = hire();
if (worker) {
  addEventListener("keydown", (event) => {
    const deed = KEYS[event.key.toLowerCase()];
    if (!deed || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target instanceof HTMLButtonElement && event.key === " ") return; // which it presses by itself
    event.preventDefault();
    deeds[deed]();
  });
  bar.addEventListener("click", ({ target }) => {
    const deed = target instanceof HTMLElement && target.dataset.do;
    if (deed) deeds[/** @type {keyof typeof deeds} */ (deed)]();
  });
  for (const kind of ["pointermove", "pointerdown", "keydown"]) addEventListener(kind, wake);
  addEventListener("resize", resize);
  if (paused) tell("Your system asks for little motion, so the lamp is paused. Space or ▶ lets it run.", 0);
  label();
  begin();
  wake();
  requestAnimationFrame(refresh);
}
