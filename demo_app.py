"""A small web page on this machine to uncover a face: drop a photo, accept or paint the hole, compare.

    pip install -r requirements-demo.txt
    python demo_app.py [--port 7860] [--ngpu 0]

It listens on this machine only (127.0.0.1) unless --host says otherwise. No photo is kept: answers hold their pictures
themselves, and uploads lie in a temporary folder for some seconds, until they are read.
"""
from __future__ import annotations

import argparse
import base64
import contextlib
import html
import io
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Sequence

import numpy as np

from utils.errors import UserError
from utils.logging import note, run_script

UPLOAD_LIMIT = 30  # megabytes
PIXEL_LIMIT = 24  # megapixels
UPLOAD_SECONDS = 10  # for which an upload is kept; the page reads it at once
AUTOMATIC, PAINTED, BOTH = "what the program finds", "what I paint", "both"
INTRODUCTION = """# Uncover a face
Drop a photo in which sunglasses, a hand or a mask hides a face. The hole is found by itself, or paint it over what is
to go.
"""


class Demo:
    """What the page's buttons do. completer: `engine.photo.PhotoCompleter`, of which the options are not used."""

    def __init__(self, completer: Any):
        self.completer, self.one_at_a_time = completer, threading.Lock()

    def complete(self, edited: dict[str, Any] | None, hole: str, background: str, every_face: bool) -> str:
        """edited: the image editor's value. Returns HTML that holds the pictures, so that no file of them is needed.

        Raises UserError as `PhotoCompleter.complete` does, and where there is no photo or nothing painted.
        """
        from engine.photo import PhotoCompleter, PhotoOptions
        from engine.photo_pictures import overview
        from engine.photo_report import OVERVIEW_WIDTH, SLIDER_STYLE, embedded, slider

        if not edited or edited.get("background") is None:
            raise UserError("drop a photo first")
        photo = np.asarray(edited["background"])[:, :, :3]
        if photo.shape[0] * photo.shape[1] > PIXEL_LIMIT * 1e6:
            raise UserError(f"the photo has more than {PIXEL_LIMIT} megapixels: make it smaller, or use test_my.py")
        mask = None if hole == AUTOMATIC else painted(edited.get("layers") or [], photo.shape[:2])
        if mask is not None and not mask.any():
            raise UserError("nothing is painted yet: paint over what hides the face")
        source = "occlusion" if hole != PAINTED else "given"
        options = PhotoOptions(source, all_faces=every_face, face=None if every_face else 1, background=background)
        completer = PhotoCompleter(self.completer.completion, self.completer.detector, self.completer.device, options)
        with self.one_at_a_time:
            result = completer.complete(photo, "the photo", mask)
        steps, _, _ = embedded(overview(result), OVERVIEW_WIDTH)
        remarks = html.escape("; ".join(result.remarks))
        return (f"<style>{SLIDER_STYLE}</style>{slider(photo, result.complete_output, 'the photo')}<p>{remarks}</p>"
                f'<p><a download="completed.png" href="{_png(result.complete_output)}">Save the photo</a> &middot; '
                f'<a download="mask.png" href="{_png(result.mask)}">Save the mask</a></p>'
                f'<img style="max-width: 100%" src="{steps}" alt="photo, hole, mesh, albedo in and out, result">')


def _png(picture: np.ndarray) -> str:
    """uint8 (H, W, 3) or bool (H, W) as a data URI."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", compress_level=4)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def painted(layers: Sequence[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """Where any layer, uint8 RGBA, is painted: bool of size (height, width)."""
    from PIL import Image

    mask = np.zeros(size, bool)
    for layer in layers:
        alpha = np.asarray(layer)[:, :, 3]
        if alpha.shape != tuple(size):
            alpha = np.asarray(Image.fromarray(alpha).resize((size[1], size[0]), Image.Resampling.BILINEAR))
        mask |= alpha >= 128
    return mask


def build_page(demo: Demo):
    """The page as a `gradio.Blocks`. Raises UserError without Gradio."""
    gradio = load_gradio()

    def answer(*values: Any):
        try:
            return demo.complete(*values)
        except UserError as error:
            raise gradio.Error(str(error), print_exception=False) from None

    with gradio.Blocks(title="Uncover a face", analytics_enabled=False) as page:
        gradio.Markdown(INTRODUCTION)
        with gradio.Row():
            with gradio.Column():
                editor = gradio.ImageEditor(label="photo", type="numpy", sources=["upload", "clipboard"], layers=False,
                                            transforms=(), brush=gradio.Brush(colors=["#e63c28"], color_mode="fixed"),
                                            eraser=gradio.Eraser(), height=560)
                hole = gradio.Radio([AUTOMATIC, PAINTED, BOTH], value=AUTOMATIC, label="hidden is")
                background = gradio.Radio(["fill", "keep"], value="fill", label="beside the face (hair, background)")
                every_face = gradio.Checkbox(label="every face, not only the largest")
                button = gradio.Button("Complete", variant="primary")
            with gradio.Column():
                answered = gradio.HTML("<p>The completed photo will appear here.</p>")
        # Without a queue the uploads are read at once and need not be kept until it is their turn.
        button.click(answer, [editor, hole, background, every_face], answered, queue=False)
    return page


def load_gradio():
    """The package, told where to keep nothing. Raises UserError if it is missing."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import gradio
    except ImportError as error:
        raise UserError(f"the web page needs Gradio ({error}): pip install -r requirements-demo.txt") from None
    return gradio


class Uploads:
    """The temporary folder of uploads, from which everything vanishes after some seconds; a context manager."""

    def __enter__(self) -> Path:
        self.folder = Path(tempfile.mkdtemp(prefix="facefill-"))
        self.ended = threading.Event()
        self.sweeper = threading.Thread(target=self._sweep_on, daemon=True)
        self.sweeper.start()
        return self.folder

    def __exit__(self, *exception: Any) -> None:
        self.ended.set()
        self.sweeper.join()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _sweep_on(self) -> None:
        while not self.ended.wait(UPLOAD_SECONDS / 4):
            sweep(self.folder, UPLOAD_SECONDS)


def sweep(folder: Path, seconds: float) -> None:
    """Remove the files below a folder that are older than so many seconds."""
    for place, _, names in os.walk(folder):
        for path in (Path(place, name) for name in names):
            with contextlib.suppress(OSError):  # it has vanished meanwhile, or cannot be removed
                if time.time() - path.stat().st_mtime > seconds:
                    path.unlink()


def require_port(host: str, port: int) -> None:
    """UserError unless one can listen there; before anything is loaded."""
    if not 0 < port < 65536:
        raise UserError(f"--port {port}: a number from 1 to 65535")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.create_server((host, port), family=family):
            pass
    except OSError as error:
        raise UserError(f"cannot listen on {host}:{port} ({error.strerror}): choose another --port or --host, or stop "
                        "what uses it") from None


def main(argv: Sequence[str]) -> int:
    """Serve the page until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 lets others in")
    parser.add_argument("--port", type=int, default=7860, help="from 1 to 65535")
    parser.add_argument("--config", help="settings of the networks (default: this repository's args.txt)")
    parser.add_argument("--ngpu", type=int, default=1, help="0 = the CPU")
    options = parser.parse_args(argv)
    require_port(options.host, options.port)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C, so that the uploads go
    with Uploads() as uploads:
        os.environ["GRADIO_TEMP_DIR"] = str(uploads)
        load_gradio()
        from engine.photo import load_completer

        page = build_page(Demo(load_completer(options.config, ngpu=options.ngpu)))
        note(f"open http://{options.host}:{options.port} in a browser; Ctrl-C ends")
        page.launch(server_name=options.host, server_port=options.port, share=False, quiet=True, show_error=True,
                    max_file_size=f"{UPLOAD_LIMIT}mb")
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
