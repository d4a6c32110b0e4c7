// The page: asks for counts at each change, then for the rows on show.

import { ask, calm, newest } from "./ask.js";
import { bars } from "./bars.js";
import { forgetCharts, showCharts, tried } from "./charts.js";
import { fillGrid, forgetRows, pageSize, showGrid } from "./grid.js";
import { $, count, make, options, plain, short } from "./make.js";
import { clusterColumns, forgetMaps, showMap } from "./map.js";
import { isOpen, showRelations } from "./relations.js";
import { closeRow } from "./row.js";
import { showTried } from "./tried.js";
import { aboutCauses, aboutColumn, begin, change, column, filterBy, onChange, root, run, starting, view } from "./view.js";

let good = null; // the last view that was answered: restored if the next one is refused

const update = newest(async () => {
  const wanted = structuredClone(view);
  const answer = await ask("query", {
    root: view.root, filters: view.filters, histograms: view.charts, categories: view.lists,
    end: view.end, beside: view.beside || Boolean(view.threshold), threshold: view.threshold, variant: view.threshold ? null : view.variant,
    sort: view.sort, offset: view.offset, limit: pageSize(),
  }).catch((error) => {
    Object.assign(view, good ?? starting());
    showMenus();
    throw error;
  });
  good = wanted;
  calm();
  showCount(answer);
  showCauses(answer);
  showLists(answer);
  showCharts(answer);
  showTried(answer);
  showGrid(answer);
  showChips();
  fill();
  if (isOpen()) showRelations();
});
const fill = newest(fillGrid);

const showCount = (answer) => {
  $("count").textContent = `${count(answer.count)} of ${count(answer.rows)} rows`;
};

function showCauses(answer) {
  const pressed = view.filters.find(aboutCauses)?.causes ?? [];
  const isPressed = (one) => pressed.some(([stage, reason]) => stage === one.stage && reason === one.reason);
  bars($("causes"), (answer.causes ?? []).map((one) => ({
    ...one, name: one.stage ? `${one.stage}: ${one.reason}` : `kept by ${view.end}`,
    kind: one.stage ? "gone" : "stays", pressed: isPressed(one),
    press: () => {
      const mine = [one.stage, one.reason];
      const causes = isPressed(one) ? pressed.filter(([stage, reason]) => stage !== mine[0] || reason !== mine[1]) : [...pressed, mine];
      filterBy(aboutCauses, causes.length ? { is: "lost for", end: view.end, causes } : null);
    },
  })), answer.rows);
}

function showLists(answer) {
  const old = new Map([...$("lists").children].map((box) => [box.dataset.column, box]));
  const boxes = view.lists.map((id) => {
    const box = old.get(id) ?? make("div", { "data-column": id },
      make("p", { className: "head" }, make("b", { title: column(id).doc }, id), make("button", {
        className: "quiet", "aria-label": `Close the values of ${id}`,
        onclick: () => change({ lists: view.lists.filter((each) => each !== id), filters: view.filters.filter((each) => !aboutColumn(id, "one of")(each)) }),
      }, "×")), make("ul", { className: "bars" }), make("p", { className: "soft" }));
    
    const pressed = view.filters.find(aboutColumn(id, "one of"))?.values ?? [];
    const { values, others, refused } = answer.categories[id];
    bars(box.lastChild.previousSibling, values.map((one) => ({
      ...one, name: one.value ?? (column(id).name === "reason" ? "fine" : "none"), pressed: pressed.includes(one.value),
      press: () => {
        const chosen = pressed.includes(one.value) ? pressed.filter((each) => each !== one.value) : [...pressed, one.value];
        filterBy(aboutColumn(id, "one of"), chosen.length ? { is: "one of", column: id, values: chosen } : null);
      },
    })), answer.rows);
    box.lastChild.textContent = refused ?? (others.values ? `and ${count(others.values)} more values, of ${count(others.rows)} rows` : "");
    return box;
  });
  if (boxes.some((box, index) => $("lists").children[index] !== box) || boxes.length !== $("lists").children.length) $("lists").replaceChildren(...boxes);
}

function inWords(filter) {
  const named = (values) => values.slice(0, 3).map((value) => value ?? "none").join(", ") + (values.length > 3 ? ` and ${values.length - 3} more` : "");
  switch (filter.is) {
    case "range": return `${filter.low === null ? "" : `${short(filter.low)} ≤ `}${filter.column}${filter.high === null ? "" : ` ≤ ${short(filter.high)}`}`;
    case "one of": return `${filter.column}: ${named(filter.values)}`;
    case "lost for": return named(filter.causes.map(([stage, reason]) => (stage ? `${stage}: ${reason}` : `kept by ${filter.end}`)));
    case "says": return `${filter.column} says “${filter.words}”`;
    case "uid": return `uid ${filter.begins}…`;
    default: return filter.is;
  }
}

function showChips() {
  const chips = view.filters.map((filter) => make("li", {}, make("button", {
    title: "Take this filter away", onclick: () => change({ filters: view.filters.filter((each) => each !== filter) }),
  }, `${plain(inWords(filter))} ×`)));
  if (chips.length > 1) chips.push(make("li", {}, make("button", { onclick: () => change({ filters: [] }) }, "All away ×")));
  $("chips").replaceChildren(...chips);
}

function showMenus() {
  const { columns, ends, thresholds, text, pictures } = root();
  const of = (...kinds) => columns.filter((each) => kinds.includes(each.kind)).map((each) => [each.id, each.id]);
  options($("roots"), run.facts.roots.map((each) => [each.root, each.root]), view.root);
  $("roots-field").hidden = run.facts.roots.length < 2;
  options($("ends"), ends.map((end) => [end, end]), view.end, ends.length ? undefined : "no select stage is complete");
  options($("add-list"), of("category", "text"), "", "…");
  options($("add-chart"), of("number"), "", "…");
  options($("thresholds"), thresholds.map((each, index) => [String(index), `${each.stage}: ${each.text}`]), "", thresholds.length ? "another threshold…" : "no threshold");
  options($("sort"), of("number", "category"), view.sort?.column, "the pool's order");
  const places = of("text", "category").filter(([id]) => column(id).name !== "reason" && column(id).type !== "bool");
  options($("searched"), [...places, ["uid", "uid"]], text ?? "uid");
  $("descending").setAttribute("aria-pressed", String(Boolean(view.sort?.descending)));
  $("beside").setAttribute("aria-pressed", String(view.beside));
  $("beside").disabled = !view.end;
  $("variants-field").hidden = !run.facts.variants.length;
  options($("variants"), run.facts.variants.map((each) => [String(each.variant), `variant ${each.variant}: ${plain(each.changes.join("; "))}`]), view.variant, "another recipe…");
  $("show-map").hidden = !clusterColumns().length;
  $("columns").lastElementChild.replaceChildren(...columns.map((each) => make("label", {}, make("input", {
    type: "checkbox", checked: view.columns.includes(each.id),
    onchange: (event) => change({ columns: event.target.checked ? [...view.columns, each.id] : view.columns.filter((id) => id !== each.id) }, true),
  }), ` ${each.id}`)));
  $("texts").replaceChildren(...run.facts.texts.map((said) => make("p", {}, plain(said))));
  const waiting = run.facts.stages.filter((each) => !each.is_complete);
  $("unfinished").hidden = !waiting.length && pictures;
  $("unfinished").textContent = [
    waiting.length ? `Not finished: ${waiting.map((each) => `${each.name} (${each.there})`).join(", ")}. Look again for what has been stored since.` : "",
    pictures ? "" : "No stage of these rows stores pictures: captions and values alone are shown.",
  ].join(" ");
}

function wire() {
  const chosen = (id, act) => $(id).addEventListener("change", (event) => {
    const value = event.target.value;
    if (["add-list", "add-chart"].includes(id)) event.target.value = "";
    if (value) act(value);
  });
  chosen("roots", (name) => { view.root = name; forgetCharts(); change(starting()); showMenus(); });
  chosen("ends", (end) => change({ end, filters: view.filters.filter((each) => !aboutCauses(each)) }));
  chosen("add-list", (id) => change({ lists: [...view.lists.filter((each) => each !== id), id] }, true));
  chosen("add-chart", (id) => change({ charts: [...view.charts.filter((each) => each !== id), id] }, true));
  chosen("thresholds", (place) => { const one = root().thresholds[Number(place)]; change({ threshold: tried(one, one.value ?? 0), variant: null }); });
  $("variants").addEventListener("change", (event) => change({ variant: Number(event.target.value) || null, threshold: null, beside: false }));
  $("sort").addEventListener("change", (event) => change({ sort: event.target.value ? { column: event.target.value, descending: Boolean(view.sort?.descending) } : null }));
  $("descending").addEventListener("click", () => { if (view.sort) change({ sort: { ...view.sort, descending: !view.sort.descending } }); });
  $("beside").addEventListener("click", () => change({ beside: !view.beside }));
  $("show-map").addEventListener("click", () => {
    const isShown = $("show-map").getAttribute("aria-pressed") === "true";
    $("show-map").setAttribute("aria-pressed", String(!isShown));
    if (isShown) $("map").hidden = true;
    else showMap();
  });
  $("find").addEventListener("submit", (event) => {
    event.preventDefault();
    const words = $("words").value.trim(), id = $("searched").value;
    const isUid = id === "uid";
    const digits = words.toLowerCase().replaceAll("-", "");
    filterBy((each) => ["says", "uid"].includes(each.is), words ? (isUid ? { is: "uid", begins: digits } : { is: "says", column: id, words }) : null);
  });
  $("show-relations").addEventListener("click", () => {
    $("show-relations").setAttribute("aria-pressed", String(!isOpen()));
    showRelations();
  });
  $("look-again").addEventListener("click", async () => { await start(await ask("look-again")); });
  addEventListener("keydown", (event) => { if (event.key === "Escape") closeRow(); });
}

async function start(facts) {
  forgetCharts();
  forgetRows();
  forgetMaps();
  begin(facts);
  $("run").textContent = facts.run;
  document.title = `${facts.recipe} – clipmill explore`;
  showMenus();
  const { root: name, filters, sort, offset } = view;
  good = null;
  const first = await ask("query", { root: name, filters, sort, offset, limit: pageSize() }).catch(() => null);
  if (!first) change(starting());
  if (first && !view.beside && !view.threshold && !view.variant) { // rows first; counts of whole columns follow
    showCount(first);
    showGrid(first);
    fill();
  }
  update();
}

onChange(() => {
  $("descending").setAttribute("aria-pressed", String(Boolean(view.sort?.descending)));
  $("beside").setAttribute("aria-pressed", String(view.beside));
  update();
});
if (innerWidth <= 760) $("left").open = false;
wire();
await start(await ask("run"));
