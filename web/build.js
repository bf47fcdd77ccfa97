// Bundles the page into dist/, which `learn.py --mode export` puts beside a model.

import { cp, mkdir, rm } from "node:fs/promises";
import { build } from "esbuild";

await rm("dist", { recursive: true, force: true });
await mkdir("dist");
const options = { bundle: true, minify: true, target: "es2022", legalComments: "linked", logLevel: "warning" };
// The page is a plain script: from a file a module would not even start, and could not say why.
await build({ ...options, entryPoints: ["src/page.js"], outdir: "dist", format: "iife" });
await build({ ...options, entryPoints: ["src/worker.js"], outdir: "dist", format: "esm" });
await cp("src/style.css", "dist/style.css");
await cp("node_modules/onnxruntime-web/dist/ort-wasm-simd-threaded.wasm", "dist/ort-wasm-simd-threaded.wasm");
await cp("src/index.html", "dist/index.html"); // last, as where it is the page counts as built
