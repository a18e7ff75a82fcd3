// Colors for canvases: those of the style sheet, and one per request.

const root = document.documentElement;
const names = ["ink", "muted", "faint", "panel", "line", "accent", "alarm", "slot", "cached"];
let colors = {};
let palette = {};

let ofPage = new URLSearchParams(location.search).get("theme"); // of the page that this one is embedded in

export function loadTheme(name = null) {
  ofPage = name ?? ofPage;
  const chosen = ofPage ?? localStorage.getItem("minimal-vllm-theme");
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  root.dataset.theme = chosen ?? system;
  const style = getComputedStyle(root);
  colors = Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
  palette = makePalette(STRENGTHS[root.dataset.theme]);
}

export function toggleTheme() {
  localStorage.setItem("minimal-vllm-theme", root.dataset.theme === "dark" ? "light" : "dark");
  loadTheme();
}

export function watchSystemTheme(onChange) {
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    loadTheme();
    onChange();
  });
}

export const theme = new Proxy({}, { get: (_, name) => colors[name] });

// [hue, added lightness, factor of chroma]. Successive colors are far apart, and none is the alarm's red.
const PALETTE = [
  [255, 0, 1], [70, 0.06, 1], [155, 0, 1], [310, 0, 1], [205, 0.04, 0.8], [95, 0.02, 0.85],
  [280, -0.08, 1.1], [135, 0.08, 1], [345, 0, 1], [230, 0.1, 0.7], [60, -0.12, 0.7], [180, -0.1, 0.75],
];
const STRENGTHS = { // [lightness, chroma]
  light: { full: [0.63, 0.16], pale: [0.88, 0.05], bright: [0.43, 0.15] },
  dark: { full: [0.72, 0.14], pale: [0.45, 0.06], bright: [0.9, 0.1] },
};

/** Return a request's color by its arrival number. @param strength "full", "pale" or "bright" */
export function colorOf(arrival, strength = "full") {
  return arrival === 0 ? colors.muted : palette[strength][(arrival - 1) % PALETTE.length];
}

function makePalette(strengths) {
  const make = (name, [lightness, chroma]) => PALETTE.map(([hue, lighter, stronger]) =>
    `oklch(${lightness + (name === "pale" ? 0 : lighter)} ${chroma * stronger} ${hue})`);
  return Object.fromEntries(Object.entries(strengths).map(([name, each]) => [name, make(name, each)]));
}

const pixel = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const words = new Map();

/** Return a color as a 32-bit word of image data. */
export function wordOf(color) {
  if (!words.has(color)) {
    pixel.fillStyle = color;
    pixel.fillRect(0, 0, 1, 1);
    words.set(color, new Uint32Array(pixel.getImageData(0, 0, 1, 1).data.buffer)[0]);
  }
  return words.get(color);
}

const widths = new WeakMap();
const observer = new ResizeObserver((entries) => {
  for (const { target } of entries) widths.set(target, target.clientWidth);
});

/**
 * Return an element's inner width, at least 1: a hidden element has none, and a canvas needs some.
 * It is cached and updated by an observer, because reading it causes a layout.
 */
export function widthOf(element) {
  if (!widths.has(element)) {
    widths.set(element, element.clientWidth);
    observer.observe(element);
  }
  return Math.max(widths.get(element), 1);
}

/** Fit a canvas's pixels to its size on the page. Return whether the size has changed. */
export function fitCanvas(canvas, width, height) {
  const scale = devicePixelRatio;
  const [w, h] = [Math.round(width * scale), Math.round(height * scale)];
  const changed = canvas.width !== w || canvas.height !== h;
  if (changed) {
    canvas.width = w;
    canvas.height = h;
    canvas.style.height = `${height}px`;
  }
  canvas.getContext("2d").setTransform(scale, 0, 0, scale, 0, 0);
  return changed;
}
