// Clusters in a plane: a disc's area is proportional to its rows, its colour shows the share kept.

import { ask } from "./ask.js";
import { $, count, draw, make, options, percent } from "./make.js";
import { aboutColumn, filterBy, root, view } from "./view.js";

const HIGH = 60; // height of a plane 100 wide
const FILLED = 0.15; // share of the plane that all discs fill
const SHADES = 7;
let maps = null;

export const clusterColumns = () => root().columns.filter((each) => each.is_cluster);
export const forgetMaps = () => { maps = null; };

export async function showMap() {
  const box = $("map");
  box.hidden = false;
  if (maps === null) {
    box.replaceChildren(make("p", { className: "soft" }, "counting rows by cluster…"));
    maps = await ask("clusters");
  }
  const mine = maps.filter((each) => clusterColumns().some((one) => one.stage === each.stage));
  if (!mine.length) {
    box.replaceChildren(make("p", { className: "soft" }, "no complete stage left the centres of its clusters"));
    return;
  }
  const chosen = make("select", { "aria-label": "Clustering" });
  const end = make("select", { "aria-label": "Coloured by the share that a stage keeps" });
  options(chosen, mine.map((each, index) => [String(index), each.stage]), "0");
  const plane = make("div", { className: "plane" });
  const redraw = () => {
    const map = mine[Number(chosen.value)];
    const names = Object.keys(map.ends);
    if (end.dataset.of !== map.stage) options(end, names.map((name, index) => [String(index), `kept by ${name}`]), "0");
    end.dataset.of = map.stage;
    plane.replaceChildren(discs(map, Number(end.value)));
  };
  chosen.onchange = redraw;
  end.onchange = redraw;
  box.replaceChildren(make("p", { className: "tools" }, chosen, end, make("span", { className: "soft" }, "press a disc to see its rows")), plane);
  redraw();
}

function discs(map, end) {
  const id = clusterColumns().find((one) => one.stage === map.stage).id;
  const rows = map.drawn.reduce((sum, each) => sum + each.rows, 0);
  const xs = map.drawn.map((each) => each.x), ys = map.drawn.map((each) => -each.y);
  const [left, top] = [Math.min(...xs), Math.min(...ys)];
  const scale = Math.max((Math.max(...xs) - left) / 90, (Math.max(...ys) - top) / (HIGH - 10)) || 1;
  const pressed = view.filters.find(aboutColumn(id, "one of"))?.values ?? [];
  const drawn = map.drawn.map((each, index) => {
    const share = map.ends && each.kept.length ? each.kept[end] / each.rows : 0;
    const radius = Math.min(4.5, Math.max(0.4, Math.sqrt((FILLED * 100 * HIGH * each.rows) / rows / Math.PI)));
    const said = `cluster ${each.number}: ${count(each.rows)} rows, ${percent(share)} kept`;
    const disc = draw("circle", {
      cx: 5 + (xs[index] - left) / scale, cy: 5 + (ys[index] - top) / scale, r: radius, tabindex: 0, role: "button",
      class: `s${Math.min(SHADES - 1, Math.floor(SHADES * share))}`, "aria-label": said, "aria-pressed": String(pressed.includes(each.number)),
    }, draw("title"));
    disc.firstChild.textContent = said;
    const press = () => {
      const isOn = (view.filters.find(aboutColumn(id, "one of"))?.values ?? []).includes(each.number);
      for (const other of disc.parentElement.children) other.setAttribute("aria-pressed", "false");
      disc.setAttribute("aria-pressed", String(!isOn));
      filterBy(aboutColumn(id, "one of"), isOn ? null : { is: "one of", column: id, values: [each.number] });
    };
    disc.addEventListener("click", press);
    disc.addEventListener("keydown", (event) => ["Enter", " "].includes(event.key) && (event.preventDefault(), press()));
    return disc;
  });
  return draw("svg", { viewBox: `0 0 100 ${HIGH}`, role: "group", "aria-label": `clusters of ${map.stage}` }, ...drawn);
}
