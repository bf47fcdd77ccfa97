"""Windows on a screen nobody looks at: opened, seen, and used as a person would."""

import ctypes
import ctypes.util
import os
import signal
import subprocess
import time

import cv2
import numpy as np
import pytest
from PIL import ImageGrab

from helpers import PATIENCE, ROOT, hear_signals, until

needs_windows = pytest.mark.skipif(not cv2.currentUIFramework(), reason="this OpenCV was built without windows")


def environment(**changes):
    """This process's environment, without any display or choice of Qt's, with the project's modules to import."""
    foreign = "DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM", "XDG_SESSION_TYPE"
    return {k: v for k, v in os.environ.items() if k not in foreign} | {"PYTHONPATH": str(ROOT)} | changes


class Window:
    """A process that shows a window on `display`, and what a person does with a mouse and a keyboard."""

    def __init__(self, display, command, **env):
        self.display = display
        self.process = subprocess.Popen(command, text=True, preexec_fn=hear_signals, stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                        env=environment(DISPLAY=display, **env))

    def __enter__(self):
        self.id = until(self.find, self.process)
        return self

    def wait_for_picture(self):
        # Without a window manager Qt misses about once in ten times that its window is mapped, and paints nothing.
        for patience in (5, 20, PATIENCE):
            try:
                return until(lambda: self.picture().any(), self.process, patience)
            except TimeoutError:
                self.xdotool("windowunmap", self.id, "sleep", 0.1, "windowmap", self.id)
        raise AssertionError("no picture in the window")

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()

    def xdotool(self, *args):
        return subprocess.run(["xdotool", *map(str, args)], env=environment(DISPLAY=self.display), text=True,
                              capture_output=True).stdout.split()

    def find(self):
        """The id of a visible window that holds the title, of the process itself and not of its check."""
        found = self.xdotool("search", "--onlyvisible", "--name", "duralava")
        return next((w for w in found if self.xdotool("getwindowpid", w) == [str(self.process.pid)]), None)

    def picture(self):
        """What the screen shows at the window: uint8 RGB [H, W, 3]."""
        shell = self.xdotool("getwindowgeometry", "--shell", self.id)
        place = {k: int(v) for k, v in (line.split("=") for line in shell)}
        screen = np.asarray(ImageGrab.grab(xdisplay=self.display).convert("RGB"))
        return screen[place["Y"]:place["Y"] + place["HEIGHT"], place["X"]:place["X"] + place["WIDTH"]]

    def key(self, name):
        self.xdotool("key", "--window", self.id, name)
        time.sleep(0.2)  # as fast as a finger: of keys that arrive in one moment OpenCV knows but the last

    def close(self):
        """What a window manager does when the cross in the title bar is clicked."""
        delete_window(self.display, int(self.id))

    def interrupt(self):
        self.process.send_signal(signal.SIGINT)


def delete_window(display, window):
    """Send a window the message WM_DELETE_WINDOW (xdotool could only destroy it)."""
    if not (name := ctypes.util.find_library("X11")):
        pytest.skip("libX11 is not installed")
    x = ctypes.CDLL(name)
    x.XOpenDisplay.restype = ctypes.c_void_p
    x.XInternAtom.restype = ctypes.c_ulong
    connection = ctypes.c_void_p(x.XOpenDisplay(display.encode()))

    class ClientMessage(ctypes.Structure):
        _fields_ = (("type", ctypes.c_int), ("serial", ctypes.c_ulong), ("send_event", ctypes.c_int),
                    ("display", ctypes.c_void_p), ("window", ctypes.c_ulong), ("message_type", ctypes.c_ulong),
                    ("format", ctypes.c_int), ("data", ctypes.c_long * 5), ("rest", ctypes.c_long * 16))

    protocols, delete = (x.XInternAtom(connection, atom, 0) for atom in (b"WM_PROTOCOLS", b"WM_DELETE_WINDOW"))
    message = ClientMessage(33, 0, 1, connection, window, protocols, 32, (ctypes.c_long * 5)(delete, 0))
    x.XSendEvent(connection, ctypes.c_ulong(window), 0, ctypes.c_long(0), ctypes.byref(message))
    x.XCloseDisplay(connection)
