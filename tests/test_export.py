"""What --mode export writes, and the page that plays it, in a real browser."""

import base64
import contextlib
import http.server
import io
import json
import os
import shutil
import subprocess
import threading
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

import export
from files import UserError
from helpers import PATIENCE, ROOT, learn, until
from sample import Sampler

pytestmark = pytest.mark.slow
EVERY_NTH = 2  # of the run


@pytest.fixture(scope="session")
def built():
    """The page, built."""
    if not shutil.which("npm"):
        pytest.skip("npm is not installed")
    subprocess.run(["make", "web"], cwd=ROOT, check=True, capture_output=True, text=True)


@pytest.fixture(scope="session")
def page(request, run, tmp_path_factory):
    """The folder of an exported model."""
    request.getfixturevalue("built")
    folder = tmp_path_factory.mktemp("exported")
    done = learn(folder, "--mode=export", "--weights", run, "--out=page")
    assert (done.returncode, done.stderr) == (0, "")
    assert "http.server" in done.stdout
    return folder / "page"


def test_onnx_computes_the_same(page, run):
    config = json.loads((page / "model.json").read_text())
    sessions = {name: onnxruntime.InferenceSession(page / f"{name}.onnx") for name in ("transition", "generator")}
    sampler = Sampler(run / "weights.10", n=2, seed=4)
    start, memory = (part.numpy() for part in sampler.initial_state())
    normal = sampler.normals()
    end, _ = sessions["transition"].run(None, dict(normal=normal, latent=start, memory=memory))
    share = np.arange(config["every_nth"], dtype=np.float32) / config["every_nth"]
    [frames] = sessions["generator"].run(["frames"], dict(start=start, end=end, share=share))
    assert (frames.shape, frames.dtype) == ((EVERY_NTH, 2, 16, 16, 4), np.uint8)
    assert (frames[..., 3] == 255).all()
    following = sampler.step(normal, (start, memory))[0].numpy()
    np.testing.assert_allclose(end, following, atol=1e-5)
    drawn = np.stack(list(sampler.decode(np.stack([start, following], axis=1))))
    assert np.abs(frames[..., :3].astype(int) - drawn).max() <= 1


def test_export_needs_tensorflow(run, tmp_path):
    done = learn(tmp_path, "--mode=export", "--weights", run, env=os.environ | dict(KERAS_BACKEND="jax"))
    assert done.returncode == 2
    assert done.stderr == ("learn.py: --mode export needs TensorFlow; run it with KERAS_BACKEND=tensorflow, which "
                           "reads the same weights\n")


def test_export_refuses_what_it_should(run, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "PAGE", tmp_path / "nothing")
    with pytest.raises(UserError, match="make web"):
        export.export(run / "weights.10", tmp_path / "out")
    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing" / "index.html").touch()
    (tmp_path / "out").mkdir()
    killed = tmp_path / "out" / ".generator.onnx.99999999.part"
    killed.touch()
    os.utime(killed, (0, 0))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "index.html").write_text("mine")
    for text in "{}", "[]", "mine":
        with pytest.raises(UserError, match="other things"):
            export.export(run / "weights.10", tmp_path / "full")
        (tmp_path / "full" / "model.json").write_text(text)  # as other programs name their models, too
    with pytest.raises(UserError, match="is a file"):
        export.export(run / "weights.10", tmp_path / "full" / "index.html")
    with pytest.raises(UserError, match="cannot be written to"):
        export.check(tmp_path / "full" / "index.html" / "page")
    export.export(run / "weights.10", tmp_path / "out")
    exported = {"index.html", "model.json", "transition.onnx", "generator.onnx"}
    assert {file.name for file in (tmp_path / "out").iterdir()} == exported
    replace = os.replace

    def interrupted(part, path):
        if path.name == "generator.onnx":
            raise KeyboardInterrupt
        replace(part, path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            export.export(run / "weights.10", tmp_path / "out")
    assert not (tmp_path / "out" / "model.json").exists(), "no mixture of two models plays"
    export.export(run / "weights.10", tmp_path / "out")
    assert {file.name for file in (tmp_path / "out").iterdir()} == exported


def test_a_model_that_differs_is_not_exported(run, tmp_path, monkeypatch):
    (tmp_path / "index.html").touch()
    monkeypatch.setattr(export, "PAGE", tmp_path)
    monkeypatch.setattr(export, "LATENT_TOLERANCE", 0)
    with pytest.raises(UserError, match="differs"):
        export.export(run / "weights.10", tmp_path / "out")
    assert not (tmp_path / "out").exists()


HEADERS = {}  # that a test adds to every answer
SERVED = []  # paths that were asked for


@pytest.fixture(scope="session")
def address(page):
    """Where a web server without any settings serves the page."""
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            SERVED.append(self.path)

        def end_headers(self):
            for name, value in HEADERS.items():
                self.send_header(name, value)
            super().end_headers()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=page))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="session")
def chromium():
    """A Chromium nobody looks at."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if not program:
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as started:
        quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
        browser = started.chromium.launch(executable_path=program, args=quiet)
        yield browser
        browser.close()


@pytest.fixture
def tab(chromium, address):
    """A function that opens the page; afterwards no request went elsewhere, and there were no errors."""
    requests, errors, contexts = [], [], []

    def opened(query="", **options):
        context = chromium.new_context(viewport=dict(width=800, height=600), **options)
        context.set_default_timeout(1000 * PATIENCE)
        contexts.append(context)
        context.on("request", lambda request: requests.append(request.url))
        tab = context.new_page()
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        tab.goto(address + query)
        return tab

    yield opened
    for context in contexts:
        context.close()
    assert requests and all(url.startswith((address, "data:")) for url in requests)
    assert not errors


def content(url):
    """The bytes in a data URL."""
    return base64.b64decode(url.partition(",")[2])


def picture(tab):
    """What the canvas holds, uint8 RGB [H, W, 3], once it holds something."""
    def read():
        url = tab.evaluate("document.getElementById('video').toDataURL()")
        return np.asarray(Image.open(io.BytesIO(content(url))).convert("RGB"))

    until(lambda: read().any())
    return read()


def assert_moves(page):
    before = picture(page)
    until(lambda: (picture(page) != before).any())


def assert_rests(page):
    before = picture(page)
    page.wait_for_timeout(500)
    assert (picture(page) == before).all()


FRAMES = """([seed, count, n, steps]) => new Promise((resolve, reject) => {
    const worker = new Worker("worker.js", {type: "module"}), frames = [], reader = new FileReader();
    const next = () => worker.postMessage({kind: "advance", n});
    reader.onload = () => resolve(reader.result);
    worker.onmessage = ({data}) => {
        if (data.kind === "failed") reject(data.reason);
        if (data.kind === "frames") frames.push(data.pixels);
        if (frames.length < steps) next(); else { worker.terminate(); reader.readAsDataURL(new Blob(frames)); }
    };
    worker.postMessage({kind: "begin", seed, count});
})"""


def made(tab, seed, count, n, steps):
    """What the page's worker draws in some steps, n frames of each of `count` videos a step: RGBA."""
    pixels = content(tab.evaluate(FRAMES, [seed, count, n, steps]))
    return np.frombuffer(pixels, np.uint8).reshape(steps * n, count, 16, 16, 4)


def test_the_browser_draws_the_frames_that_python_draws(tab, run):
    frames = made(tab(), 7, 2, EVERY_NTH, 50)[..., :3].astype(int)
    frames_of_python = Sampler(run / "weights.10", n=2, seed=7).frames()
    expected = np.stack([next(frames_of_python) for _ in range(50 * EVERY_NTH)])
    assert np.ptp(expected, axis=0).max() > 20, "it moves"
    assert np.abs(frames - expected).max() <= 2


def test_the_page_shows_the_frames_as_they_are(tab, run):
    shown = picture(tab("?seed=7", reduced_motion="reduce"))
    [frame] = next(Sampler(run / "weights.10", seed=7).frames())
    np.testing.assert_allclose(shown.mean((0, 1)), frame.mean((0, 1)), atol=3)
    assert np.median(np.abs(shown[::4, ::4].astype(int) - frame)) < 3


def test_many_frames_of_a_step_are_drawn_in_parts(tab):
    page = tab()
    few, many = (made(page, 7, 12, n, 1) for n in (2, 200))
    np.testing.assert_array_equal(many[::100], few)


def test_a_newer_export_is_shown(tab, page):
    for file in page.iterdir():
        os.utime(file, (0, 0))  # of a file that old a browser believes for years that it is the newest
    opened = tab()
    picture(opened)
    SERVED.clear()
    opened.reload()
    picture(opened)
    assert {"/model.json", "/transition.onnx", "/generator.onnx"} <= set(SERVED)


TICKS = """
let next, now = 0, asked = 0, answered = 0, frames = 0, goOn;
window.made = () => frames;
window.requestAnimationFrame = (refresh) => (next = refresh);
const post = Worker.prototype.postMessage;
Worker.prototype.postMessage = function (command) {
    if (command.kind === "begin") this.addEventListener("message", ({data}) => {
        answered += data.kind === "frames";
        setTimeout(goOn);
    });
    if (command.kind === "advance") [asked, frames] = [asked + 1, frames + command.n];
    post.call(this, command);
};
window.seconds = async (n) => {
    for (let i = 0; i < 60 * n; i++) {
        next(now += 1000 / 60);
        while (answered < asked) await new Promise((resolve) => (goOn = resolve));
    }
    return answered;
};
"""


def test_several_time_steps_between_two_refreshes_of_the_screen_are_played(tab, page, address):
    config = json.loads((page / "model.json").read_text())
    opened = tab("?seed=1")
    opened.add_init_script(TICKS)
    (page / "model.json").write_text(json.dumps(config | dict(fps=240, every_nth=1)))
    try:
        opened.goto(address + "?seed=1")
        until(lambda: opened.evaluate("seconds(0.1)") > 0)
        before = opened.evaluate("seconds(1)")
        assert opened.evaluate("seconds(2)") - before == pytest.approx(480, abs=8)
    finally:
        (page / "model.json").write_text(json.dumps(config))


@pytest.mark.parametrize("key", ["", "+", "-"])
def test_as_many_frames_are_made_as_a_screen_shows_at_any_speed(tab, address, key):
    opened = tab("?seed=1")
    opened.add_init_script(TICKS)
    opened.goto(address + "?seed=1")
    until(lambda: opened.evaluate("seconds(0.1)") > 0)
    for _ in range(5 if key else 0):
        opened.keyboard.press(key)
    opened.evaluate("seconds(5)")  # what was asked for before has been shown
    before = opened.evaluate("made()")
    assert 40 < (opened.evaluate("seconds(20).then(made)") - before) / 20 < 80


def test_the_video_moves_where_the_server_isolates_the_page(tab, monkeypatch):
    monkeypatch.setitem(HEADERS, "Cross-Origin-Opener-Policy", "same-origin")
    monkeypatch.setitem(HEADERS, "Cross-Origin-Embedder-Policy", "require-corp")
    page = tab("?seed=1")
    assert page.evaluate("crossOriginIsolated")
    assert_moves(page)


def test_the_video_moves_until_it_is_paused(tab):
    page = tab("?seed=1")
    assert_moves(page)
    page.keyboard.press(" ")
    assert page.locator("#note").inner_text() == "paused"
    page.wait_for_timeout(200)
    assert_rests(page)
    page.keyboard.press(" ")
    assert_moves(page)


@pytest.mark.parametrize("seed", [5, 2_147_483_647])
def test_the_seed_in_the_address_is_the_video(tab, seed):
    still = dict(reduced_motion="reduce")
    first, again, other = (picture(tab(f"?seed={seed}", **still)) for seed in (seed, seed, seed - 1))
    assert (first == again).all()
    assert (first != other).any()


def test_reduced_motion_is_honoured_until_asked_otherwise(tab):
    page = tab("?seed=5", reduced_motion="reduce")
    assert_rests(page)
    assert "little motion" in page.locator("#note").inner_text()
    page.mouse.move(400, 300)  # shows the bar
    page.get_by_label("Play").click()
    assert_moves(page)


def test_a_new_video_is_shown_while_paused(tab):
    page = tab("?seed=5", reduced_motion="reduce")
    before = picture(page)
    page.keyboard.press("n")
    until(lambda: (picture(page) != before).any())
    assert_rests(page)


def test_after_a_click_the_keys_are_those_of_the_page(tab):
    page = tab("?seed=5")
    picture(page)
    page.get_by_role("button", name="new video").click()
    address = page.url
    page.keyboard.press(" ")
    assert page.locator("#note").inner_text() == "paused"
    page.evaluate("""dispatchEvent(new KeyboardEvent("keydown", {key: " ", repeat: true}))""")
    assert page.locator("#note").inner_text() == "paused"
    assert page.url == address


def test_a_browser_without_full_screen_says_so(tab, address):
    page = tab()
    page.add_init_script("Object.defineProperty(Document.prototype, 'fullscreenEnabled', {value: undefined})")
    page.goto(address)
    page.keyboard.press("f")
    page.wait_for_function("document.getElementById('note').textContent.includes('no full screen')")


def test_a_new_video_gets_an_address_of_its_own(tab):
    page = tab()
    picture(page)
    before = page.url
    assert "seed=" in before
    page.keyboard.press("n")
    page.wait_for_url(lambda url: "seed=" in url and url != before)
    assert page.url.rpartition("=")[2] in page.locator("#note").inner_text()


def test_a_grid_fills_the_window(tab):
    page = tab("?seed=2", reduced_motion="reduce")
    picture(page)
    page.keyboard.press("g")
    page.wait_for_function("document.getElementById('video').clientWidth === 800")
    assert "videos=12" in page.url
    box = page.locator("#video").bounding_box()
    assert (box["width"], box["height"]) == (800, 600)  # three rows of four
    tiles = picture(page).reshape(3, 64, 4, 64, 3).swapaxes(1, 2).reshape(12, -1)
    assert len(np.unique(tiles, axis=0)) == 12
    page.keyboard.press("g")
    page.wait_for_function("document.getElementById('video').clientWidth === 600")
    assert "videos" not in page.url


def test_a_grid_in_the_address_has_its_limit(tab):
    page = tab("?seed=2&videos=999999999", reduced_motion="reduce")
    assert picture(page).shape[0] * picture(page).shape[1] == 24 * 64 * 64
    assert "videos=24" in page.url


def test_a_number_of_videos_without_divisors_fills_the_window(tab):
    page = tab("?seed=2&videos=13", reduced_motion="reduce")
    tiles = picture(page).reshape(3, 64, 5, 64, 3).swapaxes(1, 2).reshape(15, -1)
    assert list(np.median(tiles, axis=1) > 0) == 13 * [True] + 2 * [False]  # the last one's edge is blurred


def test_the_bar_hides_after_a_touch(tab):
    page = tab("?seed=2", has_touch=True, is_mobile=True)
    picture(page)
    page.locator("[data-do=faster]").tap()
    page.wait_for_function("document.body.classList.contains('quiet')")


def test_touch_finds_every_control(tab):
    page = tab("?seed=2", has_touch=True, is_mobile=True)
    picture(page)
    page.touchscreen.tap(400, 200)
    for action, note in {"faster": "1.25", "slower": "1.00", "pause": "paused"}.items():
        page.locator(f"[data-do={action}]").tap()
        assert note in page.locator("#note").inner_text()
    page.locator("[data-do=full]").tap()
    page.wait_for_function("document.fullscreenElement")


@pytest.fixture
def note(chromium):
    """A function that opens an address, after a script, and waits until the page says some words."""
    context = chromium.new_context()
    context.set_default_timeout(1000 * PATIENCE)

    def found(address, words, script=""):
        tab = context.new_page()
        tab.add_init_script(script)
        tab.goto(address)
        tab.wait_for_function(f"document.getElementById('note').textContent.includes('{words}')")
        for key in " n":
            tab.keyboard.press(key)
        assert words in tab.locator("#note").inner_text(), "for good"
        assert not tab.locator("#bar").is_visible()

    yield found
    context.close()


def test_a_browser_that_cannot_is_told_so(note, address):
    note(address, "This browser lacks", "delete window.WebAssembly")


def test_a_page_opened_from_a_file_says_how_to_serve_it(note, page):
    note((page / "index.html").as_uri(), "python -m http.server")


@pytest.mark.parametrize("name, words", [("generator.onnx", "generator.onnx is missing"),
                                         ("worker.js", "worker.js did not start: it is missing")])
def test_a_missing_file_is_named(note, page, address, name, words):
    (page / name).rename(page / "away")
    try:
        note(address, words)
    finally:
        (page / "away").rename(page / name)


def memory():
    """Bytes that the children of this process take, with theirs, shared pages counted once."""
    parents = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
    family, total = {os.getpid()}, 0
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    for child in family - {os.getpid()}:
        with contextlib.suppress(OSError, IndexError):  # it ended meanwhile
            total += int(Path(f"/proc/{child}/smaps_rollup").read_text().split("Pss:")[1].split()[0]) * 1024
    return total


def test_memory_of_the_page_stays_what_it_is(tab, address):
    page = tab("?seed=1")
    page.add_init_script(TICKS)
    page.goto(address + "?seed=1")
    until(lambda: page.evaluate("seconds(0.1)") > 0)
    page.evaluate("seconds(30)")
    before = memory()
    assert before > 50e6
    page.evaluate("seconds(150)")  # 9,000 frames
    assert memory() - before < 20e6
