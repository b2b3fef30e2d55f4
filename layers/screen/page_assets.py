"""The style and the script of the page that `page` writes. The script never inserts a name as markup."""

from __future__ import annotations

from typing import Final

STYLE: Final = """
:root { color-scheme: light dark; --ink: #1f2933; --soft: #5b6770; --line: #d5dade; --paper: #fff; --ground: #f6f7f8;
  --accent: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #a0abb4; --line: #3a444c; --paper: #1d2429;
  --ground: #14191d; --accent: #56b4e9; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.45 system-ui, "DejaVu Sans", sans-serif; }
main { max-width: 90rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.4rem; margin: 0 0 .25rem; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin: 1.5rem 0 .5rem; }
.soft { color: var(--soft); font-size: .85rem; }
#map { position: relative; height: 28rem; background: var(--paper); border: 1px solid var(--line); overflow: hidden; }
#map button { position: absolute; border: 1px solid var(--ground); color: #111; font: 12px/1.2 system-ui, sans-serif;
  text-align: left; vertical-align: top; overflow: hidden; padding: 1px 3px; cursor: pointer; white-space: nowrap;
  display: flex; align-items: flex-start; }
#map button:focus-visible, #map button:hover { outline: 3px solid var(--accent); outline-offset: -3px; }
nav, .tools { display: flex; flex-wrap: wrap; gap: .4rem; align-items: center; margin: .5rem 0; }
nav button { border: 0; background: none; color: var(--accent); padding: .1rem .2rem; font: inherit; cursor: pointer; }
input[type=search] { font: inherit; padding: .3rem .5rem; min-width: 16rem; border: 1px solid var(--line);
  background: var(--paper); color: inherit; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums;
  background: var(--paper); min-width: 100%; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
td.n, th.n { text-align: right; white-space: nowrap; } td.p { overflow-wrap: anywhere; }
td button { border: 0; background: none; color: var(--accent); padding: 0; font: inherit; text-align: left;
  cursor: pointer;
  overflow-wrap: anywhere; }
.dot { display: inline-block; width: .8rem; height: .8rem; margin-right: .4rem; border: 1px solid var(--line); }
"""

SCRIPT: Final = r"""
"use strict";
const D = JSON.parse(document.getElementById("data").textContent);
const N = D.parent.length, below = Array.from({length: N}, () => []);
for (let i = 1; i < N; i++) below[D.parent[i]].push(i);
let at = 0, wasted = false;
const $ = id => document.getElementById(id);
const value = i => wasted ? D.wasted[i] : D.size[i];
function human(n) {
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (n < 1000) return (unit === "B" || n >= 100 ? n.toFixed(0) : n.toFixed(1)) + " " + unit;
    n /= 1000;
  }
  return n.toFixed(1) + " TB";
}
function color(k) { return `hsl(${Math.round(360 * ((k * 0.381966) % 1))} 55% ${68 + 10 * (k % 2)}%)`; }
function shade(i) {
  const k = wasted ? D.cause[i] : D.layer[i];
  return k < 0 ? "#d5dade" : color(wasted ? k + 1 : k);
}
function path(i) {
  const names = [];
  for (; i > 0; i = D.parent[i]) names.unshift(D.name[i]);
  return "/" + names.join("/");
}
function element(tag, text, kind) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}
function link(text, act) {
  const made = element("button", text);
  made.type = "button";
  made.onclick = act;
  return made;
}
// Squarified treemap (Bruls, Huizing, van Wijk 2000): rows along the shorter side, as square as the next item allows.
function squarify(items, x, y, w, h) {
  const placed = [];
  let total = items.reduce((sum, i) => sum + value(i), 0);
  let k = 0;
  while (k < items.length && total > 0 && w > 0 && h > 0) {
    const side = Math.min(w, h), scale = w * h / total;
    let row = [], sum = 0, worst = Infinity;
    while (k < items.length) {
      const next = sum + value(items[k]), length = next * scale / side;
      let bad = 0;
      for (const i of [...row, items[k]]) {
        const other = value(i) * scale / length;
        bad = Math.max(bad, length / other, other / length);
      }
      if (row.length && bad > worst) break;
      row.push(items[k++]); sum = next; worst = bad;
    }
    const length = sum * scale / side;
    let along = 0;
    for (const i of row) {
      const other = value(i) * scale / length;
      placed.push(w >= h ? [i, x, y + along, length, other] : [i, x + along, y, other, length]);
      along += other;
    }
    if (w >= h) { x += length; w -= length; } else { y += length; h -= length; }
    total -= sum;
  }
  return placed;
}
// The boxes of a directory's content, and within those that are large enough the boxes of theirs.
function fill(map, of, x0, y0, width, height, depth) {
  const items = below[of].filter(i => value(i) > 0).sort((a, b) => value(b) - value(a)).slice(0, depth ? 60 : 400);
  for (const [i, x, y, w, h] of squarify(items, x0, y0, width, height)) {
    if (w < 3 || h < 3) continue;
    const box = link(w > 40 && h > 14 ? D.name[i] : "", () => go(below[i].length ? i : of));
    box.style.cssText = `left:${x}px;top:${y}px;width:${w}px;height:${h}px;background:${shade(i)}`;
    box.title = `${path(i)}: ${human(value(i))}` + (D.layer[i] >= 0 ? `, layer ${D.layer[i]}` : "");
    box.setAttribute("aria-label", box.title);
    map.append(box);
    if (depth < 3 && w > 50 && h > 40) fill(map, i, x + 2, y + 16, w - 4, h - 18, depth + 1);
  }
  return items;
}
function draw() {
  const map = $("map");
  map.replaceChildren();
  const items = fill(map, at, 0, 0, map.clientWidth, map.clientHeight, 0);
  const none = wasted ? "Nothing is wasted here." : "Nothing of any size is here.";
  if (!items.length) map.append(element("p", none, "soft"));
  const crumbs = $("crumbs");
  crumbs.replaceChildren();
  const way = [];
  for (let i = at; i >= 0; i = D.parent[i]) way.unshift(i);
  for (const i of way) crumbs.append(link(i ? D.name[i] + "/" : "/", () => go(i)));
  crumbs.append(element("span", `${human(value(at))}, ${D.files[at]} files show`, "soft"));
  list(below[at].slice().sort((a, b) => value(b) - value(a)).slice(0, 500));
}
function row(cells) {
  const made = element("tr");
  for (const [content, kind] of cells) {
    const cell = element("td", undefined, kind);
    cell.append(content);
    made.append(cell);
  }
  return made;
}
function list(items, whole) {
  $("rows").replaceChildren(...items.map(i => row([
    [below[i].length ? link((whole ? path(i) : D.name[i]) + "/", () => go(i)) : (whole ? path(i) : D.name[i]), "p"],
    [human(D.size[i]), "n"], [D.wasted[i] ? human(D.wasted[i]) : "-", "n"], [String(D.files[i]), "n"],
    [D.layer[i] < 0 ? "several" : String(D.layer[i]), "n"],
  ])));
}
function go(i) { at = i; $("search").value = ""; draw(); }
$("search").oninput = () => {
  const wanted = $("search").value.toLowerCase();
  if (!wanted) return draw();
  const found = [];
  for (let i = 1; i < N && found.length < 500; i++) if (D.name[i].toLowerCase().includes(wanted)) found.push(i);
  list(found.sort((a, b) => D.size[b] - D.size[a]), true);
  $("crumbs").replaceChildren(element("span", `${found.length}${found.length === 500 ? "+" : ""} names found`, "soft"));
};
for (const button of document.getElementsByName("what")) button.onchange = () => {
  wasted = $("what-wasted").checked;
  $("legend").replaceChildren(...(wasted ? D.causes : D.layers).map((one, k) => {
    const made = element("span");
    const dot = element("span", undefined, "dot");
    dot.style.background = color(wasted ? k + 1 : k);
    made.append(dot, wasted ? one.name : `layer ${k}`);
    return made;
  }));
  draw();
};
$("layers").append(...D.layers.map((one, k) => row([
  [String(k), "n"], [human(one.size), "n"], [one.hidden ? human(one.hidden) : "-", "n"], [String(one.added), "n"],
  [String(one.changed), "n"], [String(one.removed), "n"], [one.made_by || one.name, "p"],
])).reverse());
$("causes").append(...D.causes.filter(one => one.files).map(one => row([
  [human(one.size), "n"], [String(one.files), "n"], [one.name, ""], [one.means, "p"],
])));
$("waste").append(...D.waste.map(one => row([
  [human(one[0]), "n"], [String(one[1]), "n"], [one[2], "p"], [one[3], "p"], [one[4], "p"],
])));
addEventListener("resize", draw);
$("what-shows").onchange();
"""
