// The page's state: filters, charts, order. The address holds it, for bookmarks.

export const view = {
  root: "", end: null, filters: [], charts: [], lists: [], columns: [],
  sort: null, beside: false, threshold: null, variant: null, offset: 0,
};
export const run = { facts: null };
const watchers = [];
let writing = 0;

export const root = () => run.facts.roots.find((each) => each.root === view.root);
export const column = (id) => root().columns.find((each) => each.id === id);
export const onChange = (watcher) => watchers.push(watcher);

export function change(changes, keepPage = false) {
  Object.assign(view, changes);
  if (!keepPage) view.offset = 0;
  clearTimeout(writing); // browsers limit how often an address changes
  writing = setTimeout(() => history.replaceState(null, "", `#${encodeURIComponent(JSON.stringify(view))}`), 300);
  for (const watcher of watchers) watcher();
}

export function begin(facts) {
  run.facts = facts;
  let kept = {};
  try {
    kept = JSON.parse(decodeURIComponent(location.hash.slice(1)) || "{}");
  } catch { /* a truncated address */ }
  const names = facts.roots.map((each) => each.root);
  const chosen = facts.roots.toReversed().find((each) => each.ends.length) ?? facts.roots[0];
  view.root = names.includes(kept.root) ? kept.root : chosen.root;
  if (kept.root !== view.root) kept = {};
  const known = new Set(root().columns.map((each) => each.id));
  Object.assign(view, { ...starting(), ...kept, root: view.root });
  for (const name of ["charts", "lists", "columns"]) {
    view[name] = view[name].filter((id) => known.has(id));
  }
  view.filters = view.filters.filter((each) => !each.column || known.has(each.column));
  if (!facts.variants.some((each) => each.variant === view.variant)) view.variant = null;
  if (!root().ends.includes(view.end)) view.end = root().ends[0] ?? null;
}

export function starting() {
  const cut = root().thresholds.filter((each) => !each.is_size).map((each) => each.column);
  const numbers = root().columns.filter((each) => each.kind === "number").map((each) => each.id);
  const scores = root().columns.filter((each) => each.better).map((each) => each.id);
  const usual = numbers.filter((id) => /\.(caption_words|min_side)$/.test(id));
  const both = [...scores, ...usual].filter((id) => cut.includes(id));
  const charts = [...new Set([...both, ...cut, ...scores, ...usual, ...numbers])].filter((id) => numbers.includes(id));
  const spoken = root().columns.find((each) => each.name === "language");
  return {
    end: root().ends[0] ?? null, filters: [], charts: charts.slice(0, 3),
    lists: spoken ? [spoken.id] : [], columns: [], sort: null, beside: false,
    threshold: null, variant: null, offset: 0,
  };
}

// Replaces the filters on the same subject; null removes them.
export function filterBy(about, filter) {
  const others = view.filters.filter((each) => !about(each));
  change({ filters: filter ? [...others, filter] : others });
}

export const aboutColumn = (id, is) => (filter) => filter.column === id && filter.is === is;
export const aboutCauses = (filter) => filter.is === "lost for";
