// Describe in words what a step did.

import { firstFrom } from "./digest.js";

const MAX_GROUPS = 2; // groups of evicted blocks that get their own sentence

const plural = (count, one, many = `${one}s`) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
const listed = (things) => {
  const names = things.slice(0, 4);
  if (things.length > 4) names.push(`${things.length - 4} more`);
  return names.length < 2 ? names.join("") : `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`;
};
const list = (arrivals) => listed(arrivals.map((arrival) => `#${arrival}`));

/** Return sentences about the last step of a state, the most remarkable event first. */
export function narrate(state) {
  const { now } = state;
  if (state.step < 0) return ["Nothing has been computed yet."];
  if (now.record === null) return [`This page was opened after step ${state.step}. It knows the state at that step, but not the steps before it.`];
  return [
    ...preemptions(now, state.facts),
    ...evictions(now, state.facts),
    ...admissions(now, state.facts.block_size),
    computed(state),
    ...ends(now),
  ];
}

function computed(state) {
  const count = (entries) => entries.reduce((sum, each) => sum + each.count, 0);
  const guesses = (entries) => entries.reduce((sum, each) => sum + each.guesses, 0);
  const prompts = state.now.computed.filter((each) => !each.decodes);
  const decodes = state.now.computed.filter((each) => each.decodes);
  const work = [];
  if (prompts.length) {
    const guessed = guesses(prompts); // behind the prompts
    work.push(`${plural(count(prompts) - guessed, "prompt token")} of ${list(prompts.map((each) => each.arrival))}`);
    if (guessed) work.push(`${plural(guessed, "token")} behind them`);
  }
  if (decodes.length) {
    const each = count(decodes) === decodes.length ? "one token each" : plural(count(decodes), "token");
    work.push(`${each} for ${plural(decodes.length, "request")}`);
  }
  const total = count(state.now.computed);
  const guessed = guesses(state.now.computed);
  const most = state.facts.max_num_batched_tokens.toLocaleString("en");
  const sentence = `Computed ${work.join(", and ")}: ${total.toLocaleString("en")} of at most ${most} tokens.`;
  return guessed ? `${sentence} ${judged(guessed, state.now.right)}` : sentence;
}

/** Say how many guesses were right. */
function judged(guesses, right) {
  const verdict = right === guesses ? (guesses === 1 ? "right" : "all right") : right ? `${right} of them right` : "wrong";
  return `${plural(guesses, "token was a guess", "tokens were guesses")}, ${verdict}.`;
}

function admissions({ admitted, found }, blockSize) {
  const hits = new Map(found.map((each) => [each.arrival, each.numBlocks]));
  if (admitted.length > 3) {
    return [`${list(admitted)} were admitted, ${found.length ? "some with a cached prefix" : "without a cached prefix"}.`];
  }
  return admitted.map((arrival) => {
    const count = hits.get(arrival);
    if (!count) return `#${arrival} was admitted.`;
    return `#${arrival} was admitted. Its first ${count * blockSize} tokens were found in the cache: `
      + `it shares ${plural(count, "block")} that need not be computed again.`;
  });
}

function preemptions({ preempted }, facts) {
  if (!preempted.length) return [];
  const isOne = preempted.length === 1;
  const rank = { fcfs: "arrived last", priority: `${isOne ? "is" : "are"} last in order` }[facts.scheduling_policy];
  const victims = `${list(preempted)}${rank ? `, which ${rank},` : ""}`;
  return [isOne
    ? `No block was free. ${victims} was preempted: it released its blocks and waits to be computed again.`
    : `No block was free. ${victims} were preempted: they released their blocks and wait to be computed again.`];
}

/** One sentence for all blocks that were evicted for the same request and the same reason. */
function evictions({ evicted }, facts) {
  const groupOf = new Map(); // new owner and reason -> evicted blocks
  for (const each of evicted) {
    const key = `#${each.newOwner} ${evictionReason(each, facts, true)}`;
    groupOf.set(key, [...(groupOf.get(key) ?? []), each]);
  }
  const groups = [...groupOf.values()];
  const sentences = groups.slice(0, MAX_GROUPS).map((group) => {
    const isOne = group.length === 1;
    const blocks = `${isOne ? "Block" : "Blocks"} ${listed(group.map((each) => each.block))}`;
    return `${blocks} ${isOne ? "was" : "were"} evicted for #${group[0].newOwner}: ${evictionReason(group[0], facts, isOne)}.`;
  });
  const others = groups.slice(MAX_GROUPS).flat().length;
  if (others) sentences.push(`${others} more ${others === 1 ? "block was" : "blocks were"} evicted.`);
  return sentences;
}

/** Why the strategy chose this block, or these blocks. */
function evictionReason({ releasedStep, hits, owner }, facts, isOne) {
  const [them, it, was] = isOne ? ["it", "it", "was"] : ["them", "they", "were"];
  const why = {
    lru: `of all such blocks, ${it} ${was} released longest ago, in step ${releasedStep} by #${owner}`,
    fifo: `of all such blocks, ${it} ${was} the first to be released`,
    lfu: `of all such blocks, ${it} ${was} found least often (${plural(hits, "time")})`,
  }[facts.eviction_policy] ?? `${facts.eviction_policy} chose ${them}`;
  return `no request holds ${them}, and ${why}`;
}

/** Describe what a request did in a step, in a line after its name. */
export function narrateCell({ row, step }) {
  const cell = row.cells[firstFrom(row.cells, step)];
  return `#${row.arrival} ${row.id}\nstep ${step}: ${cell?.step === step ? CELLS[cell.kind](cell) : "waiting"}`;
}

const withGuesses = ({ guesses: count, right }) => (count ? `, and ${plural(count, "guess", "guesses")}: ${right} right` : "");

const CELLS = {
  prompt: (cell) => `${plural(cell.count - cell.guesses, "token")} of its prompt`
    + (cell.cached ? `, after ${cell.cached} cached ones` : "") + withGuesses(cell),
  decode: (cell) => {
    const count = cell.count - cell.guesses;
    return `decode of ${count === 1 ? "one token" : plural(count, "token")}${withGuesses(cell)}`;
  },
  again: (cell) => {
    const others = cell.count - cell.guesses - cell.again;
    return `${plural(cell.again, "token")} computed again${others ? `, and ${plural(others, "new one")}` : ""}${withGuesses(cell)}`;
  },
  preempted: () => "preempted: it released its blocks",
};

function ends({ ended }) {
  if (ended.length > 3) return [`${list(ended.map((each) => each.arrival))} finished.`];
  return ended.map(({ arrival, reason }) => ({
    stop: `#${arrival} finished with a stop token or stop string.`,
    length: `#${arrival} finished: it reached its maximum length.`,
    abort: `#${arrival} was aborted.`,
    error: `#${arrival} failed.`,
  })[reason] ?? `#${arrival} finished (${reason}).`);
}
