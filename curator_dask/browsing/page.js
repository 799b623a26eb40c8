"use strict";
// Rows of an output, found by a text, an image, one of them, a condition or a column; chosen ones are saved as a table.

const COUNT = 48, PICTURES = 24;
const at = (id) => document.getElementById(id);

// What the rows that are shown answer, what was asked last, the rows, and whether there are more; answers to an earlier
// question are let go.
let look = { kind: "random", seed: 1 }, wished = look, rows = [], whole = true, asking = false, turn = 0;
const chosen = new Map();
const given = new Map(); // images of this page, by their name, to be shown again

async function post(path, body) {
  const isData = body instanceof Blob;
  let answer;
  try {
    answer = await fetch(path, { method: "POST", body: isData ? body : JSON.stringify(body), credentials: "same-origin" });
  } catch {
    throw new Error("curator-dask browse does not answer: it was ended");
  }
  if (!answer.ok) throw new Error(answer.status === 413 ? "the image is too large: 32 MiB are the most" : (await answer.text()).trim().replace(/^\d{3}: /, ""));
  const said = await answer.json();
  if (said.error) throw new Error(said.error);
  return said;
}

function complain(error, field) {
  at("error").textContent = error ? error.message : "";
  at("error").hidden = !error;
  at("where").classList.toggle("wrong", Boolean(error) && field === "where");
}

const columnsShown = () => [...document.querySelectorAll("#columns input:checked")].map((each) => each.value);

function told({ passing, parts: [text, not] }) {
  const of = look.where ? `${integer.format(passing)} of ${integer.format(data.rows)} rows pass` : `${integer.format(data.rows)} rows`;
  const words = {
    random: "Rows by chance", text: `Nearest to “${text}”${not ? `, away from “${not}”` : ""}`, like: `Nearest to ${look.name ?? "a row"}`, these: `Nearest to ${integer.format(look.likes?.length ?? 0)} chosen`, image: "Nearest to the image",
    order: `${look.descending ? "Largest" : "Smallest"} ${look.column} first`,
  };
  const shown = look.kind === "like" ? look.picture : look.kind === "image" ? given.get(look.image) : null;
  at("said").replaceChildren(...(shown ? [make("img", { src: shown, alt: "" })] : []), `${words[look.kind]}${away().length ? `, away from ${integer.format(away().length)} chosen` : ""}; ${of}`);
}

// Rows that those that are shown are not to be like: of a question by vectors.
const away = (of = look) => (["text", "like", "these", "image"].includes(of.kind) ? of.unlikes ?? [] : []);

// Ask anew. What was asked before is in the browser's history.
async function ask(next, remember = true) {
  wished = { where: at("where").value.trim(), ...next };
  const mine = ++turn, mean = wished;
  asking = true;
  at("tiles").setAttribute("aria-busy", "true");
  try {
    const said = await post("/find", { ...asked(mean), start: 0, count: COUNT, columns: columnsShown() });
    if (mine !== turn) return;
    look = mean;
    if (remember) history.pushState(look, "");
    complain(null);
    rows = [];
    showOrder();
    at("tiles").replaceChildren();
    add(said);
    told(said);
    if (remember) scrollTo({ top: 0 });
    return true;
  } catch (error) {
    if (mine !== turn) return;
    const isCondition = Boolean(mean.where) && error.message.startsWith("where=");
    complain(error, isCondition ? "where" : null);
    // What failed is not asked again with the next condition; a condition that failed may be of a question that did not.
    if (!isCondition) wished = look;
  } finally {
    if (mine === turn) {
      asking = false;
      at("tiles").removeAttribute("aria-busy");
      seekMore();
    }
  }
}

const asked = (of) => {
  const { kind, text = "", number = -1, image = "", column = "", descending = true, where = "", seed = 0, likes = [] } = of;
  return { kind, text, number, image, column, descending, where, seed, likes, unlikes: away(of) };
};

async function more() {
  if (asking || whole) return;
  const mine = turn;
  asking = true;
  try {
    const said = await post("/find", { ...asked(look), start: rows.length, count: COUNT, columns: columnsShown() });
    if (mine === turn) add(said);
  } catch (error) {
    if (mine === turn) { whole = true; complain(error); }
  } finally {
    if (mine === turn) { asking = false; seekMore(); }
  }
}

function add(said) {
  whole = said.whole;
  for (const row of said.rows) {
    rows.push(row);
    at("tiles").append(tileOf(row));
  }
  at("end").textContent = !rows.length ? "No rows" : whole ? `These are all: ${integer.format(rows.length)}` : "…";
}

function tileOf(row) {
  const image = make("span", { className: "image waits" });
  const name = row.caption ?? `no caption, ${row.key}`;
  const pick = make("button", { type: "button", className: "pick" }, image);
  pick.setAttribute("aria-pressed", String(chosen.has(row.number)));
  pick.setAttribute("aria-label", name);
  pick.title = row.place ? `${row.key} of ${row.place}` : row.key;
  const like = make("button", { type: "button", className: "like", textContent: "like this" });
  like.setAttribute("aria-label", `More like ${name}`);
  const line = make("div", { className: "line" },
    row.score === null ? make("span", { className: "key", textContent: row.key }) : make("b", { textContent: row.score.toFixed(3) }), ...(data.noImage ? [] : [like]));
  const tile = make("figure", { className: "tile" }, pick, make("figcaption", {}, line));
  const text = tile.lastChild;
  if (row.score !== null) text.append(make("div", { className: "key", textContent: row.key }));
  if (row.caption !== null) text.append(make("div", { className: "caption", textContent: row.caption }));
  const values = Object.entries(row.values).filter(([, value]) => value !== null);
  if (values.length) text.append(make("dl", { className: "values" }, ...values.flatMap(([key, value]) => [make("dt", { textContent: key, title: key }), make("dd", { textContent: value, title: value })])));
  tile.row = row;
  pick.addEventListener("click", (event) => choose(tile, event.shiftKey));
  like.addEventListener("click", () => alike(tile));
  near.observe(tile);
  return tile;
}

// Pictures are asked for when their tiles come near the window, some at a time.
let wanted = [], timer = 0;
const near = new IntersectionObserver((seen) => {
  for (const { isIntersecting, target } of seen) {
    if (!isIntersecting) continue;
    near.unobserve(target);
    wanted.push(target);
  }
  if (wanted.length && !timer) timer = setTimeout(fetchPictures, 10);
}, { rootMargin: "400px" });

function fetchPictures() {
  timer = 0;
  while (wanted.length) {
    const some = wanted.splice(0, PICTURES);
    post("/pictures", { numbers: some.map((tile) => tile.row.number) }).then(({ pictures }) => {
      for (const tile of some) paint(tile, pictures[tile.row.number] ?? "no picture");
    }, (error) => {
      for (const tile of some) paint(tile, error.message);
    });
  }
}

function paint(tile, picture) {
  const image = tile.querySelector(".image");
  image.classList.remove("waits");
  if (picture.startsWith("data:image/")) {
    tile.picture = picture;
    image.replaceChildren(make("img", { src: picture, alt: "", decoding: "async" }));
  } else {
    image.replaceChildren(make("span", { className: "none", textContent: picture }));
  }
}

const alike = (tile) => ask({ kind: "like", number: tile.row.number, name: tile.row.caption ?? tile.row.key, picture: tile.picture });

// Chosen rows

let last = null;
function choose(tile, range = false) {
  const tiles = [...at("tiles").children];
  const isIn = chosen.has(tile.row.number);
  const from = range && last ? tiles.indexOf(last) : -1;
  const to = tiles.indexOf(tile);
  const some = from < 0 ? [tile] : tiles.slice(Math.min(from, to), Math.max(from, to) + 1);
  for (const each of some) {
    if (isIn && from < 0) chosen.delete(each.row.number);
    else chosen.set(each.row.number, each.row);
    each.querySelector(".pick").setAttribute("aria-pressed", String(chosen.has(each.row.number)));
  }
  last = tile;
  count();
}

function count() {
  at("chosen").hidden = !chosen.size;
  at("count").textContent = `${integer.format(chosen.size)} chosen`;
}

at("label").addEventListener("input", () => { at("value").disabled = !at("label").value.trim(); });
at("save").addEventListener("click", () => {
  const all = [...chosen.values()], name = at("label").value.trim();
  const shards = all.some((row) => row.url !== null);
  const head = [data.idCol, ...(shards ? ["__url__"] : []), ...(name ? [name] : [])];
  const lines = all.map((row) => lineOf([row.key, ...(shards ? [row.url ?? ""] : []), ...(name ? [at("value").value] : [])]));
  download(`${name || "chosen"}.csv`, lineOf(head) + lines.join(""));
});
function clear() {
  chosen.clear();
  for (const pick of document.querySelectorAll("#tiles [aria-pressed=true]")) pick.setAttribute("aria-pressed", "false");
  count();
}
at("clear").addEventListener("click", clear);
// So many rows may go with a question.
function tooMany(some) {
  if (some.length <= data.most) return false;
  complain(new Error(`${integer.format(some.length)} rows are chosen, and ${data.most} are the most to look by: choose fewer`));
  scrollTo({ top: 0 });
  return true;
}
// What is not wanted goes on to the next question by chosen rows, and ends with any other. Of a row the last word counts.
at("these")?.addEventListener("click", () => {
  const likes = [...chosen.keys()];
  if (!tooMany(likes)) ask({ kind: "these", likes, unlikes: away().filter((number) => !chosen.has(number)) });
});
at("away")?.addEventListener("click", () => {
  if (!["text", "like", "these", "image"].includes(look.kind)) {
    complain(new Error("Look for a text, an image or what is like some first: then those that are like the chosen ones can be kept away"));
    return;
  }
  const unlikes = [...new Set([...away(), ...chosen.keys()])];
  const likes = (look.likes ?? []).filter((number) => !chosen.has(number));
  if ((look.kind === "these" && !likes.length) || (look.kind === "like" && chosen.has(look.number))) {
    complain(new Error("These are the rows that others are looked for by: choose others to keep away from"));
    scrollTo({ top: 0 });
  } else if (!tooMany(unlikes)) ask({ ...look, likes, unlikes }).then((found) => found && clear());
});

// What is asked for

function byText() {
  const text = at("text").value.trim();
  if (text) ask({ kind: "text", text });
}
at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (at("order")) at("order").value = "";
  turnOrder();
  byText();
});
at("random").addEventListener("click", () => {
  if (at("order")) at("order").value = "";
  turnOrder();
  ask({ kind: "random", seed: 1 + Math.floor(Math.random() * 1e9) });
});
function narrow() {
  const where = at("where").value.trim();
  if (where !== (wished.where ?? "")) ask({ ...wished, where });
}
at("where").addEventListener("change", narrow);
at("where").addEventListener("keydown", (event) => {
  if (event.key === "Enter") { event.preventDefault(); narrow(); }
});
// The list says by which column rows are in order, also where "like this" or the browser's back button led elsewhere.
function showOrder() {
  if (!at("order")) return;
  at("order").value = look.kind === "order" ? look.column : "";
  if (look.kind === "order") at("direction").value = look.descending ? "down" : "up";
  turnOrder();
}
function turnOrder() { if (at("order")) at("direction-label").hidden = !at("order").value; }
for (const id of ["order", "direction"]) {
  at(id)?.addEventListener("change", () => {
    turnOrder();
    const column = at("order").value;
    if (column) ask({ kind: "order", column, descending: at("direction").value === "down" });
    else if (at("text").value.trim() && !data.noText) byText();
    else ask({ kind: "random", seed: 1 });
  });
}

async function take(file) {
  if (!file || data.noImage) return;
  if (file.size > 32 * 2 ** 20) { complain(new Error("the image is too large: 32 MiB are the most")); return; }
  at("said").textContent = "The image is embedded …";
  try {
    const { image } = await post("/image", file);
    // As data: the page may show nothing else.
    given.set(image, await new Promise((done) => { const reader = new FileReader(); reader.onload = () => done(reader.result); reader.readAsDataURL(file); }));
    await ask({ kind: "image", image });
  } catch (error) {
    complain(error);
    at("said").textContent = "";
  }
}
at("given").addEventListener("change", () => { take(at("given").files[0]); at("given").value = ""; });
addEventListener("dragover", (event) => { event.preventDefault(); if (!data.noImage) at("drop").hidden = false; });
addEventListener("dragleave", (event) => { if (!event.relatedTarget) at("drop").hidden = true; });
addEventListener("drop", (event) => { event.preventDefault(); at("drop").hidden = true; take(event.dataTransfer.files[0]); });
addEventListener("paste", (event) => { if (event.clipboardData?.files.length) take(event.clipboardData.files[0]); });

addEventListener("popstate", (event) => {
  if (!event.state) return;
  at("where").value = event.state.where;
  at("text").value = event.state.text ?? "";
  ask(event.state, false);
});

// More when the end comes near.
const end = new IntersectionObserver((seen) => { if (seen.some((each) => each.isIntersecting)) more(); }, { rootMargin: "800px" });
function seekMore() { end.unobserve(at("end")); end.observe(at("end")); }

// Keys: tiles are moved through as they lie.
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const field = event.target.closest("input, select, textarea");
  if (event.key === "/" && !field) { event.preventDefault(); at("text").focus(); return; }
  if (field) return;
  const tile = event.target.closest(".tile");
  const tiles = [...at("tiles").children];
  if (!tile) {
    if (event.key === "ArrowDown" && tiles.length && event.target === document.body) { event.preventDefault(); tiles[0].querySelector(".pick").focus(); }
    return;
  }
  const here = tiles.indexOf(tile), wide = tiles.filter((each) => each.offsetTop === tiles[0].offsetTop).length;
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -wide, ArrowDown: wide }[event.key];
  if (step) {
    event.preventDefault();
    const next = tiles[here + step];
    if (next) { next.querySelector(".pick").focus({ preventScroll: true }); next.scrollIntoView({ block: "nearest" }); }
  } else if (event.key === "l" && !data.noImage) alike(tile);
});

// The list of columns closes as lists do.
document.addEventListener("click", (event) => { if (!at("show").contains(event.target)) at("show").open = false; });
at("show").addEventListener("keydown", (event) => {
  if (event.key === "Escape") { at("show").open = false; at("show").firstElementChild.focus(); }
});

// Begin

for (const name of data.columns) {
  const box = make("input", { type: "checkbox", value: name });
  box.addEventListener("change", () => ask(look, false));
  at("columns").append(make("label", {}, box, ` ${name}`));
}
at("show").hidden = !data.columns.length;
if (data.noText) {
  at("text").disabled = at("go").disabled = true;
  at("text").placeholder = `No search by a text: ${data.noText}`;
  at("text").title = data.noText;
}
if (data.noImage) {
  at("given").disabled = true;
  at("given-label").classList.add("off");
  at("given-label").title = data.noImage;
}
history.replaceState({ ...look, where: "" }, "");
ask(look, false);
