// Helpers for elements of the document: finding, creating and formatting.

export const byId = (id) => document.getElementById(id);

/** Return a new element with properties and children; children may be text. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  Object.assign(element, properties);
  element.append(...children);
  return element;
}

/** Replace the content of a definition list by pairs of term and description; pairs without one are left out. */
export function describe(list, pairs) {
  const shown = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
  list.replaceChildren(...shown.map(([term, value]) => make("div", {}, make("dt", {}, term), make("dd", {}, value))));
}

const numbers = new Intl.NumberFormat("en");

export const count = (value) => numbers.format(value);

/** A share as a percentage; values that only round to 0 % or 100 % are marked. */
export function percent(share, digits = 1) {
  const shown = (share * 100).toFixed(digits);
  const step = 10 ** -digits;
  if (share > 0 && Number(shown) === 0) return `<\u00a0${step.toFixed(digits)}\u00a0%`;
  if (share < 1 && Number(shown) === 100) return `>\u00a0${(100 - step).toFixed(digits)}\u00a0%`;
  return `${shown}\u00a0%`;
}

/** Milliseconds with three significant digits. */
export const milliseconds = (value) => `${significant(value)}\u00a0ms`;

export function significant(value) {
  if (value === 0) return "0";
  if (value < 1) return value.toFixed(2);
  return value < 100 ? String(Number(value.toPrecision(3))) : count(Math.round(value));
}

export function bytes(value) {
  if (value < 1000) return `${value} B`;
  for (const [unit, size] of [["kB", 1e3], ["MB", 1e6]]) {
    if (value < size * 1000) return `${Number((value / size).toPrecision(3))} ${unit}`;
  }
  return `${Number((value / 1e9).toPrecision(3))} GB`;
}
