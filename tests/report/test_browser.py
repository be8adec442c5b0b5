"""The report in headless Chromium, at the widths of a desk and of a pocket.

A wrapper page holds the report in a frame of the wanted width (a headless window has a least width) and
writes what it measures into its own document, which the browser prints. `SQUINT_REPORT` names a further
report to check.
"""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from squint.report import write_report

pytestmark = pytest.mark.browser

WIDTHS = (1280, 400)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--allow-file-access-from-files",
    "--enable-logging=stderr", "--v=0", "--dump-dom", "--hide-scrollbars",
)  # fmt: skip
WRAPPER = """<!DOCTYPE html><html><body style="margin:0"><iframe src="{name}" width="{width}" height="900"
style="border:0"></iframe><pre id="measured"></pre><script>
addEventListener("load", () => {{
  const page = document.querySelector("iframe").contentDocument, root = page.documentElement;
  page.querySelectorAll("details").forEach(d => d.open = true);
  const style = e => page.defaultView.getComputedStyle(e);
  document.getElementById("measured").textContent = JSON.stringify({{
    scroll: root.scrollWidth, client: root.clientWidth,
    clipped: [root, page.body].some(e => ["hidden", "clip"].includes(style(e).overflowX)),
    figures: [...page.querySelectorAll("figure")].map(f => f.dataset.figure),
    empty: [...page.querySelectorAll("figure")].filter(f => !f.querySelector("img")).length,
    broken: [...page.images].filter(i => !(i.complete && i.naturalWidth > 0 && i.clientWidth > 0)).length,
    nameless: [...page.images].filter(i => !i.alt.trim()).length,
    unreachable: [...page.querySelectorAll("*")].filter(e => e.scrollWidth > e.clientWidth + 1 &&
      ["auto", "scroll"].includes(style(e).overflowX) && e.tabIndex < 0).length,
    text: page.body.innerText.length,
  }});
}});
</script></body></html>"""


def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no Chromium on this machine")
    return found


def open_page(report: Path, width: int, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Return what the wrapper measured of a report at a width, and every console message."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(report, folder / "report.html")
    wrapper = folder / f"wrapper{width}.html"
    wrapper.write_text(WRAPPER.format(name="report.html", width=width), encoding="utf-8")
    command = [
        chromium(),
        *FLAGS,
        f"--user-data-dir={folder / 'profile'}",
        f"--window-size={max(width, 600)},1000",
    ]
    done = subprocess.run(
        [*command, wrapper.as_uri()],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
        encoding="utf-8",
    )
    match = re.search(r'<pre id="measured">(.+?)</pre>', done.stdout, re.DOTALL)
    assert match, f"the browser measured nothing: {done.stdout[-500:]}"
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return json.loads(html.unescape(match[1])), console


def faults(report: Path, width: int, folder: Path) -> list[str]:
    """Return everything that is wrong with a report at a width; an empty list is a pass."""
    seen, console = open_page(report, width, folder)
    found = [f"console: {line}" for line in console]
    if seen["client"] != width:
        found.append(f"laid out at {seen['client']} pixels")
    if seen["scroll"] > seen["client"]:
        found.append(f"scrolls sideways: {seen['scroll']} > {seen['client']}")
    if seen["clipped"]:
        found.append("hides what is too wide")
    if "accuracy_vs_eps" not in seen["figures"]:
        found.append("no figure of accuracy against eps")
    if seen["text"] < 500:
        found.append("hardly any text")
    counted = ("empty", "broken", "nameless", "unreachable")
    return found + [f"{seen[name]} {name}" for name in counted if seen[name]]


@pytest.mark.parametrize("width", WIDTHS)
def test_report_is_sound(report: Path, width: int, tmp_path: Path) -> None:
    assert faults(report, width, tmp_path) == []
    seen, _ = open_page(report, width, tmp_path / "again")
    assert len(seen["figures"]) == 5


@pytest.mark.skipif("SQUINT_REPORT" not in os.environ, reason="SQUINT_REPORT names no report")
@pytest.mark.parametrize("width", WIDTHS)
def test_named_report_is_sound(width: int, tmp_path: Path) -> None:
    assert faults(Path(os.environ["SQUINT_REPORT"]), width, tmp_path) == []


def test_long_names_do_not_widen_the_page(
    build: Callable[..., Path], results: dict[str, Any], tmp_path: Path
) -> None:
    word = "Unbreakably" * 20
    results["recipe"] = results["dataset"] = results["config_hash"] = word
    results["versions"] = {"squint": word}
    for system in results["systems"]:
        system["title"] = system["description"] = word
    results["records"][6]["red_flags"] = results["records"][7]["red_flags"] = [word]
    path = write_report(build(tmp_path / "run", results, examples=("lsq",)))
    assert faults(path, 400, tmp_path / "browser") == []


def without_policy(text: str) -> str:
    return re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)


BREAKS: dict[str, tuple[Callable[[str], str], str]] = {
    "broken figure": (
        lambda t: re.sub(r'(<img src="data:image/svg\+xml;base64,).{40}', r"\1", t, count=1),
        "1 broken",
    ),
    "figure without image": (
        lambda t: re.sub(r"<picture>.*?</picture>", "", t, count=1, flags=re.DOTALL),
        "1 empty",
    ),
    "missing figure": (lambda t: t.replace('data-figure="accuracy_vs_eps"', ""), "no figure of accuracy"),
    "no alternative text": (lambda t: re.sub(r'alt="[^"]+"', 'alt=""', t, count=1), "1 nameless"),
    "script that throws": (
        lambda t: without_policy(t).replace("</body>", "<script>throw new Error('boo')</script></body>"),
        "Uncaught Error: boo",
    ),
    "console error": (
        lambda t: without_policy(t).replace("</body>", "<script>console.error('boo')</script></body>"),
        "boo",
    ),
    "script against the policy": (lambda t: t.replace("</body>", "<script>1</script></body>"), "console: "),
    "remote image": (
        lambda t: t.replace("</main>", '<img src="http://squint.invalid/a.png" alt="remote"></main>'),
        "console: ",
    ),
    "wide element": (
        lambda t: t.replace("</main>", '<div style="width:1500px">wide</div></main>'),
        "scrolls sideways",
    ),
    "hidden overflow": (
        lambda t: t.replace("<body>", '<body style="overflow-x:hidden">'),
        "hides what is too wide",
    ),
    "box that no key reaches": (lambda t: t.replace('tabindex="0"', 'tabindex="-1"'), "unreachable"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_the_check_finds(name: str, report: Path, tmp_path: Path) -> None:
    damage, said = BREAKS[name]
    text = report.read_text(encoding="utf-8")
    broken = tmp_path / "broken.html"
    broken.write_text(damage(text), encoding="utf-8")
    assert broken.read_text(encoding="utf-8") != text
    found = faults(broken, 400, tmp_path / "browser")
    assert any(said in fault for fault in found), found
