"""demo_app: what its buttons do, without a browser; the page itself only where Gradio is installed."""
from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import demo_app
from datasets.faces import astronaut
from test_photo import completer, hole
from utils.errors import UserError
from utils.logging import run_script


def edited(mask: np.ndarray | None = None, photo: np.ndarray | None = None) -> dict:
    """What the image editor hands over."""
    photo = astronaut() if photo is None else photo
    layer = np.zeros((*photo.shape[:2], 4), np.uint8)
    if mask is not None:
        layer[mask] = (230, 60, 40, 255)
    return {"background": np.dstack([photo, np.full(photo.shape[:2], 255, np.uint8)]), "layers": [layer],
            "composite": None}


def test_the_answer_holds_its_pictures_itself():
    answer = demo_app.Demo(completer()).complete(edited(hole()), demo_app.PAINTED, "fill", False)
    assert answer.count("data:image/jpeg;base64,") == 3 and answer.count("data:image/png;base64,") == 2
    assert "/file=" not in answer and "http" not in answer


@pytest.mark.parametrize("value, chosen, words", [
    (None, demo_app.AUTOMATIC, "drop a photo"), ({"background": None}, demo_app.AUTOMATIC, "drop a photo"),
    (edited(), demo_app.PAINTED, "nothing is painted"), (edited(hole(top=500, bottom=510, left=0, right=9)),
                                                         demo_app.PAINTED, "hides no part")])
def test_what_is_missing_is_said(value, chosen, words):
    with pytest.raises(UserError, match=words):
        demo_app.Demo(completer()).complete(value, chosen, "fill", False)


def test_huge_photos_are_refused(monkeypatch):
    monkeypatch.setattr(demo_app, "PIXEL_LIMIT", 0.2)
    with pytest.raises(UserError, match="megapixels"):
        demo_app.Demo(completer()).complete(edited(), demo_app.AUTOMATIC, "fill", False)


def test_painted_layers_are_joined_and_scaled():
    first, second = np.zeros((50, 60, 4), np.uint8), np.zeros((100, 120, 4), np.uint8)
    first[:10, :10, 3], second[80:, :, 3] = 255, 255
    mask = demo_app.painted([first, second], (100, 120))
    assert mask[5, 5] and mask[90, 100] and not mask[50, 50]


def test_uploads_vanish_by_themselves_and_at_the_end():
    with demo_app.Uploads() as folder:
        (folder / "sub").mkdir()
        for name in ("old.png", "sub/old.png", "new.png"):
            (folder / name).write_bytes(b"x")
        past = time.time() - 60
        for name in ("old.png", "sub/old.png"):
            os.utime(folder / name, (past, past))
        demo_app.sweep(folder, demo_app.UPLOAD_SECONDS)
        assert [path.name for path in folder.rglob("*") if path.is_file()] == ["new.png"]
    assert not folder.exists()


def test_a_file_that_vanishes_or_is_in_use_does_not_stop_the_sweeping(monkeypatch, tmp_path):
    for name in ("a.png", "b.png", "old.png"):
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, (0, 0))
    unlink = Path.unlink
    errors = {"a.png": FileNotFoundError(2, "No such file"), "b.png": PermissionError(13, "In use")}

    def remove(path, **options):
        if path.name in errors:
            raise errors[path.name]
        unlink(path, **options)

    monkeypatch.setattr(Path, "unlink", remove)
    demo_app.sweep(tmp_path, demo_app.UPLOAD_SECONDS)
    assert sorted(os.listdir(tmp_path)) == ["a.png", "b.png"]


@pytest.fixture
def page(monkeypatch):
    """The page that main serves; to be given what happens when it does."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    monkeypatch.setattr(demo_app, "load_gradio", lambda: None)
    page = SimpleNamespace()
    monkeypatch.setattr(demo_app, "build_page", lambda demo: page)
    monkeypatch.setattr("engine.photo.load_completer", lambda *values, **options: completer())
    monkeypatch.setattr("signal.signal", lambda *values: None)
    return page


def test_a_port_in_use_or_beyond_all_is_one_line_before_anything_is_loaded(monkeypatch, capsys):
    monkeypatch.setattr(demo_app, "load_gradio", lambda: pytest.fail("loaded"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for port, says in ((taken.getsockname()[1], "cannot listen on 127.0.0.1:"), (99999, "1 to 65535"),
                           (0, "1 to 65535")):
            assert run_script(demo_app.main, ["--port", str(port)]) == 1
            captured = capsys.readouterr()
            assert says in captured.err and str(port) in captured.err and len(captured.err.splitlines()) == 1
            assert not captured.out


def test_it_listens_here_alone_and_leaves_nothing_behind(page):
    """What Gradio is told: this machine, no tunnel, a limit of uploads, and a folder that is gone at the end."""
    told = {}

    def launch(**options):
        folder = Path(os.environ["GRADIO_TEMP_DIR"])
        (folder / "upload.png").write_bytes(b"x")
        told.update(options, folder=folder)
        raise KeyboardInterrupt

    page.launch = launch
    with pytest.raises(KeyboardInterrupt):
        demo_app.main([])
    assert told["server_name"] == "127.0.0.1" and told["share"] is False and told["max_file_size"] == "30mb"
    assert not told["folder"].exists()


def test_without_gradio_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    with pytest.raises(UserError, match="requirements-demo.txt"):
        demo_app.load_gradio()


def test_the_page_can_be_built():
    pytest.importorskip("gradio")
    page = demo_app.build_page(demo_app.Demo(completer()))
    assert page.analytics_enabled is False
