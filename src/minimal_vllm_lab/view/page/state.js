// The engine's state, rebuilt from its records alone: it mirrors BlockPool and Scheduler.
// docs/trace-format.md explains the records.

/** Kinds of blocks: free, cached and not in use, held by one request, held by several. */
/** Number of digits of a hash, without those that name a group of layers. */
const HASH_LENGTH = 64;

export const FREE = 0;
export const CACHED = 1;
export const REFERENCED = 2;
export const SHARED = 3;

export class EngineState {
  constructor(facts) {
    const n = facts.num_blocks;
    this.facts = facts;
    this.numGroups = (facts.windows ?? [null]).length; // of layers: entries per row of a block table
    this.step = -1;
    this.time = 0;
    this.requests = new Map(); // id -> request, for requests that have not ended
    this.ended = []; // the last requests that ended, newest last
    this.numEnded = 0;
    // Per block:
    this.references = new Uint16Array(n);
    this.group = new Uint8Array(n); // group of layers that it was last used by
    this.owner = new Int32Array(n); // arrival number of its last request; 0: none yet
    this.fill = new Uint16Array(n); // number of tokens in it
    this.hashes = new Array(n).fill(null);
    this.tokens = new Array(n).fill(null); // the token list of its last request …
    this.offset = new Int32Array(n); // … and the index of the block's first token in it
    this.released = new Int32Array(n); // value of numReleases at its last release: the order of LRU
    this.firstReleased = new Int32Array(n); // the same for the first release of its content: FIFO
    this.hits = new Uint16Array(n); // number of hits of its content: the order of LFU
    this.releasedStep = new Int32Array(n); // step of its last release
    this.names = new Map(); // hash -> block; null: to be rebuilt from the hashes
    this.numReleases = 0;
    this.counts = [n, 0, 0, 0]; // number of blocks of each kind
    this.filled = 0; // number of slots that hold a token, in blocks in use
    this.touched = new Set(); // blocks that have changed since the last takeTouched
    this.prefixQueries = 0;
    this.prefixHits = 0;
    this.now = emptyStep(); // what the last step did
    this.plans = new Map(); // step -> what it does, for steps that are planned and still running
  }

  /** Return a copy to which other records can be applied. It shares token lists, which only grow. */
  clone() {
    const copy = Object.assign(Object.create(EngineState.prototype), this);
    for (const [name, value] of Object.entries(this)) {
      if (ArrayBuffer.isView(value) || Array.isArray(value)) copy[name] = value.slice();
    }
    copy.now = { ...this.now, ended: this.now.ended.slice() };
    copy.plans = new Map(this.plans);
    copy.names = null; // rebuilt on demand, because most copies are never used
    copy.touched = new Set();
    copy.requests = new Map();
    for (const [id, r] of this.requests) copy.requests.set(id, { ...r, table: r.table.slice() });
    return copy;
  }

  static fromSnapshot(facts, snapshot) {
    const state = new EngineState(facts);
    state.step = snapshot.step;
    state.prefixQueries = snapshot.prefix_queries;
    state.prefixHits = snapshot.prefix_hits;
    for (const [block, hash] of Object.entries(snapshot.hashes)) state.name(Number(block), hash);
    for (const [hash, tokens] of Object.entries(snapshot.contents)) {
      const block = state.blockOf.get(hash);
      state.tokens[block] = tokens;
      state.change(block, () => { state.fill[block] = tokens.length; });
    }
    for (const each of snapshot.requests) state.restoreRequest(each);
    for (const block of snapshot.eviction_order) state.noteRelease(block);
    state.now = emptyStep();
    return state;
  }

  // ---- records --------------------------------------------------------------------------------

  apply(record) {
    switch (record.kind) {
      case "request": return this.arrive(record);
      case "abort": return this.end(record.request_id, "abort");
      case "reset": return this.reset();
      case "plan": return this.takePlan(record);
      case "step": return this.takeStep(record);
    }
  }

  arrive(record) {
    this.requests.set(record.request_id, {
      id: record.request_id,
      arrival: record.arrival,
      arrived: record.arrived,
      priority: record.priority ?? 0,
      params: record.params ?? {},
      status: "waiting",
      tokens: record.prompt_token_ids.slice(),
      numTokens: record.prompt_token_ids.length,
      numPrompt: record.prompt_token_ids.length,
      guessed: [], // for each token, whether it was a right guess
      numGuesses: 0, // of its tokens, since this page was opened
      numRight: 0, // number of them that were right
      computed: 0,
      cached: null, // tokens found in the cache when it was first admitted
      preemptions: 0,
      table: [], // for each block's tokens in turn, the block of each group of layers; -1: none
      hashes: [],
      numFindable: 0, // number of hashes, the first ones, by which its blocks were found or stored
      reason: null,
    });
  }

  restoreRequest(saved) {
    this.arrive({ ...saved, prompt_token_ids: saved.token_ids });
    const request = this.requests.get(saved.request_id);
    Object.assign(request, {
      numPrompt: saved.num_prompt_tokens,
      status: saved.status,
      computed: saved.num_computed_tokens,
      cached: saved.status === "running" || saved.num_preemptions ? saved.num_cached_tokens : null,
      preemptions: saved.num_preemptions,
      hashes: saved.block_hashes.slice(),
      numFindable: saved.num_findable_blocks,
    });
    this.take(request, saved.block_table);
    this.write(request, 0, request.computed);
  }

  reset() {
    const { step, time, numEnded } = this;
    Object.assign(this, new EngineState(this.facts), { step, time, numEnded });
  }

  /** Apply the plan of a step that was made while the previous step was running. */
  takePlan(record) {
    const last = this.now;
    this.now = emptyStep();
    this.plan(record);
    this.plans.set(record.step, this.now);
    this.now = last;
  }

  takeStep(record) {
    this.step = record.step;
    this.time = record.started + record.schedule_seconds + record.run_seconds + record.update_seconds;
    const planned = this.plans.get(record.step);
    this.plans.delete(record.step);
    this.now = { ...(planned ?? emptyStep()), record };
    if (!planned) this.plan(record);
    for (const entry of record.scheduled) if (entry.passed_blocks) this.pass(entry);
    for (const entry of record.scheduled) this.update(entry);
    for (const [id, reason] of record.finished.slice(record.num_aborted ?? 0)) this.end(id, reason);
    if (record.num_cached_blocks === 0) this.forgetAll();
    this.prefixQueries = record.prefix_queries;
    this.prefixHits = record.prefix_hits;
  }

  // ---- steps ----------------------------------------------------------------------------------

  plan(record) {
    for (const id of record.preempted ?? []) this.preempt(this.requests.get(id));
    for (const id of record.admitted ?? []) this.now.admitted.push(this.requests.get(id).arrival);
    const evicted = new Set(record.evicted_blocks);
    for (const entry of record.scheduled) this.compute(entry, evicted);
  }

  preempt(request) {
    this.now.preempted.push(request.arrival);
    this.release(request);
    Object.assign(request, { status: "waiting", computed: 0 });
    request.preemptions += 1;
  }

  compute(entry, evicted) {
    const { request_id, start, num_tokens, cached_blocks = [], new_blocks = [] } = entry;
    const request = this.requests.get(request_id);
    const numCached = cached_blocks.length / this.numGroups;
    if (request.status !== "running") request.numFindable = numCached;
    request.status = "running";
    request.cached ??= numCached * this.facts.block_size;
    if (cached_blocks.length) this.share(request, cached_blocks);
    for (const block of new_blocks) if (evicted.has(block)) this.evict(block, request);
    this.take(request, new_blocks);
    request.computed = start + num_tokens;
    this.write(request, start, request.computed);
    this.nameBlocks(request, entry);
    const decodes = start >= request.numPrompt;
    const guesses = entry.num_guesses ?? 0;
    this.now.computed.push({ arrival: request.arrival, start, count: num_tokens, decodes, guesses });
  }

  /** Release blocks that the windows of their groups have passed. */
  pass({ request_id, passed_blocks }) {
    const request = this.requests.get(request_id);
    if (!request) return; // the request was aborted while the step ran
    const passed = new Set(passed_blocks);
    request.table = request.table.map((block) => (passed.has(block) ? -1 : block));
    this.releaseBlocks(passed_blocks);
  }

  /** Apply the results of a step: sampled tokens and hashes. */
  update(entry) {
    const request = this.requests.get(entry.request_id);
    if (!request) return; // the request was aborted while the step ran
    const numRight = rightGuesses(entry);
    for (const [i, token] of (entry.sampled_tokens ?? []).entries()) {
      request.tokens[request.numTokens] = token; // the same whenever this is replayed
      request.guessed[request.numTokens] = i < numRight;
      request.numTokens += 1;
    }
    request.numGuesses += entry.num_guesses ?? 0;
    request.numRight += numRight;
    this.now.right += numRight;
    if (entry.num_rejected) this.reject(request, entry);
    this.nameBlocks(request, entry);
  }

  /** Move the counter back over rejected guesses, and release blocks that hold nothing else. */
  reject(request, { num_rejected, num_freed_blocks = 0 }) {
    request.computed -= num_rejected;
    this.releaseBlocks(request.table.splice(request.table.length - num_freed_blocks));
    const last = request.table.length / this.numGroups - 1;
    const fill = request.computed - last * this.facts.block_size;
    for (const [block] of this.row(request, last)) this.change(block, () => { this.fill[block] = fill; });
  }

  /**
   * Make the request's newly full blocks findable by their hashes: each once, when its tokens are known. A name
   * that is given again would be taken from a request that has got it since.
   */
  nameBlocks(request, { full_hashes = [], first_full = 0 }) {
    const numKnown = Math.floor(Math.min(request.computed, request.numTokens) / this.facts.block_size);
    full_hashes.forEach((hash, i) => {
      if (first_full + i < request.numFindable || first_full + i >= numKnown) return;
      request.hashes[first_full + i] = hash;
      request.numFindable = first_full + i + 1;
      for (const [block, group] of this.row(request, first_full + i)) this.store(block, nameOf(hash, group));
    });
  }

  /** Return the number of blocks in use by each group of layers. */
  heldByGroup() {
    const held = new Array(this.numGroups).fill(0);
    this.references.forEach((count, block) => { if (count) held[this.group[block]] += 1; });
    return held;
  }

  /** Return the blocks for one block's tokens, and the group of layers that each belongs to. */
  row(request, index) {
    const entries = request.table.slice(index * this.numGroups, (index + 1) * this.numGroups);
    return entries.map((block, group) => [block, group]).filter(([block]) => block >= 0);
  }

  end(id, reason) {
    const request = this.requests.get(id);
    request.lastTable = request.table.slice();
    if (reason === "error") this.forget(request);
    this.release(request);
    this.requests.delete(id);
    Object.assign(request, { status: "finished", reason });
    this.ended.push(request);
    this.numEnded += 1;
    if (this.ended.length > 50) this.ended.shift();
    this.now.ended.push({ arrival: request.arrival, reason });
  }

  /** Drop the content of the blocks that the request wrote or found. */
  forget(request) {
    for (let entry = 0; entry < request.numFindable * this.numGroups; entry += 1) {
      const hash = request.hashes[Math.floor(entry / this.numGroups)];
      const held = request.table[entry] ?? -1;
      const block = held >= 0 ? held : this.blockOf.get(nameOf(hash, entry % this.numGroups));
      if (block !== undefined) this.dropContent(block);
    }
  }

  // ---- blocks ---------------------------------------------------------------------------------

  share(request, blocks) {
    for (const block of blocks) if (block >= 0) this.hits[block] += 1;
    this.take(request, blocks);
    const numRows = blocks.length / this.numGroups;
    this.now.found.push({ arrival: request.arrival, numBlocks: numRows });
    for (let index = 0; index < numRows; index += 1) {
      const [first] = this.row(request, index);
      if (first) request.hashes[index] = this.hashes[first[0]].slice(0, HASH_LENGTH);
    }
  }

  /** Append blocks to a request's table. */
  take(request, blocks) {
    for (const block of blocks) {
      const group = request.table.length % this.numGroups;
      request.table.push(block);
      if (block < 0) continue;
      this.group[block] = group;
      this.change(block, () => {
        if (this.references[block] === 0 && this.hashes[block] === null) this.fill[block] = 0;
        this.references[block] += 1;
      });
      this.owner[block] = request.arrival;
    }
  }

  /** Write tokens `start` to `end` of a request to its blocks. */
  write(request, start, end) {
    const size = this.facts.block_size;
    for (let index = Math.floor(start / size); index * size < end; index += 1) {
      const first = Math.max(start - index * size, 0);
      for (const [block] of this.row(request, index)) {
        this.change(block, () => { this.fill[block] = Math.min(end - index * size, size); });
        this.tokens[block] = request.tokens;
        this.offset[block] = index * size;
        this.now.written.set(block, [first, this.fill[block]]);
      }
    }
  }

  /** Make a full block findable by its hash; it replaces an older block with the same hash. */
  store(block, hash) {
    const older = this.blockOf.get(hash);
    if (older !== undefined && older !== block) this.dropContent(older);
    this.name(block, hash);
  }

  name(block, hash) {
    this.change(block, () => { this.hashes[block] = hash; });
    this.blockOf.set(hash, block);
  }

  release(request) {
    this.releaseBlocks(request.table.splice(0).filter((block) => block >= 0));
  }

  releaseBlocks(blocks) {
    for (const block of blocks.slice().reverse()) { // tail first, because the tail is evicted first
      this.change(block, () => {
        this.references[block] -= 1;
        if (this.references[block] === 0 && this.hashes[block] === null) this.fill[block] = 0;
      });
      if (this.kindOf(block) === CACHED) this.noteRelease(block);
    }
  }

  noteRelease(block) {
    this.numReleases += 1;
    this.released[block] = this.numReleases;
    this.firstReleased[block] ||= this.numReleases;
    this.releasedStep[block] = this.step;
  }

  evict(block, request) {
    this.now.evicted.push({
      block,
      releasedStep: this.releasedStep[block],
      hits: this.hits[block],
      owner: this.owner[block],
      newOwner: request.arrival,
    });
    this.dropContent(block);
  }

  dropContent(block) {
    const hash = this.hashes[block];
    if (hash === null) return;
    this.blockOf.delete(hash);
    this.hits[block] = 0;
    this.firstReleased[block] = 0;
    this.change(block, () => {
      this.hashes[block] = null;
      if (this.references[block] === 0) this.fill[block] = 0;
    });
  }

  forgetAll() {
    for (const block of [...this.blockOf.values()]) this.dropContent(block);
  }

  /** Change a block by calling `edit`. All changes of its kind or fill must be made here, to update the counts. */
  change(block, edit) {
    this.weigh(block, -1);
    edit();
    this.weigh(block, 1);
    this.touched.add(block);
  }

  weigh(block, sign) {
    const kind = this.kindOf(block);
    this.counts[kind] += sign;
    if (kind >= REFERENCED) this.filled += sign * this.fill[block];
  }

  // ---- queries --------------------------------------------------------------------------------

  /** Map from hash to block. */
  get blockOf() {
    this.names ??= new Map([...this.hashes.entries()].filter(([, hash]) => hash !== null)
      .map(([block, hash]) => [hash, block]));
    return this.names;
  }

  /** Return the blocks that have changed since the last call. */
  takeTouched() {
    const touched = this.touched;
    this.touched = new Set();
    return touched;
  }

  kindOf(block) {
    const references = this.references[block];
    if (references > 1) return SHARED;
    if (references === 1) return REFERENCED;
    return this.hashes[block] === null ? FREE : CACHED;
  }

  /** Return a negative number if block `a` is evicted before block `b`. For a custom strategy, LRU is assumed. */
  compare(a, b) {
    const keys = { lru: this.released, fifo: this.firstReleased, lfu: this.hits };
    const key = keys[this.facts.eviction_policy] ?? this.released;
    return key[a] - key[b] || this.released[a] - this.released[b];
  }

  /** Return the cached blocks that no request holds, in any order. */
  evictable() { return [...this.blockOf.values()].filter((block) => this.references[block] === 0); }

  /** Return the cached blocks that no request holds, the next one to be evicted first. */
  evictionOrder() { return this.evictable().sort((a, b) => this.compare(a, b)); }

  numEvictedBefore(block) { return this.evictable().filter((each) => this.compare(each, block) < 0).length; }

  inOrder(status) {
    const byPriority = this.facts.scheduling_policy === "priority";
    return [...this.requests.values()]
      .filter((request) => request.status === status)
      .sort((a, b) => (byPriority ? a.priority - b.priority : 0) || a.arrival - b.arrival);
  }

  /** Return a request by its arrival number, if it has not ended or was among the last to end. */
  byArrival(arrival) {
    for (const request of this.requests.values()) if (request.arrival === arrival) return request;
    return this.ended.find((request) => request.arrival === arrival);
  }

  /** Return the requests that have a block in their block tables. */
  ownersOf(block) {
    if (this.references[block] === 0) return [];
    return [...this.requests.values()].filter((request) => request.table.includes(block));
  }

  /** Return the number of slots of all blocks in use (`taken`), and of those that hold no token (`wasted`). */
  waste() {
    const taken = (this.counts[REFERENCED] + this.counts[SHARED]) * this.facts.block_size;
    return { taken, wasted: taken - this.filled };
  }
}

/** Return how many of a request's guesses in a step were right: all of its new tokens but the last one. */
export function rightGuesses({ num_guesses = 0, sampled_tokens = [] }) {
  return num_guesses ? Math.max(sampled_tokens.length - 1, 0) : 0;
}

/** Return the hash of one group's keys and values, given the hash of the tokens. */
function nameOf(hash, group) {
  return group ? hash + group.toString(16).padStart(2, "0") : hash;
}

/** Return a record of what a step did, empty at first. */
function emptyStep() {
  return {
    record: null,
    admitted: [],
    preempted: [],
    computed: [],
    ended: [],
    evicted: [],
    right: 0, // number of right guesses
    found: [],
    written: new Map(), // block -> [first, end) slot
  };
}
