// Values: how many rows have each, the images of those that are chosen, and the condition that keeps them.

const IMAGES = 24, FIND = 20;

function valuing() {
  const at = (id) => document.getElementById(`values-${id}`);
  let category, codes, chosen = new Set(), rows = [], first = 0;
  data.categories.forEach((each, number) => at("column").append(make("option", { value: number, textContent: each.name })));
  at("order").append(...ordersOf());

  const isNull = (code) => code === category.values.length + 1;
  const countOf = (code) => (isNull(code) ? category.nulls : category.counts[code]);
  const nameOf = (code) => (isNull(code) ? "no value" : category.values[code] || "(empty text)");

  function choose(number) {
    category = data.categories[number];
    codes = unpack(category.codes);
    chosen = new Set([0]);
    at("find").value = "";
    at("find").parentElement.hidden = category.values.length <= FIND;
    const most = Math.max(...category.counts, category.nulls);
    const order = [...category.values.keys(), ...(category.nulls ? [category.values.length + 1] : [])];
    at("list").replaceChildren(...order.map((code) => {
      const bar = make("i");
      bar.style.width = `${100 * countOf(code) / most}%`;
      const button = make("button", { type: "button", title: nameOf(code) },
        make("b", { textContent: nameOf(code) }), make("span", { className: "number", textContent: integer.format(countOf(code)) }),
        make("span", { className: "number", textContent: percent(countOf(code), data.rows) }), make("span", { className: "bar" }, bar));
      button.dataset.code = code;
      if (isNull(code)) button.classList.add("faint");
      button.addEventListener("click", () => {
        if (!chosen.delete(code)) chosen.add(code);
        look();
      });
      return button;
    }));
    const { others, different, values } = category;
    at("others").textContent = others ? `${integer.format(different - values.length)} other values, of ${integer.format(others)} rows` : "";
    look();
  }

  // As a condition says it.
  function where() {
    const some = category.values.filter((_, code) => chosen.has(code)), parts = [];
    if (category.flag) parts.push(...some.map((value) => (value === "true" ? category.sql : `not ${category.sql}`)));
    else {
      const texts = some.map((value) => `'${value.replaceAll("'", "''")}'`);
      if (texts.length) parts.push(texts.length > 1 ? `${category.sql} in (${texts.join(", ")})` : `${category.sql} = ${texts[0]}`);
    }
    if (chosen.has(category.values.length + 1)) parts.push(`${category.sql} is null`);
    return parts.join(" or ");
  }

  function look() {
    for (const each of at("list").children) each.setAttribute("aria-pressed", String(chosen.has(Number(each.dataset.code))));
    const count = [...chosen].reduce((sum, code) => sum + countOf(code), 0);
    at("kept").textContent = `${integer.format(count)} of ${integer.format(data.rows)} rows kept (${percent(count, data.rows)})`;
    at("where").value = where();
    at("command").textContent = chosen.size ? `curator-dask filter ${shell(data.output)} --where ${shell(where())}` : "";
    rows = inOrder(at("order").value).filter((row) => chosen.has(codes[row]));
    first = 0;
    draw();
  }

  function draw() {
    const some = rows.slice(first, first + IMAGES), single = chosen.size === 1;
    at("tiles").replaceChildren(...some.map((row) => tile(row, single ? "" : nameOf(codes[row]))));
    if (!some.length) at("tiles").append(make("span", { className: "faint", textContent: "none that has a picture" }));
    at("place").textContent = some.length ? `${integer.format(first + 1)} to ${integer.format(first + some.length)} of ${integer.format(rows.length)} with a picture` : "";
    at("back").disabled = first === 0;
    at("next").disabled = first + IMAGES >= rows.length;
  }

  at("column").addEventListener("change", () => choose(Number(at("column").value)));
  at("order").addEventListener("change", look);
  at("find").addEventListener("input", () => {
    const wanted = at("find").value.toLowerCase();
    for (const each of at("list").children) each.hidden = !nameOf(Number(each.dataset.code)).toLowerCase().includes(wanted);
  });
  for (const [id, step] of [["back", -IMAGES], ["next", IMAGES]]) at(id).addEventListener("click", () => { first += step; draw(); });
  choose(0);
}

if (data.categories.length) valuing();
