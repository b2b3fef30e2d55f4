"""What is made of a run: the page in a real browser, pictures, the text for the README, claims with figures."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import tempfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.support.timing import limit
from tests.support.users import CHECKOUT
from unionfs.bench import claims, markdown, page, plots, summary, systems
from unionfs.cli import bench as verb
from unionfs.cli.errors import CommandError

_PHONE = 360  # CSS pixels
_BROWSER_S = 120


@pytest.fixture
def matplotlib_there() -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (the extra `bench`)")


@pytest.fixture(scope="module")
def document(whole_run: dict[str, Any]) -> str:
    """The page of a run."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (the extra `bench`)")
    return page.page(whole_run)


def in_browser(document: str, width: int, script: str) -> dict[str, Any]:
    """What `script` (an expression on `page`, the document in a frame of this width) gives in headless Chromium.

    A window is never narrower than 500 pixels, a frame may be.
    """
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("chromium is not installed")
    frame = (
        f'<iframe style="border:0;width:{width}px;height:800px" srcdoc="{html.escape(document, quote=True)}"></iframe>'
    )
    outer = (
        f"<!doctype html><body style='margin:0'>{frame}<pre id=told></pre><script>onload = () => {{"
        "const page = document.querySelector('iframe').contentDocument;"
        f"document.getElementById('told').textContent = JSON.stringify({script}); }}</script>"
    )
    with tempfile.TemporaryDirectory(prefix="unionfs-browser-") as directory:
        path = Path(directory) / "outer.html"
        path.write_text(outer, encoding="utf-8")
        argv = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
        argv += ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"]
        argv += [f"--user-data-dir={directory}/profile", "--dump-dom", path.as_uri()]
        done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=limit(_BROWSER_S))
    told = re.search(r'<pre id="told">(.*?)</pre>', done.stdout, re.DOTALL)
    assert told is not None, done.stdout[-500:]
    answer: dict[str, Any] = json.loads(html.unescape(told[1]))
    return answer


_LOOK = """{
  ids: [...page.querySelectorAll('figure svg g[id]')].map(g => g.id),
  drawn: [...page.querySelectorAll('figure svg g[id*="--"]')].filter(g => g.getBoundingClientRect().height > 0).length,
  wide: page.documentElement.scrollWidth,
  shown: page.documentElement.clientWidth,
  outside: [...page.querySelectorAll('main *')].filter(one => !one.closest('.scroll')
      && one.getBoundingClientRect().right > page.documentElement.clientWidth + 0.5).map(one => one.tagName),
  background: getComputedStyle(page.body).backgroundColor,
  letters: Math.min(...[...page.querySelectorAll('figure svg text')].map(t => t.getBoundingClientRect().height)),
  text: page.body.innerText,
}"""


def test_a_browser_shows_every_series_and_a_phone_needs_no_sideways_scrolling(
    whole_run: dict[str, Any], document: str
) -> None:
    told = in_browser(document, _PHONE, _LOOK)
    wanted = {
        f"{series['name']}--{system}" for series in summary.measured(whole_run) for system in summary.systems_in(series)
    }
    assert len(wanted) > 60
    assert wanted <= set(told["ids"])
    assert told["drawn"] >= len(wanted)
    assert told["wide"] == told["shown"] == _PHONE
    assert told["outside"] == []
    assert min(map(int, re.findall(r"\d+", told["background"])[:3])) > 230, "a light background"
    assert told["letters"] > 8
    for series in summary.measured(whole_run):
        assert series["title"] in told["text"]
    for claim in claims.CLAIMS:
        assert claim.says in told["text"]


def test_the_page_loads_nothing(document: str) -> None:
    class Loads(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.found: list[str] = []

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag in ("script", "link", "img", "iframe", "object", "embed", "image"):
                self.found.append(tag)
            self.found += [f"{tag} {key}={value}" for key, value in attrs if key in ("src", "srcset", "xlink:href")
                           and not (value or "").startswith("#")]  # fmt: skip

    loads = Loads()
    loads.feed(document)
    assert loads.found == []
    assert re.findall(r"url\((?!#)|@import", document) == []


@pytest.mark.usefixtures("matplotlib_there")
def test_pictures_are_files(whole_run: dict[str, Any], tmp_path: Path) -> None:
    some = {**whole_run, "series": [one for one in whole_run["series"] if one["name"] in ("size-ext4", "sharing")]}
    written = plots.draw(some, tmp_path)
    names = [series["name"] for series in some["series"]]
    assert sorted(path.name for path in written) == sorted(f"{name}.{end}" for name in names for end in ("png", "svg"))
    assert all(path.stat().st_size > 3000 for path in written)
    sizes = (tmp_path / "size-ext4.svg").read_text()
    for text in ("file size (logarithmic)", "64 kB", "time of the first write", *whole_run["systems"][:2]):
        assert text in sizes


def test_every_system_has_a_colour_and_a_marker_of_its_own() -> None:
    assert set(plots.STYLES) == set(systems.SYSTEMS)
    for part in zip(*plots.STYLES.values(), strict=True):
        assert len(set(part)) == len(systems.SYSTEMS)


def test_every_claim_has_a_figure_of_ours(whole_run: dict[str, Any]) -> None:
    answers = claims.answers(whole_run)
    assert len(answers) >= 10
    without = [answer.claim.says for answer in answers if not re.search(r"\d", answer.figure)]
    assert [says for says in without if "device mapper" not in says] == []
    assert all(answer.claim.url.startswith("https://") for answer in answers)


def test_claims_without_a_run_have_no_figures(whole_run: dict[str, Any]) -> None:
    nothing = {**whole_run, "series": [{**series, "points": []} for series in whole_run["series"]]}
    figures = {answer.figure for answer in claims.answers(nothing) if "device mapper" not in answer.claim.says}
    assert figures == {"not measured in this run"}


def test_the_readme_takes_figures_between_its_markers(whole_run: dict[str, Any], tmp_path: Path) -> None:
    readme = (CHECKOUT / "benchmarks" / "README.md").read_text()
    assert readme.index(markdown.BEGIN) < readme.index(markdown.END)
    copy = tmp_path / "README.md"
    copy.write_text(f"before\n{markdown.BEGIN}\nold\n{markdown.END}\nafter\n")
    run = tmp_path / "run.json"
    run.write_text(json.dumps(whole_run))
    assert verb.main(["copyup", "--from", str(run), "--json", "--markdown", str(copy)]) == 0
    written = copy.read_text()
    assert written.startswith(f"before\n{markdown.BEGIN}\n")
    assert written.endswith(f"{markdown.END}\nafter\n")
    assert "\nold\n" not in written
    assert "| file size | ours |" in written
    assert all(claim.says in written for claim in claims.CLAIMS)
    copy.write_text("no markers")
    with pytest.raises(CommandError, match="it has no lines"):
        verb.main(["copyup", "--from", str(run), "--json", "--markdown", str(copy)])


def test_without_matplotlib(
    whole_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run.json"
    run.write_text(json.dumps(whole_run))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(CommandError, match="matplotlib is not installed") as said:
        verb.main(["copyup", "--from", str(run), "--report", str(tmp_path / "page.html")])
    assert "unionfs[bench]" in said.value.hint
    assert verb.main(["copyup", "--from", str(run)]) == 0
    assert "4 kB written in the middle" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"what": "copyup", "format": 0}', '{"what": "copyup"'])
def test_a_file_that_is_not_of_ours(tmp_path: Path, text: str) -> None:
    run = tmp_path / "run.json"
    run.write_text(text)
    with pytest.raises(CommandError, match="reading the figures failed"):
        verb.main(["copyup", "--from", str(run)])
