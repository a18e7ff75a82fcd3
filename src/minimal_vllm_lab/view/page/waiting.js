// Say why a request waits: how many are before it, what it needs, what is free, and what happens next.

import { CACHED, FREE } from "./state.js";

/** Return sentences about a waiting request. They follow the rules of `Scheduler.admit_waiting`. */
export function whyWaiting(state, request) {
  const { facts } = state;
  const waiting = state.inOrder("waiting");
  const numBefore = waiting.indexOf(request);
  const numRunning = state.inOrder("running").length;
  const needed = Math.ceil(request.numTokens / facts.block_size);
  const free = state.counts[FREE] + state.counts[CACHED];
  const wanted = needed + numRunning;
  const sentences = [];
  if (request.preemptions) sentences.push("It was preempted: its blocks were needed by requests before it.");
  sentences.push(numBefore ? `${count(numBefore, "request")} before it.` : "It is the first in the queue.");
  if (numRunning >= facts.max_num_seqs) {
    sentences.push(`All ${facts.max_num_seqs} seats of the batch are taken.`,
                   `${numBefore ? "The queue moves on" : "It is admitted"} when a running request finishes.`);
  } else if (wanted > free) {
    sentences.push(`It needs ${count(needed, "block")}, and one is kept for each of ${count(numRunning, "running request")}: `
                   + `${wanted} in all. ${free} ${free === 1 ? "is" : "are"} free or cached, unless it shares some.`,
                   `${numBefore ? "The queue moves on" : "It is admitted"} when running requests finish and free ${count(wanted - free, "more block")}.`);
  } else if (numBefore) {
    sentences.push(`There is room for its ${count(needed, "block")}, but no request overtakes another.`);
  } else {
    sentences.push("There is room: it is admitted in the next step that has enough tokens left in its budget and preempts no request.");
  }
  return sentences;
}

const count = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;
