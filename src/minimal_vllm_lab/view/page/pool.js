// Draw the block pool: one cell per block, and one square per token in large cells.

import { CACHED, FREE, SHARED } from "./state.js";
import { colorOf, fitCanvas, theme, widthOf, wordOf } from "./theme.js";

// Sizes of cells, in pixels:
const DETAIL = 30; // minimum to show tokens
const LABEL = 44; // minimum to show the block's number
const WIDE = 76; // minimum width to show the word "evicted"
const DOT = 5; // maximum for a cell that is a plain color, drawn into an image
const MAX_CELL = 130;
const MIN_CELL = 2;

export class PoolView {
  /** @param onHover, onSelect called with a block or null */
  constructor(canvas, { onHover, onSelect }) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.drawn = null; // two numbers per cell that stand for its last look
    this.shown = null; // state, marked blocks and dimming of the last drawing
    this.cursor = null; // the selected block
    this.light = null; // brightness of the slots in the last drawing
    canvas.addEventListener("pointermove", (event) => onHover(this.blockAt(event), event));
    canvas.addEventListener("pointerleave", () => onHover(null));
    canvas.addEventListener("click", (event) => onSelect(this.blockAt(event)));
    canvas.addEventListener("keydown", (event) => this.onKey(event, onSelect));
  }

  onKey(event, onSelect) {
    const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.columns, ArrowDown: this.columns };
    if (!(event.key in moves)) return;
    event.preventDefault();
    event.stopPropagation();
    const next = this.cursor === null ? 0 : this.cursor + moves[event.key];
    if (next >= 0 && next < this.count) this.cursor = next;
    onSelect(this.cursor);
  }

  blockAt(event) {
    const column = Math.floor(event.offsetX / this.width);
    const block = Math.floor(event.offsetY / this.height) * this.columns + column;
    return column < this.columns && block >= 0 && block < this.count ? block : null;
  }

  /** Draw all cells again next time, because the theme has changed. */
  invalidate() { this.drawn = null; }

  /** Choose the size of the cells again, because the panel has another height. */
  resize() { this.clientWidth = null; }

  /** Choose the largest cells with which all blocks fit into the panel; if even the smallest don't, it grows. */
  layOut(count) {
    const clientWidth = widthOf(this.canvas.parentElement);
    const same = clientWidth === this.clientWidth && count === this.count;
    if (!same) this.measure(clientWidth, count);
    const resized = fitCanvas(this.canvas, clientWidth, this.tall);
    if (!same || resized) this.drawn = null;
  }

  measure(clientWidth, count) {
    const clientHeight = parseFloat(getComputedStyle(this.canvas.parentElement).minHeight);
    let cell = MAX_CELL;
    while (cell > MIN_CELL && Math.floor(clientWidth / cell) * Math.floor(clientHeight / cell) < count) cell -= 1;
    const maxColumns = Math.max(1, Math.floor(clientWidth / cell));
    const rows = Math.ceil(count / maxColumns);
    const columns = cell < DETAIL ? maxColumns : Math.ceil(count / rows); // large cells fill their rows evenly
    const width = cell < DETAIL ? cell : clientWidth / columns;
    const height = cell < DETAIL ? cell : Math.min(clientHeight / rows, width * 0.9);
    Object.assign(this, { clientWidth, count, cell, columns, width, height, tall: Math.max(rows * height, 1) });
  }

  /**
   * Draw the cells that have changed. It clears the state's list of touched blocks, so a state can
   * be drawn by one pool view only.
   * @param emphasis the blocks that are not dimmed; null: no block is dimmed
   * @param light brightness of the slots of some blocks, each from 0 to 1; null: all are bright
   */
  draw(state, emphasis, light = null) {
    if (light !== this.light) this.invalidate();
    this.light = light;
    this.layOut(state.references.length);
    if (this.drawn === null) this.begin();
    const evicted = new Set(state.now.evicted.map((each) => each.block));
    const owners = this.cell >= DETAIL ? ownersOfShared(state) : new Map();
    for (const block of this.candidates(state, emphasis, evicted)) {
      const dim = emphasis !== null && !emphasis.has(block);
      const marks = (state.now.written.has(block) ? 1 : 0) | (evicted.has(block) ? 2 : 0)
        | (dim ? 4 : 0) | (block === this.cursor ? 8 : 0);
      const look = state.kindOf(block) | (marks << 2) | (state.fill[block] << 6);
      const owner = owners.has(block) ? hashOf(owners.get(block)) : state.owner[block];
      if (this.drawn[2 * block] === look && this.drawn[2 * block + 1] === owner) continue;
      this.drawn[2 * block] = look;
      this.drawn[2 * block + 1] = owner;
      if (this.image) this.dot(block, this.smallColor(state, block, marks, state.owner[block]), dim);
      else this.drawCell(state, block, marks, owners.get(block) ?? [state.owner[block]]);
    }
    if (this.image) this.context.putImageData(this.image, 0, 0);
  }

  /** Return the blocks that may look different from their last drawing. */
  candidates(state, emphasis, evicted) {
    const marked = [...state.now.written.keys(), ...evicted, ...(emphasis ?? [])];
    if (this.cursor !== null) marked.push(this.cursor);
    const last = this.shown;
    const touched = state.takeTouched();
    this.shown = { state, marked, dims: emphasis !== null };
    const isNext = last !== null && last.state === state && last.dims === this.shown.dims;
    if (!isNext || this.cell >= DETAIL) return Array(this.count).keys();
    return new Set([...touched, ...last.marked, ...marked]);
  }

  /** Clear the canvas, so that all cells are drawn again. */
  begin() {
    const { width, height } = this.canvas;
    this.context.clearRect(0, 0, width, height);
    this.drawn = new Int32Array(2 * this.count).fill(-1);
    this.shown = null;
    this.image = this.cell <= DOT ? this.context.createImageData(width, height) : null;
    this.words = this.image && new Uint32Array(this.image.data.buffer);
  }

  /** Draw a cell into the image; two of three pixels of a dimmed cell are pale. */
  dot(block, color, dim) {
    const scale = devicePixelRatio;
    const left = Math.round((block % this.columns) * this.cell * scale);
    const top = Math.round(Math.floor(block / this.columns) * this.cell * scale);
    const size = Math.max(Math.round(this.cell * scale) - (this.cell > 3 ? 1 : 0), 1);
    const [full, pale] = [wordOf(color), wordOf(dim ? theme.slot : color)];
    for (let y = top; y < top + size; y += 1) {
      for (let x = left; x < left + size; x += 1) {
        this.words[y * this.image.width + x] = (x + y) % 3 ? pale : full;
      }
    }
  }

  drawCell(state, block, marks, owners) {
    const { context } = this;
    const x = (block % this.columns) * this.width;
    const y = Math.floor(block / this.columns) * this.height;
    context.clearRect(x, y, this.width, this.height);
    context.globalAlpha = marks & 4 ? 0.22 : 1;
    if (this.cell < DETAIL) this.drawSmall(state, block, marks, owners[0], x, y);
    else this.drawLarge(state, block, marks, owners, x, y);
    context.globalAlpha = 1;
  }

  /** The color of a small cell: full if in use, pale if cached, bright if written in this step. */
  smallColor(state, block, marks, owner) {
    const kind = state.kindOf(block);
    if (marks & 2) return theme.alarm;
    if (marks & 1) return colorOf(owner, "bright");
    return kind === FREE ? theme.slot : colorOf(owner, kind === CACHED ? "pale" : "full");
  }

  /** Draw a block as one square, hollow where it is empty, with a smaller square in it if it is shared. */
  drawSmall(state, block, marks, owner, x, y) {
    const { context } = this;
    const size = this.cell - 1;
    context.fillStyle = this.smallColor(state, block, marks, owner);
    context.fillRect(x, y, size, size);
    const empty = 1 - state.fill[block] / state.facts.block_size;
    if (empty > 0 && state.references[block] > 0) {
      context.fillStyle = theme.slot;
      context.fillRect(x + 1, y + 1, size - 2, (size - 2) * empty);
    }
    if (state.kindOf(block) === SHARED) {
      context.fillStyle = theme.ink;
      context.fillRect(x + size / 3, y + size / 3, size / 3, size / 3);
    }
  }

  /** Draw a block as a box with its number and a square per token. */
  drawLarge(state, block, marks, owners, x, y) {
    const { context } = this;
    const kind = state.kindOf(block);
    const labelled = this.cell >= LABEL;
    const [width, height] = [this.width - 4, this.height - 4];
    context.beginPath();
    context.roundRect(x + 2, y + 2, width, height, 5);
    context.fillStyle = kind === FREE ? theme.panel : theme.slot;
    context.fill();
    context.lineWidth = marks & 10 ? 2.5 : marks & 1 ? 2 : 1;
    context.strokeStyle = marks & 8 ? theme.accent : marks & 2 ? theme.alarm : marks & 1 ? theme.ink
      : theme.line;
    context.setLineDash(kind === CACHED && !(marks & 11) ? [3, 3] : []);
    context.stroke();
    context.setLineDash([]);
    const top = labelled ? 16 : 4;
    this.drawTokens(state, block, kind, owners, x + 7, y + 2 + top, width - 9, height - top - 4);
    if (labelled) this.drawLabels(state, block, kind, marks, x, y, width);
  }

  drawTokens(state, block, kind, owners, x, y, width, height) {
    const { context } = this;
    const slots = state.facts.block_size;
    const columns = columnsFor(slots, width / height);
    const rows = Math.ceil(slots / columns);
    const [w, h] = [width / columns, height / rows];
    const [first, end] = state.now.written.get(block) ?? [0, 0];
    for (let slot = 0; slot < slots; slot += 1) {
      const isFilled = kind !== FREE && slot < state.fill[block];
      const isNew = slot >= first && slot < end;
      const owner = owners[slot % owners.length];
      const square = [x + (slot % columns) * w, y + Math.floor(slot / columns) * h, w - 1.5, h - 1.5];
      const brightness = this.light?.get(block)?.[slot] ?? (this.light ? 0 : 1);
      const { globalAlpha } = context;
      if (!isFilled || brightness < 1) context.fillStyle = theme.faint;
      if (!isFilled || brightness < 1) context.fillRect(...square);
      if (!isFilled) continue;
      context.fillStyle = colorOf(owner, kind === CACHED ? "pale" : isNew && !this.light ? "bright" : "full");
      context.globalAlpha = globalAlpha * brightness;
      context.fillRect(...square);
      context.globalAlpha = globalAlpha;
    }
  }

  drawLabels(state, block, kind, marks, x, y, width) {
    const { context } = this;
    context.font = "600 11px system-ui, sans-serif";
    context.textBaseline = "middle";
    context.fillStyle = kind === FREE ? theme.muted : theme.ink;
    context.textAlign = "left";
    context.fillText(String(block), x + 7, y + 11);
    const isWide = width >= WIDE;
    const note = marks & 2 ? (isWide ? "evicted" : "✕") : kind === SHARED ? `×${state.references[block]}` : "";
    context.fillStyle = marks & 2 ? theme.alarm : theme.ink;
    context.textAlign = "right";
    context.fillText(note, x + width - 2, y + 11);
  }
}

/** Return the number of columns with which all rows are full and the squares are nearly square. */
function columnsFor(slots, aspect) {
  let best = slots;
  for (let columns = 1; columns <= slots; columns += 1) {
    if (slots % columns) continue;
    const stretch = (each) => Math.abs(Math.log((aspect * slots) / (each * each)));
    if (stretch(columns) < stretch(best)) best = columns;
  }
  return best;
}

/** Return a map from each shared block to the arrival numbers of its requests. */
function ownersOfShared(state) {
  const owners = new Map();
  for (const request of state.requests.values()) {
    for (const block of request.table) {
      if (block < 0 || state.references[block] < 2) continue;
      if (!owners.has(block)) owners.set(block, []);
      owners.get(block).push(request.arrival);
    }
  }
  return owners;
}

/** Return a hash of arrival numbers. */
function hashOf(arrivals) {
  return arrivals.reduce((sum, arrival) => (sum * 31 + arrival) | 0, arrivals.length);
}
