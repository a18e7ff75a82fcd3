// Elements of the page that are made while it runs.

import { colourOf } from "./theme.js";

/** An element with text or children in it. */
export function make(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

/** A request's name in its colour, which selects it. */
export function chip(arrival, note = "") {
  const button = make("button", "chip", `#${arrival}${note}`);
  button.dataset.arrival = arrival;
  button.style.setProperty("--colour", colourOf(arrival));
  button.style.setProperty("--pale", colourOf(arrival, "pale"));
  return button;
}

/** Give an element these children; those that are where they should be, less the others, are left alone. */
export function setChildren(element, children) {
  const wanted = new Set(children);
  for (const child of [...element.childNodes]) if (!wanted.has(child)) child.remove();
  children.forEach((child, i) => {
    const there = element.childNodes[i];
    if (there !== child) element.insertBefore(child, there ?? null);
  });
}

/**
 * Elements by what they say. Who says the same as in the last drawing stays the same element: a new
 * one would lose the focus, and a click whose button is still down.
 */
export class Kept {
  constructor() {
    this.last = new Map();
    this.now = new Map();
  }

  /** The element that says `key`, made if the last drawing had none. */
  get(key, build) {
    const element = this.last.get(key) ?? build();
    this.now.set(key, element);
    return element;
  }

  /** The drawing is done: what it did not ask for is forgotten. */
  turn() { [this.last, this.now] = [this.now, new Map()]; }
}
