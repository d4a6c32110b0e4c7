// Counts as clickable bars: causes of loss, values of a column.

import { count, make, percent, plain } from "./make.js";

// Each item: name, all rows, rows left, whether it is pressed, the action of a press.
export function bars(list, each, all) {
  const most = Math.max(1, ...each.map((one) => one.rows));
  const focused = [...list.children].findIndex((item) => item.contains(document.activeElement));
  list.replaceChildren(...each.map((one) => bar(one, most, all)));
  if (focused >= 0) list.children[focused]?.firstChild.focus();
}

function bar(one, most, all) {
  const track = make("span", { className: "track" }, make("i"), make("i"));
  const [every, left] = track.children;
  every.style.width = `${(100 * one.rows) / most}%`;
  left.style.width = `${(100 * one.left) / most}%`;
  const share = all ? ` (${percent(one.rows / all)})` : "";
  const said = `${plain(one.name)}: ${count(one.left)} of ${count(one.rows)} rows${share}`;
  return make("li", {}, make(
    "button",
    { className: one.kind ?? "", "aria-pressed": String(one.pressed), title: said, onclick: one.press },
    make("span", { className: "name" }, plain(one.name)),
    make("span", { className: "n" }, one.left === one.rows ? count(one.rows) : `${count(one.left)} of ${count(one.rows)}`),
    track,
  ));
}
