// Tables of rules broken together, correlated scores, and scores by category.

import { ask, newest } from "./ask.js";
import { $, count, make, percent, plain, short } from "./make.js";
import { view } from "./view.js";

export const isOpen = () => $("show-relations").getAttribute("aria-pressed") === "true";

export const showRelations = newest(async () => {
  const box = $("relations");
  box.hidden = !isOpen();
  if (box.hidden) return;
  if (!box.children.length) box.append(make("p", { className: "soft" }, "counting…"));
  const { rules, correlations, by, rows } = await ask("relations", {
    root: view.root, filters: view.filters, columns: view.charts, category: view.lists[0] ?? null,
  });
  box.replaceChildren(...[overlap(rules, rows), together(correlations), quartiles(by)].filter(Boolean));
});

function overlap(rules, rows) {
  if (!rules.length) return null;
  const failing = rules.filter((rule) => rule.rows);
  const place = (rule) => rules.indexOf(rule);
  return table(
    "Rows beyond each threshold, and beyond two at once",
    ["", "rows", "share", "alone", ...failing.map((rule) => plain(rule.text))],
    failing.map((rule) => [
      `${rule.stage}: ${plain(rule.text)}`, count(rule.rows), percent(rule.rows / Math.max(1, rows)), count(rule.alone),
      ...failing.map((other) => (other === rule ? "" : count(rule.both[place(other)]))),
    ]),
  );
}

function together(correlations) {
  if (!correlations.length) return null;
  return table("Numbers that rise together: Pearson's r", ["", "", "r", "rows with both"],
    correlations.map(({ a, b, r, rows }) => [a, b, r === null ? "none" : r.toFixed(2), count(rows)]));
}

function quartiles(by) {
  if (!by || !view.charts.length) return null;
  const said = (three) => (three ? `${short(three[1])} (${short(three[0])} to ${short(three[2])})` : "none");
  return table(`Median and middle half, by ${by.column}`, [by.column, "rows", ...view.charts],
    by.values.map(({ value, rows, quartiles: of }) => [plain(value ?? "none"), count(rows), ...view.charts.map((id) => said(of[id]))]));
}

function table(title, heads, lines) {
  return make("section", {}, make("h2", {}, title), make("div", { className: "wide", tabIndex: 0, role: "region", "aria-label": title },
    make("table", {},
      make("thead", {}, make("tr", {}, ...heads.map((head) => make("th", { scope: "col" }, head)))),
      make("tbody", {}, ...lines.map(([first, ...rest]) => make("tr", {}, make("th", { scope: "row" }, first), ...rest.map((cell) => make("td", {}, cell))))))));
}
