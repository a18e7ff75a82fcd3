// Draw the batch: one column per step, one row per request.

import { firstFrom } from "./digest.js";
import { colorOf, fitCanvas, theme, widthOf, wordOf } from "./theme.js";

const LABELS = 56; // width of the row labels, in pixels
const BUDGET = 54; // height of the token budget's bars, in pixels
const AXIS = 18; // height of the step numbers, in pixels
const LABEL_GAP = 36; // minimum distance of a step number from that of the current step, in pixels
const MAX_ROWS = 400; // maximum height of all rows in pixels, unless that is less than one per row
const MIN_ROW = 4; // rows of fewer pixels are drawn as lines of an image

export class BatchView {
  /** @param onSeek called with a step; onSelect with an arrival number; getSelected returns the selected arrival number */
  constructor(canvas, { onSeek, onSelect, onHover, getSelected }) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.rows = [];
    this.dense = document.createElement("canvas");
    canvas.addEventListener("click", (event) => {
      const { step, row } = this.cellAt(event);
      if (row) onSelect(row.arrival);
      if (event.offsetX > LABELS && step !== null) onSeek(step);
    });
    canvas.addEventListener("pointermove", (event) => onHover(this.cellAt(event), event));
    canvas.addEventListener("pointerleave", () => onHover(null));
    canvas.addEventListener("keydown", (event) => this.onKey(event, getSelected(), onSelect));
  }

  /** Up and down select the next request that waits or runs at the current step. */
  onKey(event, selected, onSelect) {
    const move = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (!move) return;
    event.preventDefault();
    const present = this.rows.filter((row) => isActive(row, this.cursor))
      .sort((one, other) => one.lane - other.lane);
    const chosen = present.findIndex((row) => row.arrival === selected);
    const next = present[chosen < 0 ? 0 : chosen + move];
    if (next) onSelect(next.arrival);
  }

  cellAt({ offsetX, offsetY }) {
    const step = this.first + Math.floor((offsetX - LABELS) / this.columnWidth);
    const lane = Math.floor((offsetY - BUDGET) / this.rowHeight);
    const row = offsetX < LABELS
      ? this.rows.findLast((each) => each.lane === lane && each.from <= this.cursor)
      : this.rows.find((each) => each.lane === lane && isActive(each, step));
    return { step: step >= this.first && step <= this.last ? step : null, row };
  }

  draw(digest, facts, step, selected) {
    this.layOut(digest, step);
    const { context } = this;
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    this.drawBudget(digest, facts, step);
    if (this.rowHeight < MIN_ROW) this.drawDense(step, selected);
    else for (const row of this.rows) this.drawRow(row, step, selected);
    this.drawLabels(step, selected);
    this.drawCursor(step);
  }

  /** Choose the visible steps and rows: the newest step is at the right, unless the user went back. */
  layOut(digest, step) {
    const width = widthOf(this.canvas.parentElement);
    const lanes = Math.max(digest.lanes.length, 4);
    this.columnWidth = lanes <= 24 ? 20 : lanes <= 100 ? 12 : 6;
    this.rowHeight = Math.min(22, MAX_ROWS / lanes);
    if (this.rowHeight < MIN_ROW) this.rowHeight = Math.max(Math.floor(this.rowHeight), 1);
    const visible = Math.max(Math.floor((width - LABELS) / this.columnWidth), 1);
    const newest = digest.columns.at(-1)?.step ?? step;
    this.last = Math.max(Math.min(newest, step + Math.floor(visible / 3)), visible - 1);
    this.first = this.last - visible + 1;
    this.cursor = step;
    this.numLanes = lanes;
    this.rows = digest.rows.filter((row) => row.until >= this.first && row.from <= this.last);
    fitCanvas(this.canvas, width, BUDGET + lanes * this.rowHeight + AXIS);
  }

  x(step) { return LABELS + (step - this.first) * this.columnWidth; }

  y(lane) { return BUDGET + lane * this.rowHeight; }

  drawBudget(digest, facts, step) {
    const { context, columnWidth } = this;
    const budget = facts.max_num_batched_tokens;
    const scale = (BUDGET - 16) / budget;
    const base = BUDGET - 6;
    context.fillStyle = theme.faint;
    context.fillRect(LABELS, base - budget * scale, this.x(this.last + 1) - LABELS, budget * scale);
    for (let each = Math.max(this.first, digest.firstStep); each <= this.last; each += 1) {
      const column = digest.column(each);
      if (!column) break;
      let top = base;
      context.globalAlpha = each > step ? 0.25 : 1;
      for (const [kind, color] of [["decode", theme.ink], ["prompt", theme.accent], ["again", theme.alarm],
                                   ["wrong", theme.muted]]) {
        const height = column[kind] * scale;
        context.fillStyle = color;
        context.fillRect(this.x(each) + 1, top - height, columnWidth - 2, height);
        top -= height;
      }
    }
    context.globalAlpha = 1;
    context.fillStyle = theme.muted;
    context.font = "11px system-ui, sans-serif";
    context.textAlign = "right";
    context.textBaseline = "middle";
    context.fillText(budget.toLocaleString("en"), LABELS - 6, base - budget * scale + 3);
    context.fillText("tokens", LABELS - 6, base - 6);
  }

  drawRow(row, step, selected) {
    const { context, columnWidth, rowHeight } = this;
    const top = this.y(row.lane);
    const fades = selected !== null && selected !== row.arrival;
    const alpha = (each) => (each > step ? 0.25 : 1) * (fades ? 0.3 : 1);
    this.drawWaiting(row, step, top + rowHeight / 2, alpha(step));
    for (let i = firstFrom(row.cells, this.first); i < row.cells.length; i += 1) {
      const cell = row.cells[i];
      if (cell.step > this.last) break;
      let last = cell.step; // in narrow columns, a run of decodes is drawn as one cell
      while (columnWidth < 12 && isSame(cell, row.cells[i + 1], last, step)) {
        i += 1;
        last += 1;
      }
      context.globalAlpha = alpha(cell.step);
      this.drawCell(row, cell, this.x(cell.step), top, (last - cell.step + 1) * columnWidth, rowHeight);
    }
    if (row.until <= this.last && row.until >= this.first && row.until <= step) {
      context.globalAlpha = alpha(row.until);
      const isBad = row.reason === "abort" || row.reason === "error";
      context.fillStyle = isBad ? theme.alarm : colorOf(row.arrival, "bright");
      context.fillRect(this.x(row.until + 1) - 3, top + 1, 3, Math.max(rowHeight - 2, 1));
    }
    context.globalAlpha = 1;
  }

  /** Draw many rows as an image with one pixel per step, which is then stretched. Prompts are bright. */
  drawDense(step, selected) {
    const image = new ImageData(this.last - this.first + 1, this.numLanes);
    const words = new Uint32Array(image.data.buffer);
    const [waiting, alarm] = [wordOf(theme.line), wordOf(theme.alarm)];
    for (const row of this.rows) {
      const start = row.lane * image.width - this.first;
      const fades = selected !== null && selected !== row.arrival;
      const [bright, full, pale] = ["bright", "full", "pale"].map((each) => wordOf(colorOf(row.arrival, each)));
      const until = Math.min(row.until, this.last, step);
      words.fill(waiting, start + Math.max(row.from, this.first), start + until + 1);
      for (let i = firstFrom(row.cells, this.first); i < row.cells.length; i += 1) {
        const cell = row.cells[i];
        if (cell.step > this.last) break;
        words[start + cell.step] = cell.kind === "preempted" ? alarm : fades || cell.step > step ? pale
          : cell.kind === "decode" ? full : bright;
      }
    }
    this.dense.width = image.width;
    this.dense.height = image.height;
    this.dense.getContext("2d").putImageData(image, 0, 0);
    this.context.imageSmoothingEnabled = false;
    this.context.drawImage(this.dense, LABELS, BUDGET, image.width * this.columnWidth, image.height * this.rowHeight);
  }

  /** Draw a dotted line from the arrival of a request to its end; cells are drawn over it. */
  drawWaiting(row, step, middle, alpha) {
    const { context } = this;
    const from = Math.max(this.x(row.from), LABELS);
    const to = Math.min(this.x(Math.min(row.until, this.last, step) + 1), this.canvas.width);
    if (to <= from) return;
    context.fillStyle = theme.muted;
    context.globalAlpha = alpha;
    if (this.rowHeight < 6) context.fillRect(from, middle, to - from, Math.min(1, this.rowHeight / 3));
    else for (let x = from; x < to; x += 5) context.fillRect(x, middle, 2, 1);
  }

  drawCell(row, cell, x, top, width, height) {
    const { context } = this;
    const pad = height > 6 ? 2 : 0;
    if (cell.kind === "preempted") {
      context.fillStyle = theme.alarm;
      context.font = `bold ${Math.min(height, 15)}px system-ui, sans-serif`;
      context.textAlign = "center";
      context.textBaseline = "middle";
      if (height > 6) context.fillText("✕", x + width / 2, top + height / 2);
      else context.fillRect(x, top, width, height);
      return;
    }
    context.clearRect(x, top, width, height);
    context.fillStyle = colorOf(row.arrival);
    if (cell.kind === "decode") {
      const size = Math.max(height * 0.36, 1);
      if (cell.guesses) this.drawGuesses(row, cell, x + 1, top + height * 0.18, width - 2, height * 0.64);
      else context.fillRect(x + 1, top + (height - size) / 2, width - 2, size);
      return;
    }
    context.fillRect(x + 1, top + pad, width - 2, height - 2 * pad);
    if (cell.kind === "again") this.hatch(x + 1, top + pad, width - 2, height - 2 * pad);
    if (cell.cached > 0) { // a pale edge stands for the cached prefix
      context.fillStyle = colorOf(row.arrival, "pale");
      context.fillRect(x + 1, top + pad, width * 0.3, height - 2 * pad);
    }
    if (width >= 18 && height >= 14) {
      const text = String(cell.count - cell.guesses);
      const [middle, center] = [x + width / 2 + (cell.cached ? 2 : 0), top + height / 2 + 0.5];
      context.font = "600 10px system-ui, sans-serif";
      if (cell.kind === "again") { // stripes behind the number would make it unreadable
        const half = context.measureText(text).width / 2 + 1;
        context.fillStyle = colorOf(row.arrival);
        context.fillRect(middle - half, center - 6, 2 * half, 11);
      }
      context.fillStyle = theme.panel;
      context.textAlign = "center";
      context.textBaseline = "middle";
      context.fillText(text, middle, center);
    }
  }

  /** Draw a bar for each computed token: the newest known one, then right guesses, and pale ones that were wrong. */
  drawGuesses(row, cell, x, y, width, height) {
    const { context } = this;
    const each = width / cell.count;
    const gap = each >= 3 ? 1 : 0;
    for (let i = 0; i < cell.count; i += 1) {
      const isGuess = i >= cell.count - cell.guesses;
      const isWrong = i >= cell.count - cell.guesses + cell.right;
      context.fillStyle = colorOf(row.arrival, isWrong ? "pale" : isGuess ? "bright" : "full");
      context.fillRect(x + i * each, y, each - gap, height);
    }
  }

  hatch(x, y, width, height) {
    const { context } = this;
    context.save();
    context.beginPath();
    context.rect(x, y, width, height);
    context.clip();
    context.strokeStyle = theme.panel;
    context.lineWidth = 1.5;
    for (let offset = -height; offset < width; offset += 5) {
      context.beginPath();
      context.moveTo(x + offset, y + height);
      context.lineTo(x + offset + height, y);
      context.stroke();
    }
    context.restore();
  }

  drawLabels(step, selected) {
    const { context, rowHeight } = this;
    context.clearRect(0, BUDGET, LABELS - 2, this.canvas.height);
    if (rowHeight < 10) return;
    context.font = "600 12px system-ui, sans-serif";
    context.textAlign = "right";
    context.textBaseline = "middle";
    for (const row of this.rows) {
      if (!isActive(row, step)) continue;
      context.fillStyle = selected === null || selected === row.arrival ? colorOf(row.arrival, "bright") : theme.muted;
      context.fillText(`#${row.arrival}`, LABELS - 6, this.y(row.lane) + rowHeight / 2);
    }
    for (const row of this.rows) if (!isActive(row, step)) this.drawInnerLabel(row, selected);
  }

  /** Name a request that had the row before or after the one in front of it, where its bars begin. */
  drawInnerLabel(row, selected) {
    const { context, columnWidth, rowHeight } = this;
    const name = `#${row.arrival}`;
    const left = this.x(Math.max(row.from, this.first));
    const right = Math.min(this.x(Math.min(row.until, this.last) + 1), this.canvas.width / devicePixelRatio);
    const width = context.measureText(name).width + 6;
    if (right - left < width + columnWidth) return;
    context.fillStyle = theme.panel;
    context.fillRect(left, this.y(row.lane) + 2, width, rowHeight - 4);
    context.fillStyle = selected === null || selected === row.arrival ? colorOf(row.arrival, "bright") : theme.muted;
    context.fillText(name, left + width - 3, this.y(row.lane) + rowHeight / 2);
  }

  drawCursor(step) {
    const { context, columnWidth } = this;
    const height = this.canvas.height / devicePixelRatio;
    context.fillStyle = theme.muted;
    context.font = "11px system-ui, sans-serif";
    context.textAlign = "center";
    context.textBaseline = "middle";
    const every = columnWidth >= 20 ? 5 : columnWidth >= 12 ? 10 : 20;
    for (let each = Math.ceil(Math.max(this.first, 0) / every) * every; each <= this.last; each += every) {
      const isNear = Math.abs(each - step) * columnWidth < LABEL_GAP; // the current step's number is there
      if (!isNear) context.fillText(String(each), this.x(each) + columnWidth / 2, height - AXIS / 2);
    }
    if (step < this.first || step < 0) return;
    context.strokeStyle = theme.accent;
    context.lineWidth = 1.5;
    context.strokeRect(this.x(step) + 0.5, 1, columnWidth - 1, height - AXIS);
    context.fillStyle = theme.accent;
    context.font = "bold 12px system-ui, sans-serif";
    context.fillText(String(step), Math.min(this.x(step) + columnWidth / 2, this.canvas.width / devicePixelRatio - 12), height - AXIS / 2);
  }
}

/** Return whether the row's request waits or runs in this step. */
function isActive(row, step) { return row.from <= step && row.until >= step; }

/** Return whether the next cell continues a run of decodes, on the same side of the current step. */
function isSame(cell, next, last, step) {
  return cell.kind === "decode" && next?.kind === "decode" && next.step === last + 1 && !cell.guesses && !next.guesses
    && (next.step > step) === (cell.step > step);
}
