// The stops of the tour: what happens on the way to each, and what to say there.

const BEGINNING = "The old captain looked at the sea, and then at the ship, and then at the men who stood upon the deck "
  + "and waited for his word. The wind had fallen, and the night was dark.";
/** It ends within a sentence, so that the first token is a word, not a quotation mark. */
const FIRST = `${BEGINNING} At last he`;
const SECOND = `${BEGINNING} A boy cried:`;
/** Of different lengths, so that not all of them need a new block in the same step. */
const OTHERS = [
  "It was a dark and stormy night, and the rain fell in torrents upon the roofs of the town, so that",
  "My dear sister, you will be surprised to hear that I have at last left London, and that",
  "The lighthouse keeper opened the door, and there in the rain stood",
  "Nobody in the village had ever seen such a",
  "The doctor said that",
  "Winter",
];

const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

/**
 * In order. `panels`: the panels that are shown; `go` sends requests and runs the engine to the stop; `tell` returns
 * paragraphs, each a text or a quotation. Both get the tour.
 */
export const STOPS = [
  {
    title: "An empty pool",
    panels: "pool",
    go: async () => {},
    tell: ({ state: { facts } }) => [
      "A language model reads and writes tokens, which are words or parts of words. For each token that it has read, it "
        + "remembers numbers called keys and values. This memory is the KV cache.",
      `Here it is cut into ${facts.num_blocks} blocks, each with room for ${facts.block_size} tokens. Nobody has asked `
        + "for anything yet: all blocks are free, and the engine is paused. Let's send it a prompt:",
      { quote: FIRST },
    ],
  },
  {
    title: "Prefill: it reads the prompt",
    panels: "pool",
    go: async (tour) => {
      await tour.send([FIRST], 24);
      await tour.run(() => tour.request(0).numTokens > tour.request(0).numPrompt);
    },
    tell: (tour) => {
      const { numPrompt, table } = tour.request(0);
      const steps = tour.state.step + 1;
      return [
        `In ${plural(steps, "step")}, the engine read the whole prompt: all ${numPrompt} tokens. Their keys and values `
          + `went into ${plural(table.length, "block")}. A small square is one token. A gray square is a slot that is `
          + "still empty.",
        "Then it chose the next token:",
        { quote: tour.textOf(tour.request(0)) },
        "That is all that a language model ever does. It reads, and adds one token.",
      ];
    },
  },
  {
    title: "Decode: one token per step",
    panels: "pool",
    go: async (tour) => {
      const wanted = tour.request(0).numTokens + 3;
      await tour.run(() => tour.request(0).numTokens >= wanted);
    },
    tell: (tour) => [
      "Three more steps. Each one read a single token, the one that was chosen before it, wrote its keys and values into "
        + "the next empty slot, and chose another token. So far:",
      { quote: tour.textOf(tour.request(0)) },
      "The dark frame marks the block that was just written. The other tokens were not computed again. That is what the "
        + "cache is for.",
    ],
  },
  {
    title: "A shared prefix",
    panels: "pool",
    go: async (tour) => {
      await tour.send([SECOND], 12);
      await tour.run(() => tour.request(1).numTokens > tour.request(1).numPrompt);
    },
    tell: (tour) => {
      const { cached, numPrompt, tokens } = tour.request(1);
      const shared = cached / tour.state.facts.block_size;
      const same = tokens.findIndex((token, place) => token !== tour.request(0).tokens[place]) - cached;
      return [
        "A second prompt has come. It begins with the same words as the first:",
        { quote: SECOND },
        `The engine found that the first ${plural(shared, "block")} hold these words already. Now both requests use them: `
          + "look for ×2.",
        "Only whole blocks with equal contents are shared. The next one "
          + `${same > 0 ? `begins with the same ${plural(same, "token")}, but ends differently` : "differs"}. So of the `
          + `prompt's ${numPrompt} tokens, only ${numPrompt - cached} had to be computed.`,
      ];
    },
  },
  {
    title: "The pool is full",
    panels: "pool batch",
    go: async (tour) => {
      await tour.run(() => false); // until both have ended
      await tour.sendCrowd(OTHERS);
      await tour.run(() => tour.isFull);
    },
    tell: (tour) => [
      "Both requests have ended. Their full blocks have turned pale: no request needs them, but they are kept for the "
        + `next prompt that begins with the same words. They are cached. There are ${tour.numCached} of them.`,
      `Then ${OTHERS.length} other prompts came. Each step adds a token to every one of them at once: this is a batch. `
        + "The new panel shows it, with a column for each step and a row for each request.",
      "They have taken every free block. What happens when a request needs one more?",
    ],
  },
  {
    title: "Eviction: a cached block goes",
    panels: "pool batch",
    go: (tour) => tour.run(() => tour.state.now.evicted.length > 0),
    tell: (tour) => {
      const { evicted } = tour.state.now;
      if (!evicted.length) return ["This engine has ended all requests without an eviction."];
      const blocks = evicted.map(({ block }) => block).sort((a, b) => a - b).join(" and ");
      return [
        evicted.length === 1
          ? `Request #${evicted[0].newOwner} needed a block. None was free, so a cached one had to go: block ${blocks}, in `
            + "the red frame. Its content is forgotten, and the block is used again."
          : `${evicted.length} blocks were needed. None was free, so cached ones had to go: blocks ${blocks}, in the red `
            + "frames. Their contents are forgotten, and the blocks are used again.",
        "No request is harmed. If a prompt with these words comes once more, what was forgotten is computed again.",
      ];
    },
  },
  {
    title: "Preemption: a request steps back",
    panels: "pool batch",
    go: (tour) => tour.run(() => tour.state.now.preempted.length > 0),
    tell: (tour) => {
      const [victim] = tour.state.now.preempted;
      if (!victim) return ["This engine has ended all requests without a preemption."];
      return [
        "Requests held all blocks, and nothing was left to evict. But a request that writes goes on growing.",
        `So the one that came last, #${victim}, was preempted (the red ✕). It gave all of its blocks back, and waits. `
          + "The others go on.",
        "It keeps its text. When there is room again, the engine computes anew whatever is no longer cached.",
      ];
    },
  },
  {
    title: "The end",
    panels: "pool batch",
    go: (tour) => tour.run(() => false),
    tell: (tour) => {
      const preempted = [...tour.preempted].map((arrival) => `#${arrival}`);
      const { facts: { num_blocks }, counts: [free] } = tour.state;
      const rest = free ? `${num_blocks - free} are cached, and ${free} free` : `all ${num_blocks} are cached`;
      return [
        `All ${tour.requests.length} requests have got their texts.`,
        ...(preempted.length ? [`${preempted.join(" and later ")} ${preempted.length === 1 ? "was" : "were"} preempted and `
          + "came back. What was lost was computed again."] : []),
        `No block is in use: ${rest}. The engine is ready for whoever comes next.`,
        "You have seen paging, batching, sharing, eviction and preemption. A large server does nothing else all day.",
        "Next comes the whole page, with more panels, traffic that never ends, and a field for prompts of your own.",
      ];
    },
  },
];
