"""Each mistake in a router that knows prefixes is found, and for its real reason."""

from types import SimpleNamespace

import pytest

from minimal_vllm.routing import MIN_MATCH, LeastLoaded, PrefixAware
from minimal_vllm_lab.learn import check_routes as rules


def router(**methods):
    return type("MyRouter", (PrefixAware,), methods)


def picks_by_load(self, request):
    chosen = LeastLoaded.pick(self, request)
    self._remember(request.block_hashes, chosen)
    return chosen


def keeps_the_first_holder(self, hashes):
    holders, count = PrefixAware._longest_match(self, hashes)
    return holders[:1], count


def forgets_for_all(self, _replica, hashes):
    for block_hash in hashes:
        self._holders.pop(block_hash, None)


def forgets_the_first(self, replica, hashes):
    for block_hash in hashes:
        holders = self._holders.get(block_hash, ())
        self._holders[block_hash] = holders[1:] if replica in holders else holders


def forgets_all_of_the_replica(self, replica, _hashes):
    PrefixAware.forget(self, replica, list(self._holders))


def matches_the_first_block_only(self, hashes):
    return PrefixAware._longest_match(self, hashes[:1])


def matches_over_holes(self, hashes):
    held = [self._holders.get(each, ()) for each in hashes]
    found = [index for index, each in enumerate(held) if each]
    return (held[found[-1]], found[-1] + 1) if found else ((), 0)


def matches_the_last_block_s_holders(self, hashes):
    """Return holders of the last block found, whether or not they hold those before it."""
    longest, count = (), 0
    for block_hash in hashes:
        if not self._holders.get(block_hash):
            break
        longest, count = self._holders[block_hash], count + 1
    return longest, count


def matches_all_who_hold_something(self, hashes):
    count = PrefixAware._longest_match(self, hashes)[1]
    return self._holders.get(hashes[0], ()) if hashes else (), count


def counts_a_block_too_many(self, hashes):
    holders, count = PrefixAware._longest_match(self, hashes)
    return holders, count + bool(count)


def remembers_one_holder(self, hashes, replica):
    for block_hash in hashes:
        self._holders[block_hash] = (replica,)


def remembers_the_first_holder(self, hashes, replica):
    for block_hash in hashes:
        self._holders.setdefault(block_hash, (replica,))


def remembers_the_last_block(self, hashes, replica):
    PrefixAware._remember(self, hashes[-1:], replica)


def remembers_all_but_the_last_block(self, hashes, replica):
    PrefixAware._remember(self, hashes[:-1], replica)


def remembers_all_replicas(self, hashes, _replica):
    for each in self.loads:
        PrefixAware._remember(self, hashes, each)


MISTAKES = [
    ("LONGEST", {"pick": picks_by_load}),
    ("LONGEST", {"_longest_match": keeps_the_first_holder}),
    ("LONGEST", {"_longest_match": matches_the_first_block_only}),
    ("FORGOTTEN", {"_longest_match": matches_over_holes}),
    ("FORGOTTEN", {"_longest_match": matches_the_last_block_s_holders}),
    ("LONGEST", {"_longest_match": matches_all_who_hold_something}),
    ("LONGEST", {"_longest_match": lambda _self, _hashes: ((), 0)}),
    ("LONGEST", {"_remember": lambda _self, _hashes, _replica: None}),
    ("LONGEST", {"_remember": remembers_one_holder}),
    ("LONGEST", {"_remember": remembers_the_first_holder}),
    ("LONGEST", {"_remember": remembers_the_last_block}),
    ("LONGEST", {"_remember": remembers_all_but_the_last_block}),
    ("LONGEST", {"_remember": remembers_all_replicas}),
    ("LONGEST", {"forget": forgets_for_all}),
    ("LONGEST", {"forget": forgets_all_of_the_replica}),
    ("LONGEST", {"_is_unbalanced": lambda self: max(self.loads.values()) > 0}),
    ("LONGEST", {"_is_unbalanced": lambda _: True}),
    ("BALANCE", {"_is_unbalanced": lambda _: False}),
    ("SHORT", {"_longest_match": counts_a_block_too_many}),
    ("FORGOTTEN", {"forget": lambda _self, _replica, _hashes: None}),
    ("LONGEST", {"forget": forgets_the_first}),
]


def test_the_engine_s_router_passes():
    assert rules.check_routes(SimpleNamespace(MyRouter=PrefixAware)) is None


def test_the_cases_contain_a_prefix_on_each_side_of_the_threshold():
    shares = {len(one) / len(two) for one in rules.PROMPTS for two in rules.PROMPTS}
    assert min(shares) < MIN_MATCH < max(shares)


@pytest.mark.breaks("prefix-router")
@pytest.mark.parametrize(("rule", "methods"), MISTAKES)
def test_a_wrong_router_is_found(rule, methods):
    found = rules.check_routes(SimpleNamespace(MyRouter=router(**methods)))
    assert found.rule is getattr(rules, rule)
