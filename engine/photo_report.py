"""One HTML page with photos before and after: everything is inside the file, and nothing is loaded from elsewhere."""
from __future__ import annotations

import base64
import html
import io
from pathlib import Path
from typing import Sequence
from urllib.parse import quote

import numpy as np
from PIL import Image

from engine.photo_folder import Outcome
from utils.files import write_bytes
from utils.images import read_image

LONGEST_SIDE = 1280  # pixels; larger photos are shown smaller
OVERVIEW_WIDTH = 1800
QUALITY = 88

# The slider is an ordinary range input, so that keyboard and touch work; it tells the style its value.
SLIDER_STYLE = """.pair { position: relative; display: inline-block; max-width: 100%; line-height: 0; --at: 50%; }
.pair img { display: block; max-width: 100%; max-height: 85vh; height: auto; }
.pair .before { position: absolute; inset: 0; width: 100%; height: 100%;
  clip-path: inset(0 calc(100% - var(--at)) 0 0); }
.pair .line { position: absolute; top: 0; bottom: 0; left: var(--at); width: 2px; margin-left: -1px; background: #fff;
  box-shadow: 0 0 3px #000; pointer-events: none; }
.pair .line::after { content: "\\2194"; position: absolute; top: 50%; left: 50%; transform: translate(-50%, -50%);
  width: 34px; height: 34px; line-height: 34px; text-align: center; font-size: 20px; border-radius: 50%;
  background: #fff; color: #222; box-shadow: 0 0 4px #000; }
.pair span { position: absolute; top: 8px; padding: 2px 8px; line-height: 1.4; font-size: .8rem; border-radius: 3px;
  background: rgba(0, 0, 0, .6); color: #fff; pointer-events: none; }
.pair span.a { left: 8px; } .pair span.b { right: 8px; }
.pair input { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; opacity: 0; cursor: ew-resize; }
.pair input:focus-visible ~ .line { box-shadow: 0 0 0 3px #2f80ed; }"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Completed photos</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.45 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 1320px; }}
h1 {{ font-size: 1.4rem; }} h2 {{ font-size: 1.05rem; margin: 2.2rem 0 .4rem; overflow-wrap: anywhere; }}
.wide {{ overflow-x: auto; }} table {{ border-collapse: collapse; }} td, th {{ padding: .15rem .8rem .15rem 0;
  text-align: left; }}
td.n, th.n {{ text-align: right; }}
p {{ margin: .3rem 0; }} .failed {{ color: #c0392b; }}
{slider_style}
details {{ margin: .5rem 0; }} details img {{ max-width: 100%; height: auto; }}
</style>
</head>
<body>
<h1>Completed photos</h1>
<p>{counts}. Drag across a photo, or use the arrow keys, to compare it before and after.</p>
<div class="wide"><table><tr><th>photo</th><th>status</th><th class="n">pixels</th><th class="n">faces</th>
<th class="n">hidden</th><th class="n">seconds</th></tr>
{rows}
</table></div>
{photos}
</body>
</html>
"""


def write_report(outcomes: Sequence[Outcome], path: Path) -> Path:
    """Write the page; the photos are read from where they are, their results from their folders. Returns the path."""
    done = [outcome for outcome in outcomes if outcome.status != "failed"]
    counts = f"{len(done)} of {len(outcomes)} photos"
    page = _PAGE.format(slider_style=SLIDER_STYLE, counts=counts, rows="\n".join(map(_row, outcomes)),
                        photos="\n".join(map(_photo, done)))
    write_bytes(path, page.encode())
    return path


def _row(outcome: Outcome) -> str:
    name = html.escape(outcome.name)
    if outcome.status == "failed":
        return f'<tr class="failed"><td>{name}</td><td colspan="5">{html.escape(outcome.error)}</td></tr>'
    cells = (f"{outcome.width}x{outcome.height}", outcome.faces, f"{100 * outcome.hidden:.0f} %",
             f"{outcome.seconds:.1f}")
    return (f'<tr><td><a href="#{html.escape(quote(outcome.name))}">{name}</a></td><td>{outcome.status}</td>'
            + "".join(f'<td class="n">{cell}</td>' for cell in cells) + "</tr>")


def _photo(outcome: Outcome) -> str:
    name, folder = html.escape(outcome.name), Path(outcome.folder)
    before = read_image(Path(outcome.path), min_side=1)
    after = read_image(folder / "complete_output.png", min_side=1)
    steps, width, height = embedded(read_image(folder / "overview.png", min_side=1), OVERVIEW_WIDTH)
    remarks = "".join(f"<p>{html.escape(remark)}</p>" for remark in outcome.remarks)
    return f"""<section id="{name}">
<h2>{name}</h2>
{slider(before, after, outcome.name)}
{remarks}
<details><summary>on the way</summary><img loading="lazy" src="{steps}" width="{width}" height="{height}"
alt="photo, hole, mesh, albedo in and out, result"></details>
</section>"""


def slider(before: np.ndarray, after: np.ndarray, name: str) -> str:
    """HTML that compares two pictures, uint8 (H, W, 3); a page with it needs SLIDER_STYLE."""
    before_uri, width, height = embedded(before, LONGEST_SIDE)
    after_uri, _, _ = embedded(after, LONGEST_SIDE)
    return f"""<div class="pair"><img src="{after_uri}" width="{width}" height="{height}" alt="after">
<img class="before" src="{before_uri}" width="{width}" height="{height}" alt="before">
<input type="range" min="0" max="100" step="0.5" value="50" aria-label="compare {html.escape(name)} before and after"
oninput="this.parentElement.style.setProperty('--at', this.value + '%')" autocomplete="off">
<div class="line"></div><span class="a">before</span><span class="b">after</span></div>"""


def embedded(picture: np.ndarray, longest: int) -> tuple[str, int, int]:
    """A picture, uint8 (H, W, 3), as a data URI (JPEG, no side above `longest` pixels), its width and its height."""
    image = Image.fromarray(picture)
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}", image.width, image.height
