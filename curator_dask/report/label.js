"use strict";
// Labels: yes or no to some images, saved as a table that `curator-dask fit` takes.

const PAGE = 24, NEXT = { "": "yes", yes: "no", no: "" }, ENOUGH = 5;

// What the browser keeps for this output, also of rows that are not on this page; it may refuse to.
const kept = {
  name: `curator-dask labels of ${data.output}`,
  read() {
    try { return { name: "good", labels: {}, ...JSON.parse(localStorage.getItem(this.name)) }; } catch { return { name: "good", labels: {} }; }
  },
  change(how) {
    const all = this.read();
    how(all);
    try { localStorage.setItem(this.name, JSON.stringify(all)); } catch { /* they last as long as the page */ }
  },
};

function labelling() {
  const at = (id) => document.getElementById(`label-${id}`);
  const nameOf = (row) => JSON.stringify([data.urls[shard[row]], data.keys[row]]);
  const labels = new Map();
  function take() {
    const before = kept.read();
    labels.clear();
    for (const row of byChance) if (Object.hasOwn(before.labels, nameOf(row))) labels.set(row, before.labels[nameOf(row)]);
    if (at("name").value !== before.name) at("name").value = before.name;
  }
  take();
  let order = byChance, first = 0;
  if (!byChance.length) {
    for (const each of document.querySelectorAll("#label, [href='#label']")) each.hidden = true;
    return;
  }

  at("order").append(...ordersOf());

  function mark(figure, row) {
    const label = labels.get(row) ?? "";
    figure.dataset.label = label;
    figure.setAttribute("aria-pressed", String(Boolean(label)));
    figure.setAttribute("aria-label", `${data.keys[row]}: ${label || "no label"}`);
  }

  function set(figure, row, label) {
    if (label) labels.set(row, label);
    else labels.delete(row);
    mark(figure, row);
    kept.change((all) => {
      if (label) all.labels[nameOf(row)] = label;
      else delete all.labels[nameOf(row)];
    });
    told();
  }

  function figureOf(row) {
    const figure = tile(row, "");
    figure.setAttribute("role", "button");
    mark(figure, row);
    figure.addEventListener("click", () => set(figure, row, NEXT[figure.dataset.label]));
    figure.addEventListener("keydown", (event) => {
      const label = { y: "yes", Y: "yes", n: "no", N: "no", Delete: "", Backspace: "" }[event.key];
      const down = { ArrowDown: 1, ArrowUp: -1 }[event.key], across = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      const step = across ?? (down ? down * perLine() : label === undefined ? 0 : 1);
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key === "Enter" || event.key === " ") figure.click();
      else if (!step) return;
      event.preventDefault();
      if (label !== undefined) set(figure, row, label);
      if (step) go(first + [...at("tiles").children].indexOf(figure) + step);
    });
    return figure;
  }

  // Tiles that stand in one line.
  function perLine() {
    const tiles = [...at("tiles").children], second = tiles.findIndex((each) => each.offsetTop !== tiles[0].offsetTop);
    return second < 0 ? tiles.length : second;
  }

  // To a place of the order, on whichever page it is.
  function go(place) {
    if (place < 0 || place >= order.length) return;
    const start = place - (place % PAGE);
    if (start !== first) {
      first = start;
      draw();
    }
    at("tiles").children[place - first].focus();
  }

  function draw() {
    const some = order.slice(first, first + PAGE);
    at("tiles").replaceChildren(...some.map(figureOf));
    at("place").textContent = `${integer.format(Math.min(first + 1, order.length))} to ${integer.format(first + some.length)} of ${integer.format(order.length)}`;
    at("back").disabled = first === 0;
    at("next").disabled = first + PAGE >= order.length;
  }

  // Rows without a shard have their key alone.
  const shards = data.urls.some((url) => url);
  const tableOf = (name) => lineOf([data.idCol, ...(shards ? ["__url__"] : []), name])
    + [...labels].map(([row, label]) => lineOf([data.keys[row], ...(shards ? [data.urls[shard[row]]] : []), label === "yes" ? "true" : "false"])).join("");

  function told() {
    const name = at("name").value, count = (wanted) => [...labels.values()].filter((label) => label === wanted).length;
    const [yes, no] = [count("yes"), count("no")];
    const wrong = !/^\w+$/.test(name) ? "A name has letters, digits and _." : data.columns.includes(name.toLowerCase()) ? `There is a column ${name}, so its scores would have no name: give another in the field Label.` : "";
    const few = Math.min(yes, no) < ENOUGH ? ` At least ${ENOUGH} of each are needed; some hundred make a good head.` : "";
    at("count").textContent = `${integer.format(yes)} yes, ${integer.format(no)} no.${few} ${wrong}`;
    at("save").disabled = Boolean(wrong) || !labels.size;
    at("forget").disabled = !labels.size;
    at("fit").textContent = `curator-dask fit ${shell(data.output)} ${name}.safetensors --labels labels.csv --label ${name}`;
    at("score").textContent = `curator-dask score ${shell(data.output)} --head ${name}=${name}.safetensors`;
  }

  at("order").addEventListener("change", () => {
    order = inOrder(at("order").value);
    first = 0;
    draw();
  });
  for (const [id, step] of [["back", -PAGE], ["next", PAGE]]) {
    at(id).addEventListener("click", () => { first += step; draw(); });
  }
  at("name").addEventListener("input", () => {
    kept.change((all) => { all.name = at("name").value; });
    told();
  });
  at("save").addEventListener("click", () => {
    download("labels.csv", tableOf(at("name").value));
  });
  at("forget").addEventListener("click", () => {
    if (!confirm("Forget all labels of this output?")) return;
    labels.clear();
    kept.change((all) => { all.labels = {}; });
    draw();
    told();
  });
  // Another tab has changed them.
  addEventListener("storage", (event) => {
    if (event.key !== null && event.key !== kept.name) return;
    take();
    [...at("tiles").children].forEach((figure, place) => mark(figure, order[first + place]));
    told();
  });
  draw();
  told();
}

if (document.getElementById("label")) labelling();
