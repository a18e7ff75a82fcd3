// Show one request or one block in detail: its text, its blocks, and their hashes.

import { chip, ElementCache, make, setChildren } from "./elements.js";
import { CACHED, FREE } from "./state.js";
import { colorOf } from "./theme.js";
import { whyWaiting } from "./waiting.js";

const MAX_ROWS = 64;
const KINDS = ["free", "cached", "referenced", "shared"];

export class Inspector {
  /** @param mine arrival numbers of the requests sent from this page */
  constructor(element, texts, mine) {
    this.element = element;
    this.texts = texts;
    this.mine = mine;
    this.cache = new ElementCache();
  }

  /** @param selection {arrival, block}, either of which may be null */
  draw(state, { arrival, block }) {
    const request = arrival === null ? null : state.byArrival(arrival);
    const elements = [];
    if (block !== null) elements.push(this.blockCard(state, block));
    if (request) elements.push(...this.requestElements(state, request, block));
    else if (arrival !== null) elements.push(make("p", "hint", `#${arrival} does not exist at this step.`));
    else if (block === null) elements.push(make("p", "hint", "Select a block of the pool or a row of the batch, or send your own prompt and follow it."));
    setChildren(this.element, elements);
    this.cache.endDrawing();
  }

  // ---- a request ------------------------------------------------------------------------------

  requestElements(state, request, block) {
    const rows = this.blockRows(state, request, block);
    const reasons = request.status === "waiting" ? [this.reasons(state, request)] : [];
    return [this.title(request), this.summary(request), ...reasons, this.counter(request), this.headings(request), ...rows];
  }

  title({ arrival, id }) {
    const name = this.mine.has(arrival) ? "your prompt" : id;
    return this.cache.get(["title", arrival, name, colorOf(arrival)].join(" "),
                         () => make("h3", "", chip(arrival), ` ${name}`));
  }

  summary(request) {
    const words = [
      request.status === "finished" ? `finished (${request.reason})` : request.status,
      `prompt of ${request.numPrompt} tokens`,
      `${request.numTokens - request.numPrompt}${this.limit(request)} generated`,
    ];
    if (request.cached) words.push(`${request.cached} found in the cache`);
    if (request.numGuesses) words.push(`${request.numRight} of ${request.numGuesses} guesses right`);
    if (request.preemptions) words.push(`preempted ${request.preemptions}×`);
    return make("p", "summary", words.join(" · "));
  }

  /** Say why the request waits, and what will happen next. */
  reasons(state, request) {
    const card = make("div", "block-card reasons", make("h3", "", "Why it waits"));
    for (const sentence of whyWaiting(state, request)) card.append(make("p", "summary", sentence));
    return card;
  }

  limit(request) {
    return request.params.max_tokens ? ` of at most ${request.params.max_tokens}` : "";
  }

  /** A bar for the number of computed tokens, which catches up with the number of tokens. */
  counter(request) {
    const bar = make("div", "counter");
    const share = (count) => `${(100 * count) / request.numTokens}%`;
    const done = make("div", "done");
    done.style.width = share(request.computed);
    done.style.background = colorOf(request.arrival);
    const mark = make("div", "mark");
    mark.style.left = share(request.numPrompt);
    mark.title = "end of the prompt";
    bar.append(done, mark);
    return make("div", "", bar, make("p", "summary",
      `${request.computed} of ${request.numTokens} tokens computed`));
  }

  headings(request) {
    const count = this.tableOf(request).filter((block) => block >= 0).length;
    const note = request.status === "finished" ? "released" : `${count} block${count === 1 ? "" : "s"}`;
    return make("p", "headings", `Block table, logical → physical (${note})`);
  }

  tableOf(request) { return request.status === "finished" ? request.lastTable : request.table; }

  blockRows(state, request, selected) {
    const size = state.facts.block_size;
    const table = this.tableOf(request);
    const count = Math.min(Math.ceil(request.numTokens / size), MAX_ROWS);
    const first = Math.max(0, Math.ceil(request.numTokens / size) - MAX_ROWS);
    return Array.from({ length: count }, (_, i) => {
      const index = first + i;
      const blocks = table.slice(index * state.numGroups, (index + 1) * state.numGroups);
      const row = [state, request, index, blocks, blocks.includes(selected)];
      return this.cache.get(this.rowKey(...row), () => this.blockRow(...row));
    });
  }

  /** Return a key of everything that a row of the block table shows. */
  rowKey(state, request, index, blocks, isSelected) {
    const end = (index + 1) * state.facts.block_size;
    const shared = blocks.find((block) => state.references[block] > 1);
    const owners = shared === undefined ? [] : state.ownersOf(shared).map((each) => each.arrival);
    return ["row", request.arrival, index, blocks, isSelected, request.status, request.hashes[index],
            Math.min(request.computed, end), Math.min(request.numTokens, end), owners,
            colorOf(request.arrival)].join(" ");
  }

  blockRow(state, request, index, blocks, isSelected) {
    const size = state.facts.block_size;
    const row = make("div", `row${isSelected ? " selected" : ""}`);
    row.append(make("span", "logical", String(index)), make("span", "arrow", "→"));
    const each = (blocks.length ? blocks : [undefined]).map((block) => this.physical(request, block));
    row.append(make("span", "physicals", ...each)); // one for each group of layers
    const text = make("span", "text");
    const end = Math.min((index + 1) * size, request.numTokens);
    for (let i = index * size; i < end; i += 1) text.append(this.placed(request, i));
    const shared = blocks.find((block) => state.references[block] > 1);
    const others = shared === undefined || request.status === "finished" ? []
      : state.ownersOf(shared).filter((each) => each !== request).map((each) => chip(each.arrival));
    if (others.length) text.append(make("span", "with", " shared with ", ...others.slice(0, 6)));
    row.append(text, this.hash(request, index));
    return row;
  }

  physical(request, block) {
    if (block === undefined || block < 0) return make("span", "physical none", "–");
    const cell = make("button", "physical", String(block));
    cell.dataset.block = block;
    cell.style.setProperty("--color", colorOf(request.arrival));
    return cell;
  }

  tokenClass(request, index) {
    const source = index < request.numPrompt ? "prompt" : request.guessed[index] ? "output guessed" : "output";
    return index < request.computed || request.status === "finished" ? source : `${source} ahead`;
  }

  /** A token that can be clicked to follow it. */
  placed(request, index) {
    const token = this.token(request.tokens[index], this.tokenClass(request, index));
    if (index < request.computed && request.status === "running") {
      Object.assign(token.dataset, { position: index, of: request.arrival });
    }
    return token;
  }

  token(id, className) {
    const text = this.texts.get(id) ?? `[${id}]`;
    const span = make("span", `token ${className}`, text.replaceAll("\n", "↵"));
    span.title = `token ${id}${className.includes("guessed") ? ", a right guess" : ""}`;
    return span;
  }

  /** The hash of a full block: of its tokens and the hash of the block before it. */
  hash(request, index) {
    const hash = request.hashes[index];
    const label = make("span", "hash", hash ? `${index ? "↑ " : ""}${hash.slice(0, 6)}` : "");
    const parent = index ? `the hash of the block before it, ${request.hashes[index - 1]?.slice(0, 6)}, and ` : "";
    if (hash) label.title = `SHA-256 of ${parent}its tokens: ${hash}`;
    return label;
  }

  // ---- a block --------------------------------------------------------------------------------

  blockCard(state, block) {
    const kind = state.kindOf(block);
    const owners = state.ownersOf(block).slice(0, 12).map((each) => each.arrival);
    const story = this.story(state, block, kind);
    const content = [state.owner[block], state.offset[block], state.fill[block]];
    const key = ["card", block, kind, owners, owners.map((each) => colorOf(each)), story, content].join(" ");
    return this.cache.get(key, () => {
      const card = make("div", "block-card", make("h3", "", `Block ${block}: ${KINDS[kind]}`));
      if (owners.length) card.append(make("p", "summary", "held by ", ...owners.map((each) => chip(each))));
      card.append(make("p", "summary", story));
      if (kind !== FREE) card.append(this.contents(state, block));
      return card;
    });
  }

  story(state, block, kind) {
    const fill = `${state.fill[block]} of ${state.facts.block_size} slots filled`;
    const hash = state.hashes[block];
    const name = hash ? `can be found by its hash ${hash.slice(0, 6)}` : "has no hash, because it is not full";
    if (kind === FREE) return "No request holds it, and its content is not cached.";
    if (kind !== CACHED) return `${fill}; ${name}.`;
    const rank = state.numEvictedBefore(block);
    return `No request has held it since step ${state.releasedStep[block]}, but it can still be found by its hash `
      + `${hash.slice(0, 6)}. When no block is free, it will be evicted ${rank ? `after ${rank} other${rank > 1 ? "s" : ""}` : "next"}.`;
  }

  contents(state, block) {
    const text = make("p", "text");
    const tokens = state.tokens[block];
    if (!tokens) return make("p", "hint", "Its tokens were written before this page was opened.");
    for (let i = 0; i < state.fill[block]; i += 1) text.append(this.token(tokens[state.offset[block] + i], "prompt"));
    return text;
  }
}
