// Create and reuse elements of the page.

import { colorOf } from "./theme.js";

/** Create an element with children, each an element or a text. */
export function make(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

/** Return two numbers as a text: "1,200 of 24,266". */
export const outOf = (count, most) => `${count.toLocaleString("en")} of ${most.toLocaleString("en")}`;

/** Create a button that shows a request's number in its color and selects the request. */
export function chip(arrival, note = "") {
  const button = make("button", "chip", `#${arrival}${note}`);
  button.dataset.arrival = arrival;
  button.style.setProperty("--color", colorOf(arrival));
  button.style.setProperty("--pale", colorOf(arrival, "pale"));
  return button;
}

/** Set the children of an element; children that are already in position are not touched. */
export function setChildren(element, children) {
  const wanted = new Set(children);
  for (const child of [...element.childNodes]) if (!wanted.has(child)) child.remove();
  children.forEach((child, i) => {
    const there = element.childNodes[i];
    if (there !== child) element.insertBefore(child, there ?? null);
  });
}

/**
 * A cache of elements by their content. An element whose content has not changed since the last
 * drawing is reused: a new element would lose the focus, or a click during which the mouse is down.
 */
export class ElementCache {
  constructor() {
    this.last = new Map();
    this.now = new Map();
  }

  /** Return the element for `key` from the last drawing, or build it. */
  get(key, build) {
    const element = this.last.get(key) ?? build();
    this.now.set(key, element);
    return element;
  }

  /** End a drawing: drop all elements that it did not use. */
  endDrawing() { [this.last, this.now] = [this.now, new Map()]; }
}
