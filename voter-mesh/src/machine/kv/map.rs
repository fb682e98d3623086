//! The map under `kv`: ordered, and copied by counting. A copy shares all nodes; a write copies those on its way that are shared, and
//! changes the others in place.
//!
//! It is a B+ tree of its own because state machines are mostly rebuilt in order: a [`Builder`] fills every node and searches nothing,
//! where a general map leaves them half empty and searches its way down for each key.
//! All leaves are equally deep; it never balances more than that: a node that has become small joins a neighbour if both fit into one.

use std::fmt;
use std::mem;
use std::ops::{Bound, RangeBounds};
use std::slice;
use std::sync::Arc;

use super::KvValue;
use super::key::{Key, Sought};

/// Entries of a node at most: more make the tree flatter, fewer make a write while an image is held cheaper.
const FULL: usize = 32;
/// A node with fewer looks for a neighbour to join.
const SPARSE: usize = FULL / 4;

#[derive(Clone)]
enum Node {
    Leaf(Vec<(Key, KvValue)>),
    /// Children, each behind a key that none of its own is below and all of those before it are; what stands before the first counts
    /// for nothing. Never empty.
    Branch(Vec<(Key, Arc<Self>)>),
}

/// A node that goes behind the one it was split from, and the key before it.
type Split = Option<(Key, Arc<Node>)>;

/// See the module.
#[derive(Clone)]
pub(super) struct KeyMap {
    root: Arc<Node>,
    len: usize,
}

impl Default for KeyMap {
    fn default() -> Self {
        Self { root: Arc::new(Node::Leaf(Vec::new())), len: 0 }
    }
}

impl PartialEq for KeyMap {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.range(..).eq(other.range(..))
    }
}

impl Eq for KeyMap {}

impl fmt::Debug for KeyMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.range(..)).finish()
    }
}

/// Which child a key belongs to.
fn place(children: &[(Key, Arc<Node>)], key: &Sought<'_>) -> usize {
    children[1..].partition_point(|(first, _)| key.order(first).is_le())
}

/// Where in a leaf a key stands, or would.
fn find(entries: &[(Key, KvValue)], key: &Sought<'_>) -> Result<usize, usize> {
    entries.binary_search_by(|(other, _)| key.order(other))
}

/// Puts an item into a node's list; what does not fit goes into a list behind it. At the end of a full list that is the item alone, so
/// keys that come in order fill the nodes.
fn put<T>(items: &mut Vec<T>, at: usize, item: T) -> Option<Vec<T>> {
    if items.len() < FULL {
        items.insert(at, item);
        return None;
    }
    let mut right = Vec::with_capacity(FULL);
    if at == FULL {
        right.push(item);
        return Some(right);
    }
    right.extend(items.drain(FULL / 2..));
    if at <= FULL / 2 {
        items.insert(at, item)
    } else {
        right.insert(at - FULL / 2, item)
    }
    Some(right)
}

impl Node {
    const fn len(&self) -> usize {
        match self {
            Self::Leaf(entries) => entries.len(),
            Self::Branch(children) => children.len(),
        }
    }

    /// Whether the key is new, and what was split off.
    fn insert(&mut self, key: &Sought<'_>, value: KvValue) -> (bool, Split) {
        match self {
            Self::Leaf(entries) => match find(entries, key) {
                Ok(at) => {
                    entries[at].1 = value;
                    (false, None)
                }
                Err(at) => {
                    (true, put(entries, at, (Key::new(key.bytes()), value)).map(|right| Self::Leaf(right).behind_its_first()))
                }
            },
            Self::Branch(children) => {
                let at = place(children, key);
                let (is_new, split) = Arc::make_mut(&mut children[at].1).insert(key, value);
                let split = split.and_then(|child| put(children, at + 1, child));
                (is_new, split.map(|right| Self::Branch(right).behind_its_first()))
            }
        }
    }

    /// As a child, which is never empty.
    fn behind_its_first(self) -> (Key, Arc<Self>) {
        let first = match &self {
            Self::Leaf(entries) => entries[0].0.clone(),
            Self::Branch(children) => children[0].0.clone(),
        };
        (first, Arc::new(self))
    }

    /// Whether the key was there.
    fn remove(&mut self, key: &Sought<'_>) -> bool {
        match self {
            Self::Leaf(entries) => find(entries, key).is_ok_and(|at| {
                entries.remove(at);
                true
            }),
            Self::Branch(children) => {
                let at = place(children, key);
                let was_there = Arc::make_mut(&mut children[at].1).remove(key);
                if was_there && children[at].1.len() < SPARSE {
                    Self::join(children, at);
                }
                was_there
            }
        }
    }

    /// Joins the child at `at` with a neighbour, if there is one and they fit into one node.
    fn join(children: &mut Vec<(Key, Arc<Self>)>, at: usize) {
        let fits = |left: usize| match children.get(left..left + 2) {
            Some([(_, left), (_, right)]) => left.len() + right.len() <= FULL,
            _ => false,
        };
        let Some(left) = [Some(at), at.checked_sub(1)].into_iter().flatten().find(|left| fits(*left)) else { return };
        let (first, right) = children.remove(left + 1);
        match (Arc::make_mut(&mut children[left].1), Arc::unwrap_or_clone(right)) {
            (Self::Leaf(left), Self::Leaf(right)) => left.extend(right),
            (Self::Branch(left), Self::Branch(mut right)) => {
                right[0].0 = first;
                left.extend(right);
            }
            _ => unreachable!("all leaves are equally deep"),
        }
    }
}

impl KeyMap {
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<&KvValue> {
        let (mut node, key) = (&*self.root, Sought::new(key));
        loop {
            match node {
                Node::Branch(children) => node = &children[place(children, &key)].1,
                Node::Leaf(entries) => return Some(&entries[find(entries, &key).ok()?].1),
            }
        }
    }

    pub(super) fn insert(&mut self, key: &[u8], value: KvValue) {
        let (is_new, split) = Arc::make_mut(&mut self.root).insert(&Sought::new(key), value);
        self.len += usize::from(is_new);
        if let Some(right) = split {
            let left = (Key::new(&[]), Arc::clone(&self.root));
            self.root = Arc::new(Node::Branch(vec![left, right]));
        }
    }

    /// Whether the key was there.
    pub(super) fn remove(&mut self, key: &[u8]) -> bool {
        // Not on the way: what is not there must not cost a copy of what is shared.
        if self.get(key).is_none() {
            return false;
        }
        let root = Arc::make_mut(&mut self.root);
        root.remove(&Sought::new(key));
        self.len -= 1;
        if let Node::Branch(children) = root
            && children.len() == 1
            && let Some((_, only)) = children.pop()
        {
            self.root = only;
        }
        true
    }

    /// Ascending.
    pub(super) fn range<'a>(&'a self, keys: impl RangeBounds<[u8]> + 'a) -> impl Iterator<Item = (&'a [u8], &'a KvValue)> {
        let mut range = Range { above: Vec::new(), entries: [].iter() };
        range.descend(&self.root, keys.start_bound());
        range.take_while(move |(key, _)| keys.contains(*key))
    }
}

/// Makes a map of keys that come in order. All nodes are full but the last ones.
#[derive(Default)]
pub(super) struct Builder {
    len: usize,
    leaf: Vec<(Key, KvValue)>,
    /// The nodes above it that have no parent yet, by their height; at least one and at most [`FULL`] of each.
    levels: Vec<Vec<(Key, Arc<Node>)>>,
}

impl Builder {
    /// Adds a key above all others; false, and nothing has changed, if it is not.
    #[must_use]
    pub(super) fn push(&mut self, key: Key, value: KvValue) -> bool {
        if self.leaf.last().is_some_and(|(last, _)| last.bytes() >= key.bytes()) {
            return false;
        }
        if self.leaf.len() == FULL {
            let full = mem::take(&mut self.leaf);
            self.put(0, Node::Leaf(full));
        }
        if self.leaf.is_empty() {
            self.leaf.reserve_exact(FULL);
        }
        self.leaf.push((key, value));
        self.len += 1;
        true
    }

    /// Adds a node of this height.
    fn put(&mut self, height: usize, node: Node) {
        let Some(level) = self.levels.get_mut(height) else { return self.levels.push(vec![node.behind_its_first()]) };
        if level.len() == FULL {
            let full = mem::take(level);
            self.put(height + 1, Node::Branch(full));
        }
        self.levels[height].push(node.behind_its_first());
    }

    /// The map.
    pub(super) fn finish(mut self) -> KeyMap {
        let (mut root, mut height) = (Node::Leaf(mem::take(&mut self.leaf)), 0);
        while height < self.levels.len() {
            self.put(height, root);
            root = Node::Branch(mem::take(&mut self.levels[height]));
            height += 1;
        }
        KeyMap { root: Arc::new(root), len: self.len }
    }
}

/// What is still to come.
struct Range<'a> {
    /// Of each level above the leaf, what stands behind the way down.
    above: Vec<slice::Iter<'a, (Key, Arc<Node>)>>,
    entries: slice::Iter<'a, (Key, KvValue)>,
}

impl<'a> Range<'a> {
    fn descend(&mut self, mut node: &'a Node, from: Bound<&[u8]>) {
        let is_before = |key: &Key| match from {
            Bound::Included(from) => key.bytes() < from,
            Bound::Excluded(from) => key.bytes() <= from,
            Bound::Unbounded => false,
        };
        loop {
            match node {
                Node::Branch(children) => {
                    let at = children[1..].partition_point(|(first, _)| is_before(first));
                    node = &children[at].1;
                    self.above.push(children[at + 1..].iter());
                }
                Node::Leaf(entries) => {
                    self.entries = entries[entries.partition_point(|(key, _)| is_before(key))..].iter();
                    return;
                }
            }
        }
    }
}

impl<'a> Iterator for Range<'a> {
    type Item = (&'a [u8], &'a KvValue);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((key, value)) = self.entries.next() {
                return Some((key.bytes(), value));
            }
            match self.above.last_mut()?.next() {
                Some((_, node)) => self.descend(node, Bound::Unbounded),
                None => drop(self.above.pop()),
            }
        }
    }
}
