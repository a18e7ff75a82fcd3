// One request or one block from near: its text, block by block, and where each is.

import { chip, Kept, make, setChildren } from "./elements.js";
import { CACHED, FREE } from "./state.js";
import { colourOf } from "./theme.js";

const MAX_ROWS = 64;
const KINDS = ["free", "cached", "referenced", "shared"];

export class Inspector {
  /** @param mine arrival numbers of the requests from this page */
  constructor(element, texts, mine) {
    this.element = element;
    this.texts = texts;
    this.mine = mine;
    this.kept = new Kept();
  }

  /** @param selection {arrival, block}, either of which may be null */
  draw(state, { arrival, block }) {
    const request = arrival === null ? null : state.byArrival(arrival);
    const parts = [];
    if (block !== null) parts.push(this.blockCard(state, block));
    if (request) parts.push(...this.requestParts(state, request, block));
    else if (arrival !== null) parts.push(make("p", "hint", `#${arrival} is not there at this step.`));
    else if (block === null) parts.push(make("p", "hint", "Select a block of the pool or a row of the batch, or send a prompt of your own and follow it."));
    setChildren(this.element, parts);
    this.kept.turn();
  }

  // ---- a request ------------------------------------------------------------------------------

  requestParts(state, request, block) {
    const rows = this.blockRows(state, request, block);
    return [this.title(request), this.summary(request), this.counter(request), this.headings(request), ...rows];
  }

  title({ arrival, id }) {
    const name = this.mine.has(arrival) ? "your prompt" : id;
    return this.kept.get(["title", arrival, name, colourOf(arrival)].join(" "),
                         () => make("h3", "", chip(arrival), ` ${name}`));
  }

  summary(request) {
    const words = [
      request.status === "finished" ? `finished (${request.reason})` : request.status,
      `prompt of ${request.numPrompt} tokens`,
      `${request.numTokens - request.numPrompt}${this.limit(request)} generated`,
    ];
    if (request.cached) words.push(`${request.cached} found in the cache`);
    if (request.preemptions) words.push(`preempted ${request.preemptions}×`);
    return make("p", "summary", words.join(" · "));
  }

  limit(request) {
    return request.params.max_tokens ? ` of at most ${request.params.max_tokens}` : "";
  }

  /** The one idea: a list of tokens, and a counter that catches up with it. */
  counter(request) {
    const bar = make("div", "counter");
    const share = (count) => `${(100 * count) / request.numTokens}%`;
    const done = make("div", "done");
    done.style.width = share(request.computed);
    done.style.background = colourOf(request.arrival);
    const mark = make("div", "mark");
    mark.style.left = share(request.numPrompt);
    mark.title = "end of the prompt";
    bar.append(done, mark);
    return make("div", "", bar, make("p", "summary",
      `computed ${request.computed} of its ${request.numTokens} tokens`));
  }

  headings(request) {
    const count = this.tableOf(request).length;
    const note = request.status === "finished" ? "its blocks were given back" : `${count} block${count === 1 ? "" : "s"}`;
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
      const place = [state, request, index, table[index], table[index] === selected];
      return this.kept.get(this.rowKey(...place), () => this.blockRow(...place));
    });
  }

  /** All that a row of the block table depends on. */
  rowKey(state, request, index, block, isSelected) {
    const end = (index + 1) * state.facts.block_size;
    const isShared = block !== undefined && state.references[block] > 1;
    const owners = isShared ? state.ownersOf(block).map((each) => each.arrival) : [];
    return ["row", request.arrival, index, block, isSelected, request.status, request.hashes[index],
            Math.min(request.computed, end), Math.min(request.numTokens, end), owners,
            colourOf(request.arrival)].join(" ");
  }

  blockRow(state, request, index, block, isSelected) {
    const size = state.facts.block_size;
    const row = make("div", `row${isSelected ? " selected" : ""}`);
    row.append(make("span", "logical", String(index)), make("span", "arrow", "→"));
    row.append(this.physical(request, block));
    const text = make("span", "text");
    const end = Math.min((index + 1) * size, request.numTokens);
    for (let i = index * size; i < end; i += 1) text.append(this.token(request.tokens[i], this.tokenClass(request, i)));
    const isAlone = block === undefined || request.status === "finished" || state.references[block] < 2;
    const others = isAlone ? []
      : state.ownersOf(block).filter((each) => each !== request).map((each) => chip(each.arrival));
    if (others.length) text.append(make("span", "with", " shared with ", ...others.slice(0, 6)));
    row.append(text, this.hash(request, index));
    return row;
  }

  physical(request, block) {
    if (block === undefined) return make("span", "physical none", "–");
    const cell = make("button", "physical", String(block));
    cell.dataset.block = block;
    cell.style.setProperty("--colour", colourOf(request.arrival));
    return cell;
  }

  tokenClass(request, index) {
    const source = index < request.numPrompt ? "prompt" : "output";
    return index < request.computed || request.status === "finished" ? source : `${source} ahead`;
  }

  token(id, className) {
    const text = this.texts.get(id) ?? `[${id}]`;
    const span = make("span", `token ${className}`, text.replaceAll("\n", "↵"));
    span.title = `token ${id}`;
    return span;
  }

  /** A full block's name: the hash of its tokens and of the hash before it. */
  hash(request, index) {
    const hash = request.hashes[index];
    const label = make("span", "hash", hash ? `${index ? "↑ " : ""}${hash.slice(0, 6)}` : "");
    const parent = index ? `the hash before it, ${request.hashes[index - 1]?.slice(0, 6)}, and` : "";
    if (hash) label.title = `SHA-256 of ${parent} its tokens: ${hash}`;
    return label;
  }

  // ---- a block --------------------------------------------------------------------------------

  blockCard(state, block) {
    const kind = state.kindOf(block);
    const owners = state.ownersOf(block).slice(0, 12).map((each) => each.arrival);
    const story = this.story(state, block, kind);
    const content = [state.owner[block], state.offset[block], state.fill[block]];
    const key = ["card", block, kind, owners, owners.map((each) => colourOf(each)), story, content].join(" ");
    return this.kept.get(key, () => {
      const card = make("div", "block-card", make("h3", "", `Block ${block}: ${KINDS[kind]}`));
      if (owners.length) card.append(make("p", "summary", "in the table of ", ...owners.map((each) => chip(each))));
      card.append(make("p", "summary", story));
      if (kind !== FREE) card.append(this.contents(state, block));
      return card;
    });
  }

  story(state, block, kind) {
    const fill = `${state.fill[block]} of ${state.facts.block_size} slots filled`;
    const hash = state.hashes[block];
    const name = hash ? `findable as ${hash.slice(0, 6)}` : "not findable: it is not full";
    if (kind === FREE) return "Nobody has it, and nothing in it can be found.";
    if (kind !== CACHED) return `${fill}, ${name}.`;
    const place = state.numEvictedBefore(block);
    return `Nobody references it since step ${state.releasedStep[block]}, but its content can still be found as `
      + `${hash.slice(0, 6)}. It will be evicted ${place ? `after ${place} other${place > 1 ? "s" : ""}` : "next"}, `
      + "once no block is free.";
  }

  contents(state, block) {
    const text = make("p", "text");
    const tokens = state.tokens[block];
    if (!tokens) return make("p", "hint", "Written before this page was opened.");
    for (let i = 0; i < state.fill[block]; i += 1) text.append(this.token(tokens[state.offset[block] + i], "prompt"));
    return text;
  }
}
