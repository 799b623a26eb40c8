"use strict";
const KINDS = { float32: Float32Array, float64: Float64Array, int32: Int32Array, uint16: Uint16Array, uint8: Uint8Array };

function unpack({ kind, base64 }) {
  const text = atob(base64), bytes = new Uint8Array(text.length);
  for (let at = 0; at < text.length; at++) bytes[at] = text.charCodeAt(at);
  return new KINDS[kind](bytes.buffer);
}

const percent = (part, all) => (all ? `${(100 * part / all).toFixed(1)} %` : "–");
const plain = (value) => String(Number.isInteger(value) ? value : Number(value.toPrecision(Math.abs(value) < 1000 ? 4 : 6)));

const picture = unpack(data.picture), shard = unpack(data.shard);
for (const measure of data.measures) measure.values = unpack(measure.values);

// A picture, or why there is none.
function show(into, number) {
  const source = data.pictures[number] ?? "";
  if (source.startsWith("data:")) return into.replaceChildren(make("img", { src: source, alt: "" }));
  into.classList.add("none");
  into.textContent = source;
}

function tile(row, note) {
  const image = make("div", { className: "image" });
  show(image, picture[row]);
  const caption = make("figcaption", {}, make("b", { textContent: note }), " ", make("span", { className: "key", textContent: data.keys[row] }));
  if (data.captions[row]) caption.append(make("span", { className: "caption", textContent: data.captions[row] }));
  return make("figure", { className: "tile", tabIndex: 0, title: `${data.keys[row]} in ${data.shards[shard[row]]}` }, image, caption);
}

for (const each of document.querySelectorAll("[data-picture]")) show(each.querySelector(".image"), Number(each.dataset.picture));

// Thresholds

const SVG = "http://www.w3.org/2000/svg", WIDTH = 480, NEAR = 10;

function histogram(measure, height) {
  const svg = document.createElementNS(SVG, "svg"), most = Math.max(...measure.heights), count = measure.heights.length;
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${height}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("class", "histogram");
  svg.setAttribute("height", height);
  svg.setAttribute("aria-hidden", "true");
  measure.heights.forEach((rows, bar) => {
    const rect = document.createElementNS(SVG, "rect"), tall = rows ? Math.max(1.5, (height - 2) * rows / most) : 0;
    for (const [name, value] of Object.entries({ x: bar * WIDTH / count, y: height - tall, width: WIDTH / count - 1, height: tall })) {
      rect.setAttribute(name, value);
    }
    svg.append(rect);
  });
  return svg;
}

// The rows that have a picture, from the smallest value to the largest.
function shown(measure) {
  measure.shown ??= Array.from(picture.keys()).filter((row) => data.pictures[picture[row]]?.startsWith("data:") && !Number.isNaN(measure.values[row]))
    .sort((one, other) => measure.values[one] - measure.values[other]);
  return measure.shown;
}

// The same order each time (mulberry32).
function shuffled(rows) {
  const mixed = [...rows];
  let state = 20240531;
  for (let at = mixed.length - 1; at > 0; at--) {
    state = (state + 0x6d2b79f5) | 0;
    let bits = Math.imul(state ^ (state >>> 15), 1 | state);
    bits = (bits + Math.imul(bits ^ (bits >>> 7), 61 | bits)) ^ bits;
    const other = ((bits ^ (bits >>> 14)) >>> 0) % (at + 1);
    [mixed[at], mixed[other]] = [mixed[other], mixed[at]];
  }
  return mixed;
}

// The rows that have a picture, by chance or along a measure, as an option of `ordersOf` says.
const byChance = shuffled(Array.from(picture.keys()).filter((row) => data.pictures[picture[row]]?.startsWith("data:")));

function inOrder(chosen) {
  const [end, number] = chosen.split(" ");
  if (!number) return byChance;
  return end === "low" ? shown(data.measures[number]) : [...shown(data.measures[number])].reverse();
}

const ordersOf = () => data.measures.flatMap((measure, number) => [["low", "lowest"], ["high", "highest"]].map(([end, said]) =>
  make("option", { value: `${end} ${number}`, textContent: `${measure.name}, the ${said} first` })));

// DuckDB and pandas round a threshold to the column's own precision before they compare.
const held = (measure, value) => (measure.single ? Math.fround(value) : value);

class Panel {
  constructor(number, changed) {
    this.changed = changed;
    const name = number ? "Second threshold" : "Threshold", id = (what) => `${what}-${number}`;
    this.column = make("select", { id: id("column"), "aria-label": `${name}: column` });
    if (number) this.column.append(make("option", { value: -1, textContent: "no second threshold" }));
    data.measures.forEach((measure, at) => this.column.append(make("option", { value: at, textContent: measure.name })));
    this.side = make("select", { id: id("side"), "aria-label": `${name}: side that is kept` },
      make("option", { value: ">=", textContent: "at least" }), make("option", { value: "<=", textContent: "at most" }));
    this.number = make("input", { id: id("value"), type: "number", step: "any", "aria-label": `${name}: value` });
    this.slider = make("input", { id: id("slider"), type: "range", min: 0, "aria-label": `${name}: value, step by step` });
    this.count = make("span", { className: "faint" });
    this.bars = make("div");
    this.out = make("div", { className: "tiles" });
    this.in = make("div", { className: "tiles" });
    const beside = (said, tiles) => make("div", {}, make("h4", { textContent: said }), tiles);
    this.more = make("div", {}, this.bars, this.slider,
      make("div", { className: "sides" }, beside("Just left out", this.out), beside("Just kept", this.in)));
    this.root = make("div", { className: "panel", role: "group", "aria-label": name },
      make("div", { className: "controls" }, this.column, this.side, this.number, this.count), this.more);
    this.column.addEventListener("change", () => this.choose(Number(this.column.value)));
    this.side.addEventListener("change", () => this.set(this.value));
    this.slider.addEventListener("input", () => this.set(this.measure.steps[Number(this.slider.value)]));
    this.number.addEventListener("change", () => this.number.value !== "" && this.set(Number(this.number.value)));
    this.choose(number ? -1 : 0);
  }

  get measure() { return data.measures[this.at]; }

  choose(at) {
    this.at = at;
    this.column.value = at;
    const used = at >= 0;
    this.more.hidden = this.side.hidden = this.number.hidden = this.count.hidden = !used;
    this.root.classList.toggle("unused", !used);
    if (!used) return this.changed();
    const measure = this.measure;
    this.slider.max = measure.steps.length - 1;
    this.svg = histogram(measure, 90);
    this.line = document.createElementNS(SVG, "line");
    this.svg.append(this.line);
    this.svg.addEventListener("click", (event) => {
      const box = this.svg.getBoundingClientRect(), part = (event.clientX - box.left) / box.width;
      const [first, last] = [measure.bars[0], measure.bars.at(-1)];
      this.set(measure.steps[nearest(measure.steps, first + part * (last - first))]);
    });
    this.bars.replaceChildren(this.svg, make("div", { className: "ends" },
      make("span", { textContent: plain(measure.low) }), make("span", { textContent: `median ${plain(measure.middle)}` }), make("span", { textContent: plain(measure.high) })));
    this.set(measure.steps[nearest(measure.steps, measure.middle)]);
  }

  set(value) {
    const { measure } = this, at = nearest(measure.steps, value);
    // Of a sample alone, all rows are counted at the steps, and nowhere else.
    this.value = data.whole ? value : measure.steps[at];
    this.slider.value = at;
    this.slider.setAttribute("aria-valuetext", String(this.value));
    this.number.value = this.value;
    const first = measure.bars[0], last = measure.bars.at(-1), x = WIDTH * Math.min(1, Math.max(0, (this.value - first) / (last - first)));
    for (const [name, to] of Object.entries({ x1: x, x2: x, y1: 0, y2: 90 })) this.line.setAttribute(name, to);
    this.svg.querySelectorAll("rect").forEach((rect, bar) => {
      const middle = (measure.bars[bar] + measure.bars[bar + 1]) / 2;
      rect.classList.toggle("in", this.side.value === ">=" ? middle >= this.value : middle <= this.value);
    });
    const never = measure.known < data.rows ? `; ${integer.format(data.rows - measure.known)} have no value, and never pass` : "";
    this.count.textContent = `${integer.format(this.kept())} rows${never}` + (measure.meaning ? `; ${measure.meaning}` : "");
    this.look();
    this.changed();
  }

  passes(row) {
    const value = this.measure.values[row], limit = held(this.measure, this.value);
    return this.side.value === ">=" ? value >= limit : value <= limit;
  }

  // Rows that pass, of all.
  kept() {
    if (!data.whole) return this.measure[this.side.value === ">=" ? "atLeast" : "atMost"][nearest(this.measure.steps, this.value)];
    let count = 0;
    for (let row = 0; row < data.sampled; row++) count += this.passes(row);
    return count;
  }

  // The images next to the threshold on both sides, the nearest first.
  look() {
    const rows = shown(this.measure), inside = rows.filter((row) => this.passes(row)), outside = rows.filter((row) => !this.passes(row));
    const up = this.side.value === ">=";
    const near = (some, first) => (first ? some.slice(0, NEAR) : some.slice(-NEAR).reverse());
    for (const [into, some] of [[this.in, near(inside, up)], [this.out, near(outside, !up)]]) {
      into.replaceChildren(...some.map((row) => tile(row, plain(this.measure.values[row]))));
      if (!some.length) into.append(make("span", { className: "faint", textContent: "none that has a picture" }));
    }
  }

  get where() { return `${this.measure.sql} ${this.side.value} ${this.value}`; }
}

function nearest(sorted, value) {
  let low = 0, high = sorted.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low > 0 && value - sorted[low - 1] < sorted[low] - value ? low - 1 : low;
}

function explore() {
  const kept = document.getElementById("kept"), where = document.getElementById("where"), command = document.getElementById("command");
  const panels = [], buttons = [], both = document.getElementById("panels");
  const changed = () => {
    if (panels.length < 2) return;
    const used = panels.filter((panel) => panel.at >= 0);
    let text = "";
    if (used.length === 2) {
      let count = 0;
      for (let row = 0; row < data.sampled; row++) count += panels.every((panel) => panel.passes(row));
      const share = count / data.sampled, error = 196 * Math.sqrt(share * (1 - share) / data.sampled);
      text = data.whole ? `${integer.format(count)} of ${integer.format(data.rows)} rows kept (${percent(count, data.rows)})`
        : `about ${integer.format(Math.round(share * data.rows))} of ${integer.format(data.rows)} rows kept (${percent(count, data.sampled)} ± ${error.toFixed(1)} %), by a sample of ${integer.format(data.sampled)}`;
    } else {
      const count = used[0].kept();
      text = `${integer.format(count)} of ${integer.format(data.rows)} rows kept (${percent(count, data.rows)})`;
    }
    kept.textContent = text;
    where.value = used.map((panel) => panel.where).join(" and ");
    command.textContent = `curator-dask filter ${shell(data.output)} --where ${shell(where.value)}`;
    buttons.forEach((button, at) => button.setAttribute("aria-pressed", String(used.some((panel) => panel.at === at))));
  };
  for (const number of [0, 1]) panels.push(new Panel(number, changed));
  both.append(...panels.map((panel) => panel.root));
  data.measures.forEach((measure, at) => {
    const button = make("button", { type: "button" }, make("b", { textContent: measure.name }), histogram(measure, 40),
      make("span", { textContent: `${plain(measure.low)} – ${plain(measure.high)}` }));
    button.addEventListener("click", () => {
      panels[0].choose(at);
      both.scrollIntoView();
    });
    buttons.push(button);
  });
  document.getElementById("overviews").append(...buttons);
  changed();
}

if (data.measures.length) explore();
