"""How smoothly videos are watched: in a window, and in a browser.

    python benchmarks/watch.py [--weights PATH] [--fps 60] [--seconds 60] [--grid 1x1]

The window, of one video or a grid of them, opens on a virtual screen (Xvfb), the page, exported anew, in a headless
Chromium, a minute each. Prints the frames a second, and the median and 99th percentile of the time from one frame to
the next. Wants Xvfb, Chromium, and the page built by `make web`; what is missing is left out.
"""

import argparse
import contextlib
import functools
import http.server
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from files import UserError

COUNT = """() => {
    const drawImage = CanvasRenderingContext2D.prototype.drawImage;
    window.times = [];
    CanvasRenderingContext2D.prototype.drawImage = function (...args) {
        if (this.canvas.id === "video") window.times.push(performance.now() / 1000);
        return drawImage.apply(this, args);
    };
}"""


def window(prefix, fps, seconds, rows, columns):
    """Show videos in a window for so long; the times of their frames, in seconds."""
    with screen():
        import cv2

        from learn import quiet_imports
        from window import show

        with quiet_imports():
            import sample
        times, imshow = [], cv2.imshow

        def timed(*args):
            imshow(*args)
            times.append(time.perf_counter())

        cv2.imshow = timed
        frames = (sample.tile(frames, rows) for frames in sample.Sampler(prefix, rows * columns).frames())
        next(frames)  # the networks are built, and the first frame is drawn
        end = time.perf_counter() + seconds
        show(itertools.takewhile(lambda _: time.perf_counter() < end, frames), fps)
        return times


@contextlib.contextmanager
def screen():
    """A display: the user's own is left alone."""
    os.environ.pop("WAYLAND_DISPLAY", None)
    read, write = os.pipe()
    server = subprocess.Popen(["Xvfb", "-displayfd", str(write), "-screen", "0", "1280x1024x24"], pass_fds=[write],
                              stderr=subprocess.DEVNULL)
    os.close(write)
    with open(read) as pipe:
        os.environ["DISPLAY"] = f":{pipe.readline().strip()}"
    try:
        yield
    finally:
        server.terminate()


def page(prefix, seconds):
    """Play an export in Chromium for so long; the times of its frames, in seconds."""
    from playwright.sync_api import sync_playwright

    from learn import quiet_imports

    with quiet_imports():
        import export
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        export.export(prefix, Path(folder, "page"))
        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=Path(folder, "page"))
        handler.func.log_message = lambda *_: None
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"),
                                             args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"])
        tab = browser.new_page(viewport=dict(width=1280, height=800))
        tab.add_init_script(f"({COUNT})()")
        tab.goto(f"http://127.0.0.1:{server.server_port}/?seed=1")
        tab.wait_for_function("window.times.length > 60")
        tab.evaluate("window.times.length = 0")
        tab.wait_for_timeout(1000 * seconds)
        times = tab.evaluate("window.times")
        browser.close()
        server.shutdown()
        return times


def main():
    import checkpoints
    from learn import check_playing

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--weights")
    parser.add_argument("--fps", type=float, default=60)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--grid", default="1x1", help="rows x columns of videos in the window")
    flags = parser.parse_args()
    rows, columns = check_playing(0, flags.fps, flags.grid)
    prefix = checkpoints.find_weights(flags.weights)
    places = {"window": ("Xvfb", lambda: window(prefix, flags.fps, flags.seconds, rows, columns)),
              "page": ("chromium", lambda: page(prefix, flags.seconds))}
    for name, (program, measure) in places.items():
        if not shutil.which(program):
            print(f"{name}: left out, {program} is not installed")
            continue
        try:
            intervals = np.diff(measure()) * 1000
        except UserError as error:
            print(f"{name}: left out, {error}")
            continue
        median, late = np.quantile(intervals, (0.5, 0.99))
        print(f"{name}: {1000 / intervals.mean():.1f} frames a second; from one to the next {median:.1f} ms in the "
              f"median, {late:.1f} ms at the 99th percentile")


if __name__ == "__main__":
    main()
