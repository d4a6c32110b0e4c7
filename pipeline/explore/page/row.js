// One row: its picture, its caption, and why it was kept or dropped.

import { ask } from "./ask.js";
import { picture } from "./grid.js";
import { $, make, plain } from "./make.js";
import { filterBy } from "./view.js";

let before = null; // the element that had the focus

export async function showRow(row) {
  if (!row.uid) return;
  const box = $("row");
  if (!box.contains(document.activeElement)) before = document.activeElement;
  const told = make("div", {}, make("p", { className: "soft" }, "looking…"));
  const close = make("button", { className: "quiet", "aria-label": "Close", onclick: closeRow }, "×");
  box.replaceChildren(
    close,
    row.picture ? make("div", { className: "large" }, picture(row.row, "large")) : make("p", { className: "soft" }, row.no_picture),
    make("p", {}, make("bdi", {}, row.text === null ? "no caption" : plain(row.text))),
    link(row.url),
    told,
  );
  box.hidden = false;
  document.body.classList.add("looking");
  box.focus();
  const why = await ask("why", { uid: row.uid });
  told.replaceChildren(
    make("p", { className: "mono" }, why.uid),
    make("p", { className: "soft" }, `shard ${why.shard}, position ${why.position}${why.copies > 1 ? `; this uid stands in ${why.copies} rows, and the first is told of` : ""}`),
    ...why.ends.map((end) => make("p", { className: end.kept ? "stays" : "goes" }, plain(end.sentence))),
    ...why.exported.map((file) => make("p", { className: "soft" }, `exported by '${file.stage}' to ${file.file}`)),
    ...(why.captions ?? []).flatMap((list) => list.texts.map((each) => text(each, list.chosen_by))),
    ...why.stages.map(stage),
  );
}

export function closeRow() {
  $("row").hidden = true;
  document.body.classList.remove("looking");
  before?.focus();
}

function text(of, chosenBy) {
  const verdict = of.reason ? `left out by '${chosenBy}': ${plain(of.reason)}` : chosenBy ? `stays in '${chosenBy}'` : "";
  return make("p", { className: of.reason ? "goes" : "" }, make("bdi", {}, plain(of.text ?? "no text")),
    make("small", {}, ` ${plain(of.source ?? "unknown")} ${verdict}`));
}

function stage(of) {
  const values = Object.entries(of.values).filter(([, value]) => value !== null);
  const keeper = of.keeper
    ? make("button", { onclick: () => filterBy((each) => each.is === "uid", { is: "uid", begins: of.keeper.uid }) }, `show ${of.keeper.uid.slice(0, 8)}, which it names`)
    : null;
  return make("section", {},
    make("h3", {}, of.stage, " ", make("small", {}, of.uses)),
    of.reason ? make("p", { className: "goes" }, plain(of.reason)) : null,
    make("dl", {}, ...values.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, plain(typeof value === "object" ? JSON.stringify(value) : value))])),
    keeper,
  );
}

function link(url) {
  if (!url) return null;
  const isWeb = /^https?:\/\//i.test(url);
  const said = make("bdi", {}, plain(url));
  return make("p", { className: "soft" }, isWeb ? make("a", { href: url, rel: "noreferrer noopener", target: "_blank" }, said) : said);
}
