// The map: the plot is Bokeh's; its points, their colours and the card beside the pointer are given to it here.

const NEAR_PIXELS = 14, MEMBERS = 24, LABELS = 12, LINE = 16;
const SCALE = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]]; // viridis
const COLOURS = ["#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#76b7b2", "#edc948", "#b07aa1", "#ff9da7", "#9c755f", "#86bcb6", "#d37295"];
const NOTHING = "#9aa0a8";

function along(part) {
  const at = Math.min(1, Math.max(0, part)) * (SCALE.length - 1), low = Math.min(SCALE.length - 2, Math.floor(at));
  return `rgb(${SCALE[low].map((value, channel) => Math.round(value + (at - low) * (SCALE[low + 1][channel] - value))).join(",")})`;
}

async function drawMap() {
  const { plot, names } = data.map;
  const [rows, x, y, clusters] = ["rows", "x", "y", "clusters"].map((name) => unpack(data.map[name]));
  const frame = document.getElementById("map-frame"), card = document.getElementById("map-card"), legend = document.getElementById("legend");
  await Bokeh.embed.embed_item(plot);
  const page = Bokeh.documents.at(-1), figure = page.roots()[0];
  const points = page.get_model_by_name("points"), labels = page.get_model_by_name("labels");

  const hasPicture = (at) => data.pictures[picture[rows[at]]]?.startsWith("data:");
  const small = rows.length > 5000 ? 3 : rows.length > 1000 ? 4 : 6;
  const sizes = Float32Array.from(rows, (_, at) => (hasPicture(at) ? small + 2 : small));

  function swatch(colour, text) {
    const mark = make("i");
    mark.style.background = colour;
    return make("span", {}, mark, text);
  }

  function paint(what) {
    const [kind, name] = what.split(/:(.*)/s);
    let colours;
    if (kind === "measure") {
      const { values } = data.measures[Number(name)], known = Array.from(rows, (row) => values[row]).filter(Number.isFinite).sort((a, b) => a - b);
      const low = known[Math.floor(0.01 * known.length)], high = known[Math.floor(0.99 * (known.length - 1))], width = high - low || 1;
      colours = Array.from(rows, (row) => (Number.isNaN(values[row]) ? NOTHING : along((values[row] - low) / width)));
      const bar = make("i", { className: "scale" });
      bar.style.background = `linear-gradient(90deg, ${SCALE.map((each) => `rgb(${each})`).join(",")})`;
      legend.replaceChildren(make("span", {}, plain(low), bar, plain(high)), swatch(NOTHING, "no value"));
    } else {
      const category = kind === "text" ? data.categories[name] : null, codes = category ? unpack(category.codes) : null;
      const colour = (code) => (!codes || code < Math.min(COLOURS.length, category.values.length) ? COLOURS[code % COLOURS.length] : NOTHING);
      colours = Array.from(rows, (row, at) => colour(codes ? codes[row] : clusters[at]));
      const top = codes ? category.values.slice(0, COLOURS.length) : [], rest = codes && (category.different > top.length || category.nulls);
      legend.replaceChildren(...top.map((text, code) => swatch(colour(code), text.slice(0, 60))), ...(rest ? [swatch(NOTHING, "other")] : []));
    }
    points.data = { x, y, colour: colours, size: sizes };
  }

  const colour = document.getElementById("colour");
  colour.append(make("option", { value: "cluster:", textContent: "cluster of the map" }),
    ...data.measures.map((measure, at) => make("option", { value: `measure:${at}`, textContent: measure.name })),
    ...data.categories.map((category, at) => make("option", { value: `text:${at}`, textContent: category.name })));
  colour.addEventListener("change", () => paint(colour.value));

  // Names of clusters, the largest first: as many as fit without one upon another, each whole inside the frame.
  const members = names.map(() => []);
  clusters.forEach((cluster, at) => members[cluster].push(at));
  const middle = (values, some) => Array.from(some, (at) => values[at]).sort((a, b) => a - b)[some.length >> 1];
  const centres = members.map((some) => [middle(x, some), middle(y, some)]);
  const pen = document.createElement("canvas").getContext("2d");
  pen.font = "bold 12px sans-serif";
  const widths = names.map((name) => pen.measureText(name).width + 8);
  function label() {
    const { x_range: across, y_range: up } = figure, wide = frame.clientWidth, high = frame.clientHeight;
    const perX = wide / (across.end - across.start), perY = high / (up.end - up.start), put = [];
    for (let each = 0; each < names.length && put.length < LABELS; each++) {
      const half = widths[each] / 2, [atX, atY] = [(centres[each][0] - across.start) * perX, (centres[each][1] - up.start) * perY];
      if (atX < 0 || atX > wide || atY < LINE || atY > high - LINE) continue;
      const moved = Math.min(wide - half, Math.max(half, atX));
      if (put.every((other) => Math.abs(other.x - moved) > half + other.half || Math.abs(other.y - atY) > LINE)) put.push({ each, x: moved, y: atY, half });
    }
    labels.data = { x: put.map((one) => across.start + one.x / perX), y: put.map((one) => up.start + one.y / perY), text: put.map((one) => names[one.each]) };
  }

  // Where it looks
  const whole = { x: [Math.min(...extent(x)), Math.max(...extent(x))], y: [Math.min(...extent(y)), Math.max(...extent(y))] };
  function extent(values) {
    let low = Infinity, high = -Infinity;
    for (const value of values) { low = Math.min(low, value); high = Math.max(high, value); }
    const margin = 0.08 * (high - low || 1);
    return [low - margin, high + margin];
  }
  const turn = (range, [start, end]) => {
    range.setv({ start, end });
    label();
  };
  // One unit is as long across as it is upwards.
  function lookAt({ x: across, y: up }) {
    const unit = Math.max((across[1] - across[0]) / frame.clientWidth, (up[1] - up[0]) / frame.clientHeight);
    const widened = ([low, high], pixels) => [(low + high - unit * pixels) / 2, (low + high + unit * pixels) / 2];
    turn(figure.x_range, widened(across, frame.clientWidth));
    turn(figure.y_range, widened(up, frame.clientHeight));
  }
  function zoom(factor) {
    for (const range of [figure.x_range, figure.y_range]) {
      const middle = (range.start + range.end) / 2, half = factor * (range.end - range.start) / 2;
      turn(range, [middle - half, middle + half]);
    }
  }
  function move(across, up) {
    for (const [range, part] of [[figure.x_range, across], [figure.y_range, up]]) {
      const step = part * (range.end - range.start);
      turn(range, [range.start + step, range.end + step]);
    }
  }
  const keys = { "+": () => zoom(0.7), "=": () => zoom(0.7), "-": () => zoom(1 / 0.7), 0: () => lookAt(whole),
    ArrowLeft: () => move(-0.2, 0), ArrowRight: () => move(0.2, 0), ArrowUp: () => move(0, 0.2), ArrowDown: () => move(0, -0.2) };
  frame.addEventListener("keydown", (event) => {
    if (!(event.key in keys) || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    keys[event.key]();
  });
  document.getElementById("zoom-in").addEventListener("click", keys["+"]);
  document.getElementById("zoom-out").addEventListener("click", keys["-"]);
  document.getElementById("zoom-all").addEventListener("click", keys[0]);

  // The card beside the pointer: of the nearest point that has a picture, else of the nearest.
  figure.on_event("mousemove", ({ x: atX, y: atY, sx, sy }) => {
    const box = frame.getBoundingClientRect();
    const perX = box.width / (figure.x_range.end - figure.x_range.start), perY = box.height / (figure.y_range.end - figure.y_range.start);
    let best = -1, least = NEAR_PIXELS ** 2;
    for (let at = 0; at < rows.length; at++) {
      const far = ((x[at] - atX) * perX) ** 2 + ((y[at] - atY) * perY) ** 2 + (hasPicture(at) ? 0 : NEAR_PIXELS ** 2 / 2);
      if (far < least) [best, least] = [at, far];
    }
    card.hidden = best < 0;
    if (best < 0) return;
    card.replaceChildren(...tile(rows[best], names[clusters[best]]).childNodes);
    card.style.left = `${Math.min(sx + 16, box.width - 160)}px`;
    card.style.top = `${Math.max(4, Math.min(sy + 16, box.height - 230))}px`;
  });
  figure.on_event("mouseleave", () => { card.hidden = true; });

  // Clusters
  const list = document.getElementById("clusters"), shownMembers = document.getElementById("members");
  names.forEach((name, cluster) => {
    const button = make("button", { type: "button", "aria-pressed": "false" }, `${name} `, make("span", { className: "faint", textContent: integer.format(members[cluster].length) }));
    button.addEventListener("click", () => {
      for (const each of list.children) each.setAttribute("aria-pressed", String(each === button));
      const some = members[cluster];
      const across = Array.from(some, (at) => x[at]).sort((a, b) => a - b), up = Array.from(some, (at) => y[at]).sort((a, b) => a - b);
      const inner = (values) => extent([values[Math.floor(0.05 * values.length)], values[Math.floor(0.95 * (values.length - 1))]]);
      lookAt({ x: inner(across), y: inner(up) });
      shownMembers.replaceChildren(...some.filter(hasPicture).slice(0, MEMBERS).map((at) => tile(rows[at], "")));
    });
    list.append(button);
  });
  const dark = matchMedia("(prefers-color-scheme: dark)"), ink = () => getComputedStyle(document.documentElement).getPropertyValue("--ink").trim();
  const text = page.get_model_by_name("names");
  const inked = () => { text.glyph.text_color = { value: ink() }; };
  dark.addEventListener("change", inked);
  inked();
  figure.on_event("rangesupdate", label); // the wheel, and dragging
  lookAt(whole);
  new ResizeObserver(label).observe(frame);
  paint("cluster:");
  frame.dataset.ready = "yes";
}

if (data.map) drawMap();
