"""The page of a stack in a browser: what it shows after clicks and a search, that it loads nothing, and its size."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

from layers.cli import command
from layers.screen.page import page
from tests.layers import trees
from tests.layers.explore.building import Member, of_tars, tree_of
from tests.support.timing import limit

BASE: tuple[Member, ...] = (
    ("etc/changed", {}, b"1" * 4000),
    ("usr/lib/big.so", {}, b"2" * 60000),
    ("usr/lib/small.so", {}, b"3" * 9000),
    ("old/gone", {}, b"4" * 30000),
    ("<b>bold<i>&amp;\x1b[31m", {}, b"5" * 100),
    ("twin/a", {}, b"6" * 700),
    ("twin/b", {}, b"6" * 700),
)
TOP: tuple[Member, ...] = (("etc/changed", {}, b"new" * 1000), (".wh.old", {}, b""))


def made(*, paths_max: int = 1000) -> str:
    layers = of_tars(BASE, TOP)
    layers[0].created_by, layers[1].created_by = "ADD </script><script>alert(1)</script>", "RUN rm -r /old"
    with tree_of(layers) as tree:
        return page(tree, layers, "an <image>", paths_max=paths_max)


def in_browser(document: str, script: str) -> Any:
    """What the body of a function of `page`, the document, and `act` (click and type) returns in headless Chromium."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    frame = f'<iframe style="width:1200px;height:900px" srcdoc="{html.escape(document, quote=True)}"></iframe>'
    outer = (
        f"<!doctype html><body>{frame}<pre id=told></pre><script>onload = () => {{"
        "const page = document.querySelector('iframe').contentDocument;"
        "const type = text => { const box = page.getElementById('search'); box.value = text;"
        "  box.dispatchEvent(new Event('input')); };"
        "const at = () => page.getElementById('crumbs').textContent.split(/[0-9.]+ [kMG]?B,/)[0].replace(/\\/$/, '');"
        "const boxes = () => [...page.querySelectorAll('#map button')].map(b => [b.title, b.style.backgroundColor])"
        "  .filter(([title]) => title.slice(at().length).split(':')[0].split('/').length === 2);"
        "const rows = id => [...page.getElementById(id).rows].map(r => [...r.cells].map(c => c.textContent));"
        f"document.getElementById('told').textContent = JSON.stringify((() => {{ {script} }})()); }}</script>"
    )
    with tempfile.TemporaryDirectory(prefix="unionfs-browser-") as directory:
        path = Path(directory) / "outer.html"
        path.write_text(outer, encoding="utf-8")
        argv = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
        argv += ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"]
        argv += [f"--user-data-dir={directory}/profile", "--dump-dom", path.as_uri()]
        done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=limit(120))
    told = re.search(r'<pre id="told">(.*?)</pre>', done.stdout, re.DOTALL)
    assert told is not None, done.stdout[-500:]
    return json.loads(html.unescape(told[1]))


def test_the_map_is_walked_searched_and_turned_to_what_is_wasted() -> None:
    found = in_browser(
        made(),
        """
        const all = boxes(), tables = [rows('layers'), rows('causes'), rows('waste')], alerts = page.scripts.length;
        [...page.querySelectorAll('#map button')].find(b => b.title.startsWith('/usr:')).click();
        [...page.querySelectorAll('#map button')].find(b => b.title.startsWith('/usr/lib:')).click();
        const inside = boxes(), crumbs = page.getElementById('crumbs').textContent;
        type('SMALL');
        const searched = rows('rows');
        type('bold');
        const bold = rows('rows'), elements = page.querySelectorAll('main b, main i').length;
        page.getElementById('crumbs');
        type('');
        page.querySelector('#crumbs button').click();
        page.getElementById('what-wasted').click();
        return {all, tables, alerts, inside, crumbs, searched, bold, elements, wasted: boxes(),
                legend: page.getElementById('legend').textContent};
        """,
    )
    assert [title for title, _ in found["all"]] == [
        "/usr: 69.0 kB, layer 0", "/etc: 3.0 kB", "/twin: 1.4 kB, layer 0",
        r"/<b>bold<i>&amp;\x1b[31m: 100 B, layer 0",
    ]  # fmt: skip
    assert len({color for _, color in found["all"]}) == 2, "layer 0, and several"
    layers, causes, waste = found["tables"]
    assert layers[0] == ["1", "3.0 kB", "-", "0", "1", "1", "RUN rm -r /old"]
    assert layers[1][6] == "ADD </script><script>alert(1)</script>"
    assert found["alerts"] == 2, "the data and our script"
    assert [row[:3] for row in causes] == [
        ["4.0 kB", "1", "replaced"], ["30.0 kB", "1", "removed later"], ["700 B", "1", "same content twice"],
    ]  # fmt: skip
    assert waste[0] == ["30.0 kB", "0", "/old/gone", "removed by layer 1", "RUN rm -r /old"]
    assert [title for title, _ in found["inside"]] == [
        "/usr/lib/big.so: 60.0 kB, layer 0", "/usr/lib/small.so: 9.0 kB, layer 0",
    ]  # fmt: skip
    assert found["crumbs"].startswith("/usr/lib/69.0 kB, 2 files show")
    assert found["searched"] == [["/usr/lib/small.so", "9.0 kB", "-", "1", "0"]]
    assert [row[0] for row in found["bold"]] == [r"/<b>bold<i>&amp;\x1b[31m"]
    assert found["elements"] == 0
    assert [title.partition(":")[0] for title, _ in found["wasted"]] == ["/old", "/etc", "/twin"]
    assert len({color for _, color in found["wasted"]}) == 3
    assert "removed later" in found["legend"]


def test_it_loads_nothing_and_is_small_whatever_the_size_of_the_image() -> None:
    whole = made()
    assert "default-src 'none'" in whole
    assert re.findall(r"(?:src|href)=", whole) == []
    assert "are not" not in whole.partition("</p>")[0]
    few = made(paths_max=3)
    assert "The 3 largest paths are listed; 9 smaller ones are not." in few
    layers = of_tars([(f"d{at // 100}/file-{at}", {}, b"x" * (at % 50)) for at in range(5000)])
    with tree_of(layers) as tree:
        assert len(page(tree, layers, "t", paths_max=1000)) < 200_000


def test_the_command_writes_the_page_to_a_file_or_standard_output(scratch: Path, capfdbinary: Any) -> None:
    tar = scratch / "layer.tar"
    tar.write_bytes(trees.tar_of(list(BASE)))
    output = scratch / "page.html"
    assert command.main(["explore", os.fspath(tar), "--html", os.fspath(output)]) == 0
    assert command.main(["explore", os.fspath(tar), "--html", "-"]) == 0
    assert capfdbinary.readouterr().out == output.read_bytes()
    assert command.main(["inspect", os.fspath(tar), "--html", "-"]) == 0
    assert capfdbinary.readouterr().out == output.read_bytes()
    for verb in ("explore", "inspect"):
        assert command.main([verb, os.fspath(tar), os.fspath(tar), "--html", "-"]) == 2
