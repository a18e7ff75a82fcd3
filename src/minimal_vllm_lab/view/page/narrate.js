// What a step did, in words.

import { firstFrom } from "./digest.js";

const MOST_GROUPS = 2; // of evicted blocks that a sentence is made of

const plural = (count, one, many = `${one}s`) => `${count} ${count === 1 ? one : many}`;
const listed = (things) => {
  const names = things.slice(0, 4);
  if (things.length > 4) names.push(`${things.length - 4} more`);
  return names.length < 2 ? names.join("") : `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`;
};
const list = (arrivals) => listed(arrivals.map((arrival) => `#${arrival}`));

/** Sentences about the last step of a state, the most remarkable first. */
export function narrate(state) {
  const { now } = state;
  if (state.step < 0) return ["Nothing has been computed yet."];
  if (now.record === null) return [`This page came after step ${state.step}, and knows what there was then, but not what came before.`];
  return [
    ...preemptions(now, state.facts),
    ...evictions(now, state.facts),
    ...admissions(now, state.facts.block_size),
    work(state),
    ...ends(now),
  ];
}

function work(state) {
  const count = (entries) => entries.reduce((sum, each) => sum + each.count, 0);
  const prompts = state.now.computed.filter((each) => !each.decodes);
  const decodes = state.now.computed.filter((each) => each.decodes);
  const parts = [];
  if (prompts.length) {
    parts.push(`${plural(count(prompts), "prompt token")} of ${list(prompts.map((each) => each.arrival))}`);
  }
  if (decodes.length) {
    const each = count(decodes) === decodes.length ? "one token each" : plural(count(decodes), "token");
    parts.push(`${each} of ${plural(decodes.length, "request")}`);
  }
  const total = count(state.now.computed);
  return `Computed ${parts.join(", and ")}: ${total} of ${state.facts.max_num_batched_tokens} that a step may.`;
}

function admissions({ admitted, found }, blockSize) {
  const hits = new Map(found.map((each) => [each.arrival, each.blocks.length]));
  if (admitted.length > 3) {
    return [`${list(admitted)} were admitted, and found ${found.length ? "blocks" : "nothing"} in the cache.`];
  }
  return admitted.map((arrival) => {
    const count = hits.get(arrival);
    if (!count) return `#${arrival} was admitted.`;
    return `#${arrival} was admitted, and found its first ${count * blockSize} tokens in the cache: `
      + `${plural(count, "block")} that it shares and need not compute.`;
  });
}

function preemptions({ preempted }, facts) {
  if (!preempted.length) return [];
  const isOne = preempted.length === 1;
  const rank = { fcfs: "came last", priority: `${isOne ? "is" : "are"} served last` }[facts.scheduling_policy];
  const who = `${list(preempted)}${rank ? `, which ${rank},` : ""}`;
  return [isOne
    ? `No block was left. ${who} was preempted: it gave its blocks to those before it, and waits to be computed again.`
    : `No block was left. ${who} were preempted: they gave their blocks to those before them, and wait to be computed again.`];
}

/** Those that were evicted for the same request and reason are told of together. */
function evictions({ evicted }, facts) {
  const told = new Map(); // for whom and why -> those that were evicted
  for (const each of evicted) {
    const key = `#${each.forWhom} ${evictionReason(each, facts, true)}`;
    told.set(key, [...(told.get(key) ?? []), each]);
  }
  const groups = [...told.values()];
  const sentences = groups.slice(0, MOST_GROUPS).map((group) => {
    const isOne = group.length === 1;
    const blocks = `${isOne ? "Block" : "Blocks"} ${listed(group.map((each) => each.block))}`;
    return `${blocks} ${isOne ? "was" : "were"} evicted for #${group[0].forWhom}: ${evictionReason(group[0], facts, isOne)}.`;
  });
  const others = groups.slice(MOST_GROUPS).flat().length;
  if (others) sentences.push(`${others} more ${others === 1 ? "block was" : "blocks were"} evicted.`);
  return sentences;
}

/** Why this block and no other; or, of several, why these. */
function evictionReason({ releasedStep, hits, owner }, facts, isOne) {
  const [them, it, was] = isOne ? ["it", "it", "was"] : ["them", "they", "were"];
  const why = {
    lru: `of all such blocks ${it} ${was} released the longest ago, in step ${releasedStep} by #${owner}`,
    fifo: `of all such blocks ${it} ${was} the first to be released`,
    lfu: `of all such blocks ${it} ${was} found the least often (${plural(hits, "time")})`,
  }[facts.eviction_policy] ?? `${facts.eviction_policy} chose ${them}`;
  return `nobody references ${them}, and ${why}`;
}

/** What a request did in a step, on one line after its name. */
export function narrateCell({ row, step }) {
  const cell = row.cells[firstFrom(row.cells, step)];
  return `#${row.arrival} ${row.id}\nstep ${step}: ${cell?.step === step ? CELLS[cell.kind](cell) : "it waited"}`;
}

const CELLS = {
  prompt: ({ count, cached }) => `${plural(count, "token")} of its prompt`
    + (cached ? `, behind ${cached} that were found in the cache` : ""),
  decode: ({ count }) => (count === 1 ? "one token" : plural(count, "token")),
  again: ({ count }) => `${plural(count, "token")} computed again`,
  preempted: () => "preempted, its blocks went to others",
};

function ends({ ended }) {
  if (ended.length > 3) return [`${list(ended.map((each) => each.arrival))} are done.`];
  return ended.map(({ arrival, reason }) => ({
    stop: `#${arrival} is done: it stopped.`,
    length: `#${arrival} is done: it has all the tokens it may.`,
    abort: `#${arrival} was aborted.`,
    error: `#${arrival} ended with an error.`,
  })[reason] ?? `#${arrival} ended (${reason}).`);
}
