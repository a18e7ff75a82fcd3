"""The real engine on a fake model, and a check of everything that must hold after a step.

The fake model's KV cache holds, in each slot, a fingerprint of the prefix that was computed there:
of the salt and of all tokens up to this one. Whoever reads a slot must find its own prefix in it;
sharing, eviction or reuse gone wrong shows at once. The next token is a function of the prefix
and the seed alone, so that each request's output is known before it runs.
"""

from collections import Counter
from dataclasses import replace
from functools import lru_cache
from zlib import crc32

import numpy as np

from minimal_vllm.cache.block_pool import BlockPool
from minimal_vllm.cache.eviction import EVICTION_STRATEGIES
from minimal_vllm.cache.layer_groups import NO_BLOCK, first_seen_block
from minimal_vllm.config import SchedulerConfig
from minimal_vllm.engine.admission import Admission, ModelLimits
from minimal_vllm.engine.alternating_scheduler import AlternatingScheduler
from minimal_vllm.engine.engine import Engine
from minimal_vllm.engine.output_processor import OutputProcessor
from minimal_vllm.engine.scheduler import SCHEDULING_POLICIES, Scheduler
from minimal_vllm.engine.speculating_scheduler import SpeculatingScheduler
from minimal_vllm.runner.interface import StepResult
from minimal_vllm.runner.plain import Landed
from minimal_vllm.sampling.row import NO_TOKEN
from minimal_vllm.sampling.sampler import Sampled
from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.speculation.interface import CheckedGuesser, Placeholders
from minimal_vllm.step.batch import build_batches
from minimal_vllm.step.plan import Plan
from minimal_vllm.step.request import Status

EOS = 11
VOCAB_SIZE = 12
GARBAGE, SPOILED = -1, -2


@lru_cache(maxsize=1 << 16)
def fingerprints(salt, token_ids):
    """One positive number for each of the prefixes of ``token_ids``."""
    numbers, last = [], crc32(salt)  # hash(bytes) differs between processes
    for token_id in token_ids:
        last = hash((last, token_id)) & 0x7FFF_FFFF_FFFF_FFFF
        numbers.append(last)
    return np.array(numbers)


def next_token(salt, token_ids, seed):
    return hash((int(fingerprints(salt, tuple(token_ids))[-1]), seed)) % VOCAB_SIZE


def expected_output(prompt, salt, seed, params, max_model_len):
    """What a request gives that nobody disturbs: its tokens, and why it ends."""
    tokens = list(prompt)
    while True:
        tokens.append(next_token(salt, tokens, seed))
        if tokens[-1] == EOS and not params.ignore_eos:
            return tokens[len(prompt) :], "stop"
        if len(tokens) - len(prompt) == params.max_tokens or len(tokens) == max_model_len:
            return tokens[len(prompt) :], "length"


class CrashError(RuntimeError):
    """What the fake device is made to raise."""


class FakeRunner:
    def __init__(self, num_blocks, block_size, windows, runs_ahead):
        self.runs_ahead = runs_ahead
        self.block_size = block_size
        self.windows = windows
        self.slots = np.full(num_blocks * block_size, GARBAGE)
        self.plan = None
        self.guesser = None
        self.sampled = {}
        self.lost = set()
        self.bug = None
        self.crashes = False
        self.poisons = False

    def launch(self, plan):
        try:
            return Landed(self._run(plan))
        except Exception as error:
            if not isinstance(error, CrashError):
                self.bug = error  # the engine takes it for a failure of the device
            raise

    def _run(self, plan):
        if self.guesser is not None:
            self._draft(plan)
        # As on a GPU, where positions and tokens are read that the engine does not know yet.
        plan = Plan([self._located(entry) for entry in plan.scheduled])
        self.plan = plan
        batches = build_batches(plan, self.block_size, len(self.windows))
        batch, slots = batches[0], np.concatenate([each.slot_mapping for each in batches])
        num_tokens = sum(entry.num_new for entry in plan.scheduled)
        assert len(set(slots.tolist())) == num_tokens * len(batches), "written twice"
        if self.crashes:
            self.crashes = False
            self.slots[slots] = GARBAGE
            raise CrashError("out of memory")
        texts = [[*self._known(entry), *entry.guesses] for entry in plan.scheduled]
        prefixes = [
            fingerprints(entry.request.cache_salt, tuple(text))
            for entry, text in zip(plan.scheduled, texts, strict=True)
        ]
        for group, each in enumerate(batches):
            self._write(plan, each, prefixes, group)
        for group, each in enumerate(batches):
            for row, entry in enumerate(plan.scheduled):
                self._read(entry, self._slots(each, row, entry.start, group), prefixes[row], group)
        sampled = [
            self._verify(entry, text)
            for entry, text in zip(plan.scheduled, texts, strict=True)
            if entry.num_logits
        ]
        # A step ahead may compute a request that has ended: nobody will look at its token.
        if self.poisons and sampled and EOS not in self.sampled.get(batch.sampling[0], []):
            self.poisons = False
            self._spoil(plan, batch.sampling[0])
        sampled = [
            [] if request in self.lost else tokens
            for request, tokens in zip(batch.sampling, sampled, strict=True)
        ]
        self.sampled = {
            request: tokens or [NO_TOKEN]
            for request, tokens in zip(batch.sampling, sampled, strict=True)
        }
        return StepResult(Sampled(sampled, [None] * len(sampled)), [])

    def _known(self, entry):
        """The request's tokens, with those that the engine does not know yet."""
        request = entry.request
        pending = request.num_pending_tokens - entry.num_logits  # this step is in flight itself
        return (*request.token_ids, *(self.sampled[request] if pending else []))

    def _draft(self, plan):
        """Guess in the places that the plan has for it, behind what only the runner knows."""
        for entry in plan.scheduled:
            if entry.guesses:
                text = self._known(entry)
                count = len(entry.guesses)
                entry.guesses = self.guesser.follow(entry.request, text, count)[:count]

    def follows(self, request_id):
        """Whether the newest step follows guesses of the request."""
        entries = self.plan.scheduled if self.plan else ()
        return request_id in (each.request.request_id for each in entries if each.follows_guesses)

    def _located(self, entry):
        """The entry where its request really stands, if guesses before it did not all hold."""
        if not entry.follows_guesses:
            return entry
        return replace(entry, start=len(self._known(entry)) - 1)

    def _verify(self, entry, tokens):
        """What the logits give: the right guesses, and the token behind them."""
        request, sampled = entry.request, []
        for length in range(len(tokens) - entry.num_logits + 1, len(tokens) + 1):
            sampled.append(next_token(request.cache_salt, tokens[:length], request.seed))
            if tokens[length : length + 1] != sampled[-1:]:
                break
        return sampled

    def _read(self, entry, slots, prefixes, group):
        request, end = entry.request, entry.start + entry.num_new
        seen, expected = self.slots[slots], prefixes[end - len(slots) : end] ^ group
        if SPOILED in seen and self.runs_ahead:
            # Planned before anyone knew that what it shares is nonsense; so is all it computes.
            self.lost.add(request)
            self.slots[slots[seen != expected]] = SPOILED
        else:
            assert seen.tolist() == expected.tolist(), f"{request.request_id} reads others"

    def _write(self, plan, batch, prefixes, group):
        for row, entry in enumerate(plan.scheduled):
            start, end = batch.query_starts[row : row + 2]
            positions = batch.positions[start:end]
            assert positions.tolist() == list(range(entry.start, entry.start + entry.num_new))
            known = np.array(entry.request.token_ids)
            if not entry.follows_guesses:
                # 0 for what the engine does not know.
                inputs = np.append(known, [*entry.guesses, 0])[positions]
                assert batch.input_ids[start:end].tolist() == inputs.tolist()
            self.slots[batch.slot_mapping[start:end]] = prefixes[row][positions] ^ group

    def _slots(self, batch, row, start, group):
        """The slots that the layers' window sees from the position ``start`` on."""
        window = self.windows[group]
        first = 0 if window is None else max(start - window + 1, 0)
        positions = np.arange(first, batch.seq_lens[row])
        blocks = batch.block_tables[row][positions // self.block_size]
        assert (blocks >= 0).all(), "a block was released too early"
        return blocks * self.block_size + positions % self.block_size

    def _spoil(self, plan, request):
        """The request computed nonsense: so it is in all blocks that are its alone."""
        self.lost.add(request)
        owners = Counter(block for entry in plan.scheduled for block in entry.request.block_table)
        for block in request.block_table:
            if owners[block] == 1 and block != NO_BLOCK:
                self.slots[block * self.block_size : (block + 1) * self.block_size] = SPOILED


class FakeGuesser:
    """Guesses of which the first few are right, and now and then what no guesser should do."""

    def propose(self, entries, counts):
        if sum(entries[0].request.token_ids) % 7 == 6:
            raise RuntimeError("no idea")
        pairs = zip(entries, counts, strict=True)
        return [self._guess(entry.request, count) for entry, count in pairs]

    def _guess(self, request, count):
        return self.follow(request, request.token_ids.tolist(), count)

    def follow(self, request, text, count):
        """Guesses behind a text of the request."""
        tokens = list(text)
        num_right = sum(tokens) % (count + 2)
        guesses = []
        for index in range(count + sum(tokens) % 3):  # sometimes more than asked for
            token = next_token(request.cache_salt, tokens + guesses, request.seed)
            guesses.append(token if index < num_right else (token + 1) % (VOCAB_SIZE + 1))
        return guesses

    def forget(self, request):
        pass


def guessing_scheduler(config, pool):
    """A scheduler for which guesses cost nothing, so that it always makes some."""
    guesser = CheckedGuesser(FakeGuesser(), VOCAB_SIZE)
    return SpeculatingScheduler(config, pool, guesser, 3, clock=lambda: 0.0)


def alternating_scheduler(config, pool):
    """A scheduler that waits for tokens where guesses seem to pay, and runs ahead elsewhere."""
    guesser = CheckedGuesser(FakeGuesser(), VOCAB_SIZE)
    return AlternatingScheduler(config, pool, guesser, 3, max_step_tokens=9, clock=lambda: 0.0)


def drafting_scheduler(config, pool):
    """A scheduler for a model that guesses on the GPU, which may follow guesses with guesses."""
    options = {"in_passes": True, "may_follow": True, "clock": lambda: 0.0}
    return AlternatingScheduler(config, pool, Placeholders(), 3, max_step_tokens=9, **options)


class Traffic:
    """An engine on the fake model; ``step`` also checks all invariants."""

    def __init__(
        self,
        num_blocks,
        eviction="lru",
        async_scheduling=False,
        observers=(),
        scheduler=Scheduler,
        block_pool=BlockPool,
        runner=FakeRunner,
        **config,
    ):
        self.config = SchedulerConfig(**config)
        self.pool = block_pool(num_blocks, EVICTION_STRATEGIES[eviction]())
        self.scheduler = scheduler(self.config, self.pool)
        self.runner = runner(
            num_blocks, self.config.block_size, self.config.windows, async_scheduling
        )
        if type(getattr(self.scheduler, "guesser", None)) is Placeholders:
            self.runner.guesser = FakeGuesser()
        self.records = []
        self.engine = Engine(
            self.scheduler,
            self.runner,
            Admission(ModelLimits(VOCAB_SIZE, frozenset({EOS}), -1), None, seed=0),
            OutputProcessor(None),
            [self.records.append, *observers],
            async_scheduling=async_scheduling,
        )
        self.schedule, self.scheduler.schedule = self.scheduler.schedule, self._checked_schedule
        self.plan = None
        self.runs_ahead = async_scheduling
        self.asked = {}
        self.requests = {}
        self.ended = {}
        self.events = Counter()

    # ---- what users do --------------------------------------------------------------------------

    def add(self, prompt, name=None, salt=None, priority=0, **params):
        """Add a request; its id, or None if it is rightly refused."""
        request_id = name or str(len(self.asked))
        params = SamplingParams(**{"seed": 0, **params})
        refused = not 0 < len(prompt) < self.config.max_model_len
        priority = priority if self.config.policy == "priority" else 0
        try:
            self.engine.add_request(request_id, prompt, params, priority=priority, cache_salt=salt)
        except ValueError:
            assert refused
            self.events["refused"] += 1
            return None
        assert not refused
        self.asked[request_id] = (list(prompt), (salt or "").encode(), params)
        self.requests[request_id] = self.engine._outputs.requests(request_id)
        return request_id

    def abort(self, request_id):
        for request in self.requests[request_id]:
            self.events[f"aborted while {self._state(request)}"] += 1
        output = self.engine.abort(request_id)
        if output is not None:
            self._end(output)
        self.scheduler.check()

    @staticmethod
    def _state(request):
        if request.status is not Status.RUNNING:
            is_preempted = request.status is Status.WAITING and request.num_preemptions
            return "preempted" if is_preempted else request.status.value
        return "decoding" if request.num_output_tokens else "computing its prompt"

    def crash_next_step(self):
        self.runner.crashes = True

    def poison_next_step(self):
        self.runner.poisons = True

    def request(self, request_id):
        """The scheduler's request of this id, which has no ``n``."""
        return self.requests[request_id][0]

    def live(self):
        """All requests that have not ended, in the order in which they should be served."""
        requests = [each for group in self.requests.values() for each in group if not each.finished]
        return sorted(requests, key=SCHEDULING_POLICIES[self.config.policy])

    # ---- steps ----------------------------------------------------------------------------------

    def step(self):
        """One step of the engine; the last plan that was made in it."""
        crashes = self.runner.crashes
        outputs = self.engine.step()
        if self.runner.bug is not None:
            raise self.runner.bug
        if crashes and not self.runner.crashes:
            self.events["crashed"] += 1
            assert self.runs_ahead or self.pool.num_cached == 0
        for output in outputs:
            if output.finished:
                self._end(output)
        self._count_guesses()
        self.scheduler.check()
        self._check_windows()
        return self.plan

    def _count_guesses(self):
        for entry in self.records[-1].scheduled if self.records else ():
            self.events["several tokens in a step"] += len(entry.sampled_tokens) > 1
            self.events["rejected"] += entry.num_rejected > 0
            self.events["blocks freed"] += entry.num_freed_blocks > 0
            follows = self.runner.follows(entry.request_id)
            self.events["freed although a step followed"] += entry.num_freed_blocks and follows
            self.events["passed by a window"] += len(entry.passed_blocks)

    def _check_windows(self):
        """Nothing is held that a window has passed; later tokens may still be guesses."""
        if self.runs_ahead or isinstance(self.scheduler, SpeculatingScheduler):
            return
        for request in self.scheduler.running:
            for group, window in enumerate(self.config.windows):
                column = request.block_table[group :: len(self.config.windows)]
                first = first_seen_block(
                    request.num_computed_tokens, window, self.config.block_size
                )
                assert column.count(NO_BLOCK) == first, "a block behind the window is held"

    def _checked_schedule(self):
        running, free = list(self.scheduler.running), self.pool.num_free
        awaiting = [each for each in running if each.awaits_its_end]
        missing = sum(
            self.config.blocks_for(request.num_planned_tokens) * len(self.config.windows)
            - len(request.block_table)
            for request in running
            if request not in awaiting
        )
        pending = {request for request in running if request.num_pending_tokens}
        self.plan = plan = self.schedule()
        self.events["planned while a token was pending"] += sum(
            entry.request in pending for entry in plan.scheduled
        )
        self.events["preempted while guesses were pending"] += sum(
            request.num_pending_tokens > 1 for request in plan.preempted
        )
        self.events["preempted while a token was pending"] += sum(
            request in pending for request in plan.preempted
        )
        self._check_plan(plan, running, awaiting)
        assert missing > free or not plan.preempted, "preempted while there was room for all"
        self._count_events(plan)
        return plan

    def _check_plan(self, plan, running, awaiting):
        num_tokens = sum(entry.num_new for entry in plan.scheduled)
        assert num_tokens <= self.config.max_num_batched_tokens
        assert num_tokens > 0 or awaiting or not self.live()
        assert len(plan.scheduled) <= self.config.max_num_seqs
        assert all(entry.num_new > 0 for entry in plan.scheduled)
        assert plan.preempted == running[::-1][: len(plan.preempted)], "not from the back"
        stayed = running[: len(running) - len(plan.preempted)]
        stayed = [request for request in stayed if request not in awaiting]
        scheduled = [entry.request for entry in plan.scheduled]
        assert scheduled == stayed + plan.admitted, "a running request was passed over"
        assert not (plan.preempted and plan.admitted)
        for entry in plan.scheduled:
            length = entry.request.num_planned_tokens - entry.num_logits
            end = entry.start + entry.num_new - max(entry.num_logits - 1, 0)  # without guesses
            assert bool(entry.num_logits) == (end == length)
            assert entry.num_logits or self.config.enable_chunked_prefill
        key = SCHEDULING_POLICIES[self.config.policy]
        waiting = [each for each in self.live() if each.status is Status.WAITING]
        if plan.admitted and waiting:
            assert key(plan.admitted[-1]) < key(waiting[0]), "one waits who should go first"
        assert self.scheduler.waiting == waiting

    def _count_events(self, plan):
        self.events["evicted"] += len(plan.evicted)
        self.events["preempted"] += len(plan.preempted)
        self.events["guessed"] += sum(entry.num_logits > 1 for entry in plan.scheduled)
        for entry in plan.scheduled:
            if entry.follows_guesses:
                self.events["followed guesses"] += entry.num_logits > 1
                self.events["followed without guesses"] += entry.num_logits == 1
        self.events["chunked"] += sum(not entry.num_logits for entry in plan.scheduled)
        self.events["cached"] += sum(bool(entry.cached_blocks) for entry in plan.scheduled)
        fresh = {block for entry in plan.scheduled for block in entry.new_blocks}
        self.events["shared in the step that computes it"] += sum(
            not fresh.isdisjoint(entry.cached_blocks) for entry in plan.scheduled
        )

    def _end(self, output):
        assert output.request_id not in self.ended, "it ended twice"
        self.ended[output.request_id] = output
        prompt, salt, params = self.asked[output.request_id]
        for completion in output.outputs:
            token_ids, reason = expected_output(
                prompt, salt, params.seed + completion.index, params, self.config.max_model_len
            )
            self.events[f"ended by {completion.finish_reason}"] += 1
            if completion.finish_reason in ("abort", "error"):
                assert completion.token_ids == token_ids[: len(completion.token_ids)]
            else:
                assert (completion.token_ids, completion.finish_reason) == (token_ids, reason)

    def run(self, max_steps=10_000):
        """Step until all requests have ended; check that each has, and that nothing leaked."""
        for _ in range(max_steps):
            if not self.engine.has_unfinished_requests:
                break
            self.step()
        assert self.ended.keys() == self.asked.keys()
        assert self.pool.num_free == self.pool.num_blocks
        self.pool.check([])
