"use strict";
// Labels of pictures, one after the other, by keys, mouse or touch; saved as a table that `curator-dask fit` takes.

const ENOUGH = 5, SKIPPED = -1, MOST_UNDONE = 1000;
const rows = data.keys.length;
const at = (id) => document.getElementById(id);

// The class of each row, or SKIPPED; what was before each change; and which row is shown.
let marks = new Map(), before = [], here = 0, unsaved = false, keeps = true;

// What the browser keeps for this page; it may refuse to.
const kept = {
  name: `curator-dask label ${data.id}`,
  read() {
    try { return { marks: [], before: [], here: 0, ...JSON.parse(localStorage.getItem(this.name)) }; } catch { return { marks: [], before: [], here: 0 }; }
  },
  write() {
    try { localStorage.setItem(this.name, JSON.stringify({ marks: [...marks], before, here })); keeps = true; } catch { keeps = false; }
    at("forgetful").hidden = keeps;
    at("keeps").hidden = !keeps;
  },
};

function take() {
  const read = kept.read();
  const ours = ([row, mark]) => Number.isInteger(row) && row >= 0 && row < rows && (mark === null || (Number.isInteger(mark) && mark >= SKIPPED && mark < data.classes.length));
  marks = new Map(read.marks.filter((each) => ours(each) && each[1] !== null));
  before = read.before.filter(ours);
  here = Math.min(Math.max(0, Math.trunc(read.here) || 0), rows - 1);
}

const labelled = () => [...marks].filter(([, mark]) => mark !== SKIPPED).sort(([one], [other]) => one - other);
const nameOf = (mark) => (mark === undefined || mark === null ? "" : mark === SKIPPED ? "skipped" : data.classes[mark]);
const called = (row) => data.captions[row] ?? `no caption, ${data.keys[row]}`;

function tell() {
  const counts = data.classes.map(() => 0);
  let skipped = 0;
  for (const mark of marks.values()) mark === SKIPPED ? skipped++ : counts[mark]++;
  const parts = data.classes.map((name, number) => `${integer.format(counts[number])} ${name}`);
  if (skipped) parts.push(`${integer.format(skipped)} skipped`);
  at("count").textContent = `${integer.format(marks.size)} of ${integer.format(rows)}, ${parts.join(", ")}`;
  at("progress").value = marks.size;
  at("save").disabled = at("forget").disabled = marks.size === skipped;
  at("undo").disabled = !before.length;
  at("forget").disabled = !marks.size;
  at("enough").textContent = Math.min(...counts) < ENOUGH ? `At least ${ENOUGH} of each class are needed, here or in earlier tables; some hundred in all make a good head.` : "";
  if (at("kinds")) {
    at("kinds").replaceChildren(...data.kinds.map((kind, number) => {
      const ours = data.kind.flatMap((each, row) => (each === number ? [marks.get(row)] : []));
      const cell = (count) => make("td", { className: "number", textContent: integer.format(count) });
      return make("tr", {}, make("th", { scope: "row", textContent: kind }), cell(ours.length), ...data.classes.map((_, mark) => cell(ours.filter((each) => each === mark).length)));
    }));
  }
}

function show() {
  const mark = marks.get(here);
  at("image").src = data.pictures[here];
  at("image").alt = called(here);
  at("place").textContent = `Picture ${integer.format(here + 1)} of ${integer.format(rows)}`;
  at("mark").textContent = nameOf(mark);
  at("caption").textContent = data.captions[here] ?? "";
  at("key").textContent = data.keys[here];
  at("back").disabled = here === 0;
  at("next").disabled = here === rows - 1;
  for (const button of at("classes").children) button.setAttribute("aria-pressed", String(Number(button.dataset.class) === mark));
  for (const tile of tiles) tile.toggleAttribute("aria-current", tile.row === here);
}

// What has been done; the rest is for screen readers alone, as it is seen elsewhere.
const say = (text, heard = "") => at("said").replaceChildren(text, make("span", { className: "heard", textContent: heard }));

function go(row) {
  if (row < 0 || row >= rows) return;
  here = row;
  kept.write();
  show();
}

// The next row that has neither a label nor been skipped, from behind the one that is shown on.
function onward(done) {
  for (let step = 1; step < rows; step++) {
    const row = (here + step) % rows;
    if (marks.has(row)) continue;
    here = row;
    kept.write();
    show();
    return say(done, `. Next, picture ${integer.format(row + 1)}: ${called(row)}`);
  }
  here = Math.min(here + 1, rows - 1);
  kept.write();
  show();
  say(`${done}. ${marks.size === rows ? `All are done: save ${data.table}` : "This picture is left"}`);
}

function set(row, mark) {
  const was = marks.get(row) ?? null;
  if (was === mark) return;
  before.push([row, was]);
  if (before.length > MOST_UNDONE) before.shift();
  put(row, mark);
}

function put(row, mark) {
  if (mark === null) marks.delete(row);
  else marks.set(row, mark);
  unsaved = true;
  at("saved").textContent = "";
  paint(row);
  kept.write();
  tell();
}

function label(mark) {
  set(here, mark);
  onward(nameOf(mark));
}

function skip() {
  const mark = marks.get(here);
  if (mark === undefined) set(here, SKIPPED);
  onward(mark === undefined || mark === SKIPPED ? "Skipped" : `Stays ${nameOf(mark)}`);
}

function clear() {
  set(here, null);
  show();
  say("No label");
}

function undo() {
  const last = before.pop();
  if (!last) return;
  put(...last);
  here = last[0];
  kept.write();
  show();
  say(`Undone: ${nameOf(last[1]) || "no label"}`, `, picture ${integer.format(here + 1)}: ${called(here)}`);
}

// All pictures

const tiles = data.keys.map((key, row) => {
  const image = make("span", { className: "image" }, make("img", { alt: "", decoding: "async" }), make("span", { className: "badge" }));
  const tile = make("button", { type: "button", className: "tile" }, image);
  tile.row = row;
  tile.addEventListener("click", () => {
    const brush = at("brush").value;
    if (brush === "") {
      go(row);
      scrollTo({ top: 0 });
      say("");
    } else {
      set(row, brush === "none" ? null : Number(brush));
      show();
    }
  });
  return tile;
});

// A picture is decoded when it comes near the window.
const near = new IntersectionObserver((seen) => {
  for (const { isIntersecting, target } of seen) {
    if (!isIntersecting) continue;
    target.querySelector("img").src = data.pictures[target.row];
    near.unobserve(target);
  }
}, { rootMargin: "300px" });

function paint(row) {
  const mark = marks.get(row), tile = tiles[row];
  if (mark === undefined) delete tile.dataset.mark;
  else tile.dataset.mark = mark;
  tile.querySelector(".badge").textContent = nameOf(mark);
  tile.setAttribute("aria-label", `Picture ${row + 1}, ${nameOf(mark) || "no label"}: ${called(row)}`);
}

function filter() {
  const wanted = at("filter").value;
  const passes = (mark) => (wanted === "" ? true : wanted === "open" ? mark === undefined : wanted === "skipped" ? mark === SKIPPED : mark === Number(wanted));
  const some = tiles.filter((tile) => passes(marks.get(tile.row)));
  at("tiles").replaceChildren(...some);
  at("filtered").textContent = `${integer.format(some.length)} of ${integer.format(rows)}`;
}

// What was saved

const tableOf = () => lineOf([data.idCol, ...(data.shards.length ? ["__url__"] : []), data.name])
  + labelled().map(([row, mark]) => lineOf([data.keys[row], ...(data.shards.length ? [data.shards[data.shard[row]]] : []), data.values[mark]])).join("");

at("save").addEventListener("click", () => {
  download(data.table, tableOf());
  unsaved = false;
  at("saved").textContent = `${integer.format(labelled().length)} labels saved`;
});
at("forget").addEventListener("click", () => {
  if (!confirm("Forget all labels of this page?")) return;
  marks.clear();
  before = [];
  here = 0;
  redraw();
  kept.write();
  say("All labels are forgotten");
});

function redraw() {
  for (let row = 0; row < rows; row++) paint(row);
  show();
  tell();
  filter();
}

// Keys and buttons

const KEYS = { " ": skip, s: skip, S: skip, u: undo, U: undo, Backspace: undo, Delete: clear, ArrowLeft: () => go(here - 1), ArrowRight: () => go(here + 1) };
// A class also has its first letter, where no other begins with that.
const firsts = data.classes.map((name) => name[0].toLowerCase());
firsts.forEach((letter, mark) => {
  if (!(letter in KEYS) && firsts.filter((each) => each === letter).length === 1 && !/[0-9]/.test(letter)) KEYS[letter] = () => label(mark);
});
document.addEventListener("keydown", (event) => {
  if (!at("listen").checked || event.ctrlKey || event.metaKey || event.altKey || event.repeat && event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
  const on = event.target.tagName;
  if (on === "SELECT" || on === "TEXTAREA" || (on === "INPUT" && event.key === " ")) return;
  if (event.key === " " && (on === "BUTTON" || on === "A")) return; // it presses that
  const mark = Number(event.key) - 1;
  const act = KEYS[event.key] ?? (/^[1-9]$/.test(event.key) && mark < data.classes.length ? () => label(mark) : null);
  if (!act) return;
  event.preventDefault();
  act();
});
// A button that was clicked does not stay where keys go: space skips.
for (const button of document.querySelectorAll("#side button")) button.addEventListener("mousedown", (event) => event.preventDefault());
for (const button of at("classes").children) button.addEventListener("click", () => label(Number(button.dataset.class)));
for (const [id, act] of [["skip", skip], ["undo", undo], ["back", () => go(here - 1)], ["next", () => go(here + 1)]]) at(id).addEventListener("click", act);
at("filter").addEventListener("change", filter);

// Another tab has changed them.
addEventListener("storage", (event) => {
  if (event.key !== null && event.key !== kept.name) return;
  const row = here;
  take();
  here = row;
  redraw();
});
addEventListener("beforeunload", (event) => {
  if (!keeps && unsaved) event.preventDefault();
});

take();
redraw();
kept.write();
for (const tile of tiles) near.observe(tile);
