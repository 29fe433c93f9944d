"""The blocks of the key-value cache: who holds them, and which hold what another sequence can use. No torch here."""

from array import array
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable, Sequence

# Tokens per block. Smaller shares more of a prefix, larger makes tables shorter and copies longer.
BLOCK_SIZE = 16


def blocks_for(tokens: int) -> int:
    """Return how many blocks hold so many tokens."""
    return -(-tokens // BLOCK_SIZE)


class _Node:
    """A published block in the tree; ``key`` is its place among its parent's children."""

    __slots__ = ("block", "children", "key", "parent")

    def __init__(self, block: int, parent: "_Node | None", key: tuple[object, ...]) -> None:
        self.block = block
        self.parent = parent
        self.key = key
        self.children: dict[tuple[object, ...], _Node] = {}


class BlockPool:
    """Hands out blocks 1 to ``blocks`` - 1; block 0 belongs to nobody, stays zero, and pads block tables.

    A table is the blocks of one sequence in order. A full block that has been computed is *published*: it enters a tree
    in which each block stands under the one before it, so that a sequence with the same tokens and adapter finds it.
    Nodes are found by the hash of their tokens and compared by the tokens themselves, so equal hashes do no harm.

    A published block that nobody holds stays until its place is needed, the least recently used going first. Who holds
    a block holds all those before it and lets go of them last, so the one that goes first is always a leaf.

    Args:
        blocks: how many there are, block 0 included; at least 2.
        reuse: whether blocks are published at all.
    """

    def __init__(self, blocks: int, *, reuse: bool = True) -> None:
        assert blocks >= 2
        self.blocks = blocks
        self._reuse = reuse
        self._holders = [0] * blocks
        self._free = list(range(blocks - 1, 0, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._nodes: dict[int, _Node] = {}
        self._root = _Node(0, None, ())
        self._tainted: set[int] = set()
        self._to_wipe: list[int] = []

    @property
    def available(self) -> int:
        """Blocks that can be had now, those included that still hold what somebody might use."""
        return len(self._free) + len(self._idle)

    def take(self) -> int:
        """Return a block for its only holder; there must be one available. What is in it is finite."""
        block = self._free.pop() if self._free else self._evict()
        self._holders[block] = 1
        return block

    def share(self, block: int) -> None:
        """Become one more holder of a published block."""
        if not self._holders[block]:
            del self._idle[block]
        self._holders[block] += 1

    def replace(self, table: "array[int]", index: int, block: int) -> None:
        """Hold a published block at a table's ``index`` instead of the one there."""
        self.share(block)
        self._let_go(table[index])
        table[index] = block

    def release(self, table: "array[int]", keep: int = 0) -> None:
        """Let go of a table's blocks but for the first ``keep``, and take them out of it."""
        for block in reversed(table[keep:]):
            self._let_go(block)
        del table[keep:]

    def discard(self, table: "array[int]") -> None:
        """Let go of a table that may hold what is not finite: nobody will find its blocks, nor what follows them."""
        for block in table:
            if block in self._nodes:
                self._unpublish(self._nodes[block])
            self._tainted.add(block)
        self.release(table)

    def find(self, table: Sequence[int], done: int, tokens: Sequence[int], adapter: str | None) -> list[int]:
        """Return the published blocks that go on where the first ``done`` blocks of ``table`` end.

        They never reach the last token, because somebody has to compute what comes after it.
        """
        node = self._after(table, done)
        found = []
        for index in range(done, (len(tokens) - 1) // BLOCK_SIZE):
            node = node and node.children.get(_key(tokens, index, adapter))
            if node is None:
                break
            found.append(node.block)
        return found

    def place(self, table: Sequence[int], done: int, tokens: Sequence[int], adapter: str | None) -> object | None:
        """Return what is equal for sequences whose next block, after ``done``, would be one; None if none could be."""
        node = self._after(table, done) if done < (len(tokens) - 1) // BLOCK_SIZE else None
        return node and (node.block, _key(tokens, done, adapter))

    def publish(self, table: "array[int]", tokens: Sequence[int], adapter: str | None, *, start: int, end: int) -> None:
        """Publish what is full among a table's blocks, of which tokens ``start`` to ``end`` were computed just now.

        A block whose like is there already is given up for that one.
        """
        parent = self._after(table, start // BLOCK_SIZE)
        for index in range(start // BLOCK_SIZE, end // BLOCK_SIZE):
            if parent is None:
                return
            key = _key(tokens, index, adapter)
            node = parent.children.get(key)
            if node is None:
                node = parent.children[key] = self._nodes[table[index]] = _Node(table[index], parent, key)
            elif node.block != table[index]:
                self.replace(table, index, node.block)
            parent = node

    def forget(self, adapter: str) -> None:
        """Free what was computed with an adapter, which no sequence may use any more."""
        for key, node in list(self._root.children.items()):
            if key[0] == adapter:
                self._unpublish(node, tainted=False)

    def idle_among(self, blocks: Iterable[int]) -> int:
        """Return how many of these nobody holds."""
        return sum(not self._holders[block] for block in blocks)

    def held_only_by(self, tables: Iterable[Sequence[int]], besides: Collection[int]) -> int:
        """Return how many blocks would become available if ``tables`` were released, those ``besides`` not counted."""
        held = Counter(block for table in tables for block in table)
        return sum(holders == self._holders[block] and block not in besides for block, holders in held.items())

    def collect_wiped(self) -> tuple[int, ...]:
        """Return, once, the blocks that have to be overwritten with zeros before the next step."""
        wiped = tuple(self._to_wipe)
        self._to_wipe.clear()
        return wiped

    def check(self, tables: Iterable[Sequence[int]]) -> None:
        """Assert that every block is in one place and that ``tables``, all there are, account for every holder."""
        held = Counter(block for table in tables for block in table)
        assert [held[block] for block in range(self.blocks)] == self._holders
        assert sorted([*self._free, *self._idle, *held]) == list(range(1, self.blocks))
        # A shared block is published, or was until one of its holders failed.
        shared = {block for block, holders in held.items() if holders > 1}
        assert self._nodes.keys() >= self._idle.keys() and self._nodes.keys() | self._tainted >= shared
        assert not self._tainted & self._nodes.keys() and self._tainted <= held.keys()
        assert set(self._to_wipe) <= set(self._free)
        ages = {block: age for age, block in enumerate(self._idle)}
        for block, node in self._nodes.items():
            parent = node.parent
            assert parent and node.block == block and parent.children[node.key] is node
            assert parent is self._root or self._nodes[parent.block] is parent
            assert parent.block not in ages or ages.get(block, len(ages)) < ages[parent.block]
        for table in tables:
            assert len(set(table)) == len(table)
            published = [block in self._nodes for block in table]
            assert published == sorted(published, reverse=True)

    def _after(self, table: Sequence[int], done: int) -> _Node | None:
        """Return the node under which the block after ``done`` stands, None where it has no place in the tree."""
        if not self._reuse:
            return None
        return self._nodes.get(table[done - 1]) if done else self._root

    def _let_go(self, block: int) -> None:
        self._holders[block] -= 1
        if self._holders[block]:
            return
        if block in self._nodes:
            self._idle[block] = None
        else:
            self._recycle(block)

    def _recycle(self, block: int) -> None:
        if block in self._tainted:
            self._tainted.remove(block)
            self._to_wipe.append(block)
        self._free.append(block)

    def _evict(self) -> int:
        block, _ = self._idle.popitem(last=False)
        node = self._nodes.pop(block)
        assert node.parent and not node.children
        del node.parent.children[node.key]
        return block

    def _unpublish(self, node: _Node, *, tainted: bool = True) -> None:
        assert node.parent
        del node.parent.children[node.key]
        below = [node]
        while below:
            node = below.pop()
            below += node.children.values()
            del self._nodes[node.block]
            if tainted:
                self._tainted.add(node.block)
            if node.block in self._idle:
                del self._idle[node.block]
                self._recycle(node.block)


def _key(tokens: Sequence[int], index: int, adapter: str | None) -> tuple[object, ...]:
    own = tuple(tokens[index * BLOCK_SIZE : (index + 1) * BLOCK_SIZE])
    return own if index else (adapter, *own)
