// Rows as cards: picture, caption, verdict, chosen columns.

import { ask } from "./ask.js";
import { $, count, make, plain } from "./make.js";
import { showRow } from "./row.js";
import { change, view } from "./view.js";

const TITLES = { rows: "", kept: "kept", dropped: "dropped", won: "won", lost: "lost", gained: "gained", both: "kept by both" };
const ORDER = ["gained", "lost", "won", "both", "rows", "kept", "dropped"];
const held = new Map(); // loaded rows, by key()
const MOST_HELD = 5000;

export const PAGE = 48, BESIDE = 24;

export function showGrid(answer) {
  const there = ORDER.filter((name) => answer.parts[name]);
  const names = there.filter((name) => answer.parts[name].count || !["won", "lost", "gained"].includes(name));
  const most = Math.max(...names.map((name) => answer.parts[name].count));
  $("parts").className = names.length > 1 ? "several" : "";
  $("parts").replaceChildren(...names.map((name) => part(name, answer.parts[name])));
  const size = pageSize();
  const last = Math.min(view.offset + size, most);
  $("page").textContent = most ? `${count(view.offset + 1)} to ${count(last)} of ${count(most)}` : "no row meets all filters";
  $("before").disabled = view.offset === 0;
  $("after").disabled = last >= most;
  $("before").onclick = () => change({ offset: Math.max(0, view.offset - size) }, true);
  $("after").onclick = () => change({ offset: view.offset + size }, true);
}

export const pageSize = () => (view.beside || view.threshold || view.variant ? BESIDE : PAGE);

function part(name, { count: rows, page }) {
  const grid = make("div", { className: "grid" }, ...page.map(card));
  const title = TITLES[name] ? make("h2", {}, `${TITLES[name]} `, make("small", {}, count(rows))) : null;
  return make("section", { className: `part ${name}`, "data-part": name }, title, grid);
}

function card(row) {
  const box = make("button", { className: "card", "data-row": row, onclick: () => showRow(held.get(key(row)) ?? { row }) });
  const known = held.get(key(row));
  if (known) fill(box, known);
  return box;
}

const key = (row) => JSON.stringify([view.root, view.end, view.columns, view.sort?.column, row]);

// Loads the rows of empty cards.
export async function fillGrid() {
  const missing = [...document.querySelectorAll(".card:empty")].map((box) => Number(box.dataset.row));
  if (!missing.length) return;
  const columns = [...new Set([...view.columns, ...(view.sort ? [view.sort.column] : [])])];
  const wanted = missing.slice(0, 200);
  const keys = new Map(wanted.map((row) => [row, key(row)]));
  const rows = await ask("rows", { root: view.root, rows: wanted, columns, end: view.end });
  if (held.size > MOST_HELD) held.clear();
  for (const row of rows) {
    held.set(keys.get(row.row), row);
    for (const box of document.querySelectorAll(`.card:empty[data-row="${row.row}"]`)) fill(box, row);
  }
}

export const forgetRows = () => held.clear();

function fill(box, row) {
  const frame = make("span", { className: "frame" });
  if (row.picture) frame.append(picture(row.row, "small"));
  else frame.append(make("span", {}, row.no_picture));
  const text = make("bdi", { className: "caption" }, row.text === null ? "no caption" : plain(row.text));
  const values = Object.entries(row.values).map(([name, value]) =>
    make("span", { className: "fact" }, `${name.split(".").at(-1)} `, make("b", {}, plain(value ?? "none"))));
  const [stage, reason] = row.verdict ?? ["", ""];
  const lost = row.verdict && stage ? make("span", { className: "fact gone" }, `${stage}: ${plain(reason)}`) : null;
  box.setAttribute("aria-label", `${row.uid.slice(0, 8)}: ${plain(row.text ?? "no caption").slice(0, 100)}`);
  box.classList.toggle("out", Boolean(lost));
  box.replaceChildren(frame, text, ...values, ...(lost ? [lost] : []));
}

export function picture(row, size) {
  const image = make("img", { alt: "", loading: "lazy", decoding: "async", src: `picture/${encodeURIComponent(view.root)}/${row}/${size}` });
  image.addEventListener("error", () => image.replaceWith(make("span", {}, "a picture that cannot be shown")));
  return image;
}
