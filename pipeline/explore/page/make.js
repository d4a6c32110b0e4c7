// Builds elements; text is always inserted as text, never as HTML.

export const $ = (id) => document.getElementById(id);

export function make(tag, given = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && name !== "list") element[name] = value;
    else if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

export function draw(tag, given = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(given)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

export function options(select, values, chosen, first) {
  const made = values.map(([value, text]) => make("option", { value }, text));
  if (first !== undefined) made.unshift(make("option", { value: "" }, first));
  select.replaceChildren(...made);
  select.value = chosen ?? "";
}

export const count = (number) => number.toLocaleString("en-US");

// Never none or all by rounding alone.
export function percent(share) {
  const text = `${(100 * share).toFixed(1)}%`;
  if (text === "0.0%" && share > 0) return "<0.1%";
  return text === "100.0%" && share < 1 ? ">99.9%" : text;
}

export function short(number) {
  if (Number.isInteger(number)) return Math.abs(number) < 1e6 ? String(number) : count(number);
  return String(Number(number.toPrecision(4)));
}

// Replaces control characters, such as those that change the text's direction, by a dot.
export const plain = (text) =>
  String(text).replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]/g, "·");
