"use strict";
// What the pages of reports and of labels share.

const data = JSON.parse(document.getElementById("data").textContent);

function make(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key in made) made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

// The bar at the top has more lines where its titles are long: what is scrolled to lies below it, whatever its height.
const bar = document.querySelector("header");
new ResizeObserver(() => {
  document.documentElement.style.scrollPaddingTop = `${Math.ceil(bar.getBoundingClientRect().height) + 12}px`;
}).observe(bar);

const integer = new Intl.NumberFormat("en");

// As one word of a command, in double quotes where that reads more easily.
const shell = (said) => (said.includes("'") && !/["$`\\!]/.test(said) ? `"${said}"` : `'${said.replaceAll("'", "'\\''")}'`);

// Buttons that copy what another element says.
for (const button of document.querySelectorAll("[data-copies]")) {
  const source = document.getElementById(button.dataset.copies);
  button.addEventListener("click", async () => {
    if (source.select) source.select();
    else getSelection().selectAllChildren(source);
    try { await navigator.clipboard.writeText(source.value ?? source.textContent); } catch { document.execCommand("copy"); }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
}

// Rows of a CSV.
const quoted = (text) => (/[",\r\n]|^\s|\s$/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
const lineOf = (fields) => `${fields.map(quoted).join(",")}\r\n`;

function download(name, text) {
  const url = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}
