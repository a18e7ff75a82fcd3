// What a step did, in words.

const plural = (count, one, many = `${one}s`) => `${count} ${count === 1 ? one : many}`;
const list = (arrivals) => {
  const names = arrivals.slice(0, 4).map((arrival) => `#${arrival}`);
  if (arrivals.length > 4) names.push(`${arrivals.length - 4} more`);
  return names.length < 2 ? names.join("") : `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`;
};

/** Sentences about the last step of a state, the most remarkable first. */
export function narrate(state) {
  const { now } = state;
  if (now.record === null) return ["Nothing has been computed yet."];
  return [
    ...preemptions(now),
    ...evictions(now, state.facts),
    ...admissions(now, state.facts.block_size),
    work(state),
    ...ends(now),
  ];
}

function work(state) {
  const prompts = state.now.computed.filter((each) => each.count > 1);
  const tokens = prompts.reduce((sum, each) => sum + each.count, 0);
  const decodes = state.now.computed.length - prompts.length;
  const parts = [];
  if (prompts.length) parts.push(`${plural(tokens, "prompt token")} of ${list(prompts.map((each) => each.arrival))}`);
  if (decodes) parts.push(`one token each of ${plural(decodes, "request")}`);
  const total = tokens + decodes;
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

function preemptions({ preempted }) {
  if (!preempted.length) return [];
  const verb = preempted.length === 1 ? "was preempted: it gave its blocks" : "were preempted: they gave their blocks";
  return [`No block was left. ${list(preempted)} ${verb} to those before, and waits to be computed again.`];
}

function evictions({ evicted }, facts) {
  if (!evicted.length) return [];
  const reasons = evicted.slice(0, 2).map((each) => evictionReason(each, facts));
  if (evicted.length > 2) reasons.push(`${evicted.length - 2} more blocks were evicted.`);
  return reasons;
}

/** Why this block and no other. */
export function evictionReason({ block, releasedStep, hits, owner, forWhom }, facts) {
  const why = {
    lru: `nobody references it, and of all such blocks it was released the longest ago, in step ${releasedStep} by #${owner}`,
    fifo: "nobody references it, and of all such blocks it was the first to be released",
    lfu: `nobody references it, and of all such blocks it was found the least often (${plural(hits, "time")})`,
  }[facts.eviction_policy] ?? `nobody references it, and ${facts.eviction_policy} chose it`;
  return `Block ${block} was evicted for #${forWhom}: ${why}.`;
}

function ends({ ended }) {
  if (ended.length > 3) return [`${list(ended.map((each) => each.arrival))} are done.`];
  return ended.map(({ arrival, reason }) => ({
    stop: `#${arrival} is done: it stopped.`,
    length: `#${arrival} is done: it has all the tokens it may.`,
    abort: `#${arrival} was aborted.`,
    error: `#${arrival} ended with an error.`,
  })[reason] ?? `#${arrival} ended (${reason}).`);
}
