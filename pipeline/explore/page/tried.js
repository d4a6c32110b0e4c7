// Tries another value of a threshold: the rows it would keep, and a recipe with it.

import { ask } from "./ask.js";
import { $, count, make, plain } from "./make.js";
import { change, root, run, view } from "./view.js";

let shown = ""; // the threshold whose tools are on the page

export function showTried(answer) {
  const box = $("tried"), at = view.threshold;
  box.hidden = !at && !answer.against;
  $("variants").value = view.variant ?? "";
  if (answer.against) showAgainst(box, answer);
  $("thresholds").value = at ? placeOf(at) : "";
  if (!at) {
    shown = "";
    return;
  }
  if (shown !== at.stage + at.text) build(box, at);
  shown = at.stage + at.text;
  const { rule, kept, today, won, lost } = answer.moved;
  box.querySelector("output").textContent =
    `'${at.stage}' with ${rule} keeps ${count(kept)} of ${count(answer.rows)} rows; today ${count(today)}: ${count(won)} won, ${count(lost)} lost.`;
  const number = box.querySelector("input");
  if (document.activeElement !== number) number.value = at.value;
  box.querySelector("pre").hidden = true;
}

function showAgainst(box, { rows, against: { end, now, then, gained, lost } }) {
  const { changes, ran } = run.facts.variants.find((each) => each.variant === view.variant);
  box.replaceChildren(
    make("output", {}, `'${view.end}' keeps ${count(now)} of ${count(rows)} rows; '${end}' of variant ${view.variant} kept ${count(then)}: ${count(gained)} gained, ${count(lost)} lost.`),
    make("p", { className: "soft" }, plain(`Variant ${view.variant}, of ${ran}: ${changes.join("; ") || "the same settings"}`)),
    make("span", { className: "tools" }, make("button", { onclick: () => change({ variant: null }) }, "Back to this one")),
  );
}

const placeOf = (at) => String(root().thresholds.findIndex((each) => each.stage === at.stage && each.text === at.text));

function build(box, at) {
  const file = make("pre", { tabIndex: 0, hidden: true });
  const number = make("input", {
    type: "number", step: "any", value: at.value, "aria-label": "The threshold's value",
    oninput: () => Number.isFinite(number.valueAsNumber) && change({ threshold: { ...view.threshold, value: number.valueAsNumber } }),
  });
  const recipe = (question, told) => async () => {
    file.textContent = told(await ask(question, { root: view.root, threshold: view.threshold }));
    file.hidden = false;
  };
  box.replaceChildren(
    make("output"),
    make("span", { className: "tools" },
      make("label", {}, at.name, " ", number),
      make("button", { id: "show-recipe", onclick: recipe("recipe", (it) => `${it.command}\n\n${it.text}`) }, "Show the recipe"),
      make("button", { id: "save-recipe", onclick: recipe("save", (it) => `saved: ${it.file}\n${it.command}`) }, "Save the recipe beside the run"),
      make("button", { onclick: () => change({ threshold: null, beside: false }) }, "Back to today"),
    ),
    file,
  );
}
